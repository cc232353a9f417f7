"""Clients and their freelancers: who they are, whether they may act, and what they may use. Pure.

A *policy* belongs to a client and says what is kept of its texts, which models it may call and how much it may use. A
freelancer may have quotas of its own; without them the client's `freelancer_quotas` hold.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.backup_retention import AS_INSTALLED, RetentionOverrides
from sandboxd.model.client_errors import AccountStateError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.lifecycle import NO_OVERRIDES, LifecycleOverrides
from sandboxd.model.sandbox import Tier


class AccountState(enum.Enum):
    """Whether a client or a freelancer may act."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    """Every call is refused; everything is kept."""
    DELETING = "DELETING"
    """Its data are being erased; nothing brings it back."""
    DELETED = "DELETED"
    """Erased, with a proof. The row stays, so that nobody gets the id again."""


TRANSITIONS: Final[Mapping[AccountState, frozenset[AccountState]]] = {
    AccountState.ACTIVE: frozenset({AccountState.SUSPENDED, AccountState.DELETING}),
    AccountState.SUSPENDED: frozenset({AccountState.ACTIVE, AccountState.DELETING}),
    AccountState.DELETING: frozenset({AccountState.DELETED}),
    AccountState.DELETED: frozenset(),
}
"""From each state, the states that may follow."""


class TextPolicy(enum.Enum):
    """What is kept of prompts, answers and everything else that people and models wrote."""

    FULL = "FULL"
    REDACTED = "REDACTED"
    """Kept, with what looks like a secret or personal data replaced."""
    NONE = "NONE"
    """Shown live, and not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How much may be used at the same time; None is without a limit."""

    sandboxes: int | None = None
    """Sandboxes that are not terminated."""
    tiers: frozenset[Tier] = frozenset()
    """Tiers that new sandboxes may have; empty allows all."""
    concurrent_turns: int | None = None
    """Turns that run at the same time."""
    storage_bytes: int | None = None
    """Sum of the storage of the tiers of sandboxes that are not terminated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """What holds for a client."""

    text: TextPolicy = TextPolicy.FULL
    text_lifetime: timedelta | None = None
    """How long kept texts live; None is until they are deleted."""
    models: tuple[str, ...] = ()
    """Model names or shell patterns that may be called; empty allows all Gemini models."""
    quotas: Quotas = field(default_factory=Quotas)
    """Of the client as a whole."""
    freelancer_quotas: Quotas = field(default_factory=Quotas)
    """Of each freelancer that has none of its own."""
    lifecycle: LifecycleOverrides = NO_OVERRIDES
    """When its sandboxes rest, where it wants that otherwise than the installation."""
    backup_every: timedelta | None = None
    """How old the newest backup of one that is used may become; zero is never, None what holds for the installation."""
    backup_retention: RetentionOverrides = AS_INSTALLED
    """Which backups are kept, where it wants that otherwise than the installation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A tenant."""

    id: ClientId
    display_name: str = ""
    state: AccountState = AccountState.ACTIVE
    state_reason: str = ""
    """Why it is in this state, as whoever changed it said."""
    policy: ClientPolicy = field(default_factory=ClientPolicy)
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None = None
    """When its erasure was complete."""
    version: int = 1
    """Grows with every write; the API shows it as the etag."""

    def enter(self, state: AccountState, *, at: datetime, reason: str = "") -> Client:
        """Return this client in its next state.

        Raises:
            AccountStateError: The table does not allow it.
        """
        _require(f"clients/{self.id}", self.state, state)
        deleted = at if state is AccountState.DELETED else self.delete_time
        return replace(
            self, state=state, state_reason=reason, update_time=at, delete_time=deleted, version=self.version + 1
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Freelancer:
    """A person who works at a client; the same person at another client is another one."""

    client: ClientId
    id: FreelancerId
    display_name: str = ""
    state: AccountState = AccountState.ACTIVE
    state_reason: str = ""
    """Why it is in this state, as whoever changed it said."""
    quotas: Quotas | None = None
    """Its own; None takes those that the client's policy gives to each."""
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None = None
    """When its erasure was complete."""
    version: int = 1
    """Grows with every write; the API shows it as the etag."""

    def enter(self, state: AccountState, *, at: datetime, reason: str = "") -> Freelancer:
        """Return this freelancer in its next state.

        Raises:
            AccountStateError: The table does not allow it.
        """
        _require(f"clients/{self.client}/freelancers/{self.id}", self.state, state)
        deleted = at if state is AccountState.DELETED else self.delete_time
        return replace(
            self, state=state, state_reason=reason, update_time=at, delete_time=deleted, version=self.version + 1
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A client with one of its freelancers, as they are now; None for who is not known yet."""

    client: Client | None = None
    freelancer: Freelancer | None = None
    """None also where only the client was asked for."""

    @property
    def policy(self) -> ClientPolicy:
        """The client's policy; the standard one for a client that is not known yet."""
        return ClientPolicy() if self.client is None else self.client.policy

    @property
    def freelancer_quotas(self) -> Quotas:
        """What holds for the freelancer: its own quotas, or those that the client gives to each."""
        own = None if self.freelancer is None else self.freelancer.quotas
        return self.policy.freelancer_quotas if own is None else own


def _require(name: str, state: AccountState, wanted: AccountState) -> None:
    if wanted not in TRANSITIONS[state]:
        raise AccountStateError(name, state=state.value, wanted=wanted.value)
