"""A sandbox: its states, the table of legal transitions, and what it is made of.

The table is the one of the design (states of section 4). It is the only place that knows which state may follow which.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from sandboxd.model.backup import ReleasedVolumes, Restoring
from sandboxd.model.errors import InvalidTransitionError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.image import SandboxImage
from sandboxd.model.lifecycle import NO_OVERRIDES, LifecycleOverrides


class SandboxState(enum.Enum):
    """Where a sandbox is in its life. Names that end in -ING are transient."""

    CREATING = "CREATING"
    ACTIVE = "ACTIVE"
    HIBERNATING = "HIBERNATING"
    HIBERNATED = "HIBERNATED"
    WAKING = "WAKING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    STARTING = "STARTING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    RESUMING = "RESUMING"
    RESTORING = "RESTORING"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"
    FAILED = "FAILED"

    @property
    def transient(self) -> bool:
        """True while an operation is on its way; the reconciler finishes it after a crash."""
        return self.value.endswith("ING")


_S = SandboxState
TRANSITIONS: Final[Mapping[SandboxState, frozenset[SandboxState]]] = {
    _S.CREATING: frozenset({_S.ACTIVE, _S.FAILED, _S.TERMINATING}),
    _S.ACTIVE: frozenset({_S.HIBERNATING, _S.STOPPING, _S.PAUSING, _S.TERMINATING, _S.STARTING, _S.FAILED}),
    _S.HIBERNATING: frozenset({_S.HIBERNATED, _S.ACTIVE, _S.WAKING, _S.TERMINATING, _S.FAILED}),
    _S.HIBERNATED: frozenset({_S.WAKING, _S.STOPPING, _S.PAUSING, _S.TERMINATING, _S.STARTING, _S.FAILED}),
    _S.WAKING: frozenset({_S.ACTIVE, _S.STARTING, _S.TERMINATING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.ACTIVE, _S.HIBERNATED, _S.TERMINATING, _S.FAILED}),
    _S.STOPPED: frozenset({_S.STARTING, _S.PAUSING, _S.RESTORING, _S.TERMINATING}),
    _S.STARTING: frozenset({_S.ACTIVE, _S.TERMINATING, _S.FAILED}),
    _S.PAUSING: frozenset({_S.PAUSED, _S.TERMINATING, _S.FAILED}),
    _S.PAUSED: frozenset({_S.RESUMING, _S.RESTORING, _S.TERMINATING}),
    _S.RESUMING: frozenset({_S.ACTIVE, _S.TERMINATING, _S.FAILED}),
    _S.RESTORING: frozenset({_S.ACTIVE, _S.STOPPED, _S.PAUSED, _S.TERMINATED, _S.FAILED}),
    _S.TERMINATING: frozenset({_S.TERMINATED, _S.FAILED}),
    _S.TERMINATED: frozenset({_S.RESTORING}),
    _S.FAILED: frozenset({_S.RESUMING, _S.TERMINATING}),
}
"""From each state, the states that may follow. ACTIVE to STARTING: the incarnation died under us and is made anew.
RESTORING, HIBERNATING and STOPPING back to where they came from: nothing could be restored, or somebody began to use
it and the step is called off."""


class ApprovalMode(enum.Enum):
    """When the CLI asks a person before it runs a tool (the CLI's own mode ids)."""

    DEFAULT = "default"
    AUTO_EDIT = "autoEdit"
    YOLO = "yolo"
    PLAN = "plan"


class Tier(enum.Enum):
    """How much a sandbox may use; `TIER_RESOURCES` has the numbers."""

    BASIC = "basic"
    STANDARD = "standard"
    PREMIUM = "premium"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits of one sandbox."""

    cpus: int
    """Processor cores."""
    memory_bytes: int
    """Main memory."""
    storage_bytes: int
    """Home and workspace together; 20 % of it is home."""


_GB = 10**9
TIER_RESOURCES: Final[Mapping[Tier, Resources]] = {
    Tier.BASIC: Resources(cpus=1, memory_bytes=2 * _GB, storage_bytes=10 * _GB),
    Tier.STANDARD: Resources(cpus=2, memory_bytes=4 * _GB, storage_bytes=50 * _GB),
    Tier.PREMIUM: Resources(cpus=4, memory_bytes=8 * _GB, storage_bytes=100 * _GB),
}
"""The tiers of the design, section 5. The local backend does not enforce them, and says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """One life of a sandbox's compute: a pod on Kubernetes, an agent process locally. Fences all that refers to it."""

    id: IncarnationId
    sandbox: SandboxId
    number: int
    """1 for the first life, then one more each time."""
    endpoint: AgentEndpoint | None = None
    """Where its agent listens; None until it answered once."""
    start_time: datetime
    ready_time: datetime | None = None
    end_time: datetime | None = None
    end_reason: str = ""
    """Why it ended, a constant word such as `PAUSED`, `AGENT_LOST`, `TERMINATED`; empty while it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEndpoint:
    """How to reach the agent of one incarnation."""

    host: str
    port: int
    server_name: str
    """The name that the agent's certificate carries; it identifies the incarnation and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """The durable environment of one freelancer at one client."""

    id: SandboxId
    client: ClientId
    freelancer: FreelancerId
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    tier: Tier = Tier.BASIC
    model: str = ""
    """Model of new sessions, for example `gemini-2.5-flash`; empty leaves the choice to the CLI (`auto`)."""
    approval_mode: ApprovalMode = ApprovalMode.DEFAULT
    """Mode of new sessions."""
    state: SandboxState = SandboxState.CREATING
    state_reason: str = ""
    """Why it is in this state, for people; empty where the state says it all."""
    incarnation: IncarnationId | None = None
    """The present life, or the last one."""
    incarnations: int = 0
    """How many lives it has had."""
    create_time: datetime
    update_time: datetime
    last_use_time: datetime
    """Last honest use: a prompt, an answer, a wake. Our own probes do not count."""
    state_time: datetime | None = None
    """When it came into its present state; None for one that never left CREATING."""
    lifecycle: LifecycleOverrides = NO_OVERRIDES
    """What it wants otherwise than its client's policy."""
    keep_awake_until: datetime | None = None
    """Until then it counts as used."""
    terminate_time: datetime | None = None
    image: SandboxImage | None = None
    """What its next start takes; None is the base."""
    restoring: Restoring | None = None
    """What is brought back, while it is RESTORING."""
    released: ReleasedVolumes | None = None
    """Of the volumes of a terminated one, and of one that is being restored from that. `volumes_released` says whether
    it is still so."""
    dirty_since: datetime | None = None
    """First known change of its root file system that no commit has: gone with the compute, or gone already where it
    has none. Written by who keeps packages alone, as is the count; the version does not grow with them."""
    unsaved_packages: int = 0
    """How many packages belong to that; 0 beside a `dirty_since` where it was something else."""
    version: int = 1
    """Grows with every write; the API shows it as the etag."""

    @property
    def volumes_released(self) -> ReleasedVolumes | None:
        """Where its volumes were given back, and nothing has begun with new ones; else None."""
        ended = self.state in (SandboxState.TERMINATED, SandboxState.RESTORING)
        said = self.released
        return said if ended and said is not None and said.incarnation == self.incarnation else None

    def enter(self, state: SandboxState, *, at: datetime, reason: str = "", hint: str = "") -> Sandbox:
        """Return this sandbox in its next state.

        Raises:
            InvalidTransitionError: The table does not allow it.
        """
        if state not in TRANSITIONS[self.state]:
            raise InvalidTransitionError(self.id, state=self.state.value, wanted=state.value, hint=hint)
        terminated = self.terminate_time if state is SandboxState.RESTORING else None
        if state is SandboxState.TERMINATED:
            terminated = at
        return replace(
            self,
            state=state,
            state_reason=reason,
            state_time=at,
            update_time=at,
            terminate_time=terminated,
            restoring=self.restoring if state is SandboxState.RESTORING else None,
            version=self.version + 1,
        )
