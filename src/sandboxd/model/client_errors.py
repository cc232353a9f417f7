"""What can go wrong with clients and freelancers; kinds and the root are those of `model.errors`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sandboxd.model.errors import (
    AlreadyExistsError,
    ConflictError,
    ExhaustedError,
    ForbiddenError,
    NotFoundError,
    QuotaViolation,
    WrongStateError,
)


class ClientNotFoundError(NotFoundError):
    """No client has this name, or it is not the caller's."""

    reason = "CLIENT_NOT_FOUND"

    def __init__(self, client: str) -> None:
        super().__init__(f"Client {client} does not exist.", client=client)


class FreelancerNotFoundError(NotFoundError):
    """The client has no such freelancer."""

    reason = "FREELANCER_NOT_FOUND"

    def __init__(self, client: str, freelancer: str) -> None:
        super().__init__(f"Client {client} has no freelancer {freelancer}.", client=client, freelancer=freelancer)


class AccountExistsError(AlreadyExistsError):
    """The id is taken, possibly by one that was deleted."""

    reason = "ACCOUNT_EXISTS"

    def __init__(self, name: str, *, state: str) -> None:
        hint = " The id of a deleted one is never given again." if state in ("DELETING", "DELETED") else ""
        super().__init__(f"{name} exists already and is {state}.{hint}", name=name, state=state)


class AccountStateError(WrongStateError):
    """The state of a client or a freelancer does not allow the operation."""

    reason = "ACCOUNT_STATE_INVALID"

    def __init__(self, name: str, *, state: str, wanted: str) -> None:
        super().__init__(f"{name} is {state} and cannot become {wanted}.", name=name, state=state, wanted=wanted)


class StaleAccountEtagError(ConflictError):
    """The caller has seen an older version of a client or a freelancer."""

    reason = "ETAG_STALE"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was changed by somebody else. Get it again.", name=name)


class ClientSuspendedError(ForbiddenError):
    """The client was suspended by the platform."""

    reason = "CLIENT_SUSPENDED"

    def __init__(self, client: str) -> None:
        super().__init__(f"Client {client} is suspended. Ask the platform.", client=client)


class ClientDeletedError(ForbiddenError):
    """The client was deleted."""

    reason = "CLIENT_DELETED"

    def __init__(self, client: str) -> None:
        super().__init__(f"Client {client} was deleted.", client=client)


class ClientUnknownError(ForbiddenError):
    """The client was never made, and this installation does not register clients on first use."""

    reason = "CLIENT_UNKNOWN"

    def __init__(self, client: str) -> None:
        super().__init__(f"Client {client} is not known here. The platform must create it first.", client=client)


class FreelancerSuspendedError(ForbiddenError):
    """The freelancer was suspended."""

    reason = "FREELANCER_SUSPENDED"

    def __init__(self, client: str, freelancer: str) -> None:
        super().__init__(
            f"Freelancer {freelancer} of client {client} is suspended. Ask the client's administrator.",
            client=client,
            freelancer=freelancer,
        )


class FreelancerDeletedError(ForbiddenError):
    """The freelancer was deleted."""

    reason = "FREELANCER_DELETED"

    def __init__(self, client: str, freelancer: str) -> None:
        super().__init__(
            f"Freelancer {freelancer} of client {client} was deleted.", client=client, freelancer=freelancer
        )


class FreelancerUnknownError(ForbiddenError):
    """The freelancer was never made, and this installation does not register freelancers on first use."""

    reason = "FREELANCER_UNKNOWN"

    def __init__(self, client: str, freelancer: str) -> None:
        super().__init__(
            f"Client {client} has no freelancer {freelancer}. Its administrator must create it first.",
            client=client,
            freelancer=freelancer,
        )


class QuotaExceededError(ExhaustedError):
    """A quota of the client or the freelancer does not hold what was asked for."""

    reason = "QUOTA_EXCEEDED"

    def __init__(self, violations: Sequence[QuotaViolation]) -> None:
        first = violations[0]
        facts = {"limit": first.limit, "value": first.value}
        super().__init__(
            f"The quota of {first.subject} does not allow this: {first.description}",
            violations=violations,
            retry_after=None,
            subject=first.subject,
            quota=first.quota,
            **{name: str(number) for name, number in facts.items() if number is not None},
        )


class ErasureNotFoundError(NotFoundError):
    """No erasure has this name, or it is of a client that is not the caller's."""

    reason = "ERASURE_NOT_FOUND"

    def __init__(self, erasure: str) -> None:
        super().__init__(f"Erasure {erasure} does not exist.", erasure=erasure)


class ApiKeyNotFoundError(NotFoundError):
    """The client has no key."""

    reason = "KEY_NOT_FOUND"

    def __init__(self, client: str) -> None:
        super().__init__(f"Client {client} has no key. Set one first.", client=client)


class KeyChangeInProgressError(ConflictError):
    """Another change of the key is on its way, or has overtaken this one."""

    reason = "KEY_CHANGE_IN_PROGRESS"

    def __init__(self, client: str) -> None:
        super().__init__(
            f"Another change of the key of client {client} is on its way. Try again in a moment.",
            client=client,
            retry_after=timedelta(seconds=5),
        )
