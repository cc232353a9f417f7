"""What can go wrong with pools, and with capacity for starts."""

from __future__ import annotations

from datetime import timedelta

from sandboxd.model.errors import AlreadyExistsError, ConflictError, ExhaustedError, NotFoundError


class PoolNotFoundError(NotFoundError):
    """The client has no pool of this id."""

    reason = "POOL_NOT_FOUND"

    def __init__(self, pool: str) -> None:
        super().__init__(f"Pool {pool} does not exist.", pool=pool)


class PoolExistsError(AlreadyExistsError):
    """The client has a pool for this template and tier."""

    reason = "POOL_EXISTS"

    def __init__(self, pool: str, *, template: str, tier: str) -> None:
        super().__init__(
            f"Pool {pool} is for template {template} and tier {tier} already. Update it, or wait until it is deleted.",
            pool=pool,
            template=template,
            tier=tier,
        )


class StalePoolEtagError(ConflictError):
    """The caller has seen an older version of the pool."""

    reason = "ETAG_STALE"

    def __init__(self, pool: str) -> None:
        super().__init__(f"Pool {pool} was changed by somebody else. Get it again.", pool=pool)


class CapacityError(ExhaustedError):
    """So many sandboxes are being started that this one found no place in time."""

    reason = "CAPACITY_EXHAUSTED"

    def __init__(self, *, waiting: int, retry_after: timedelta) -> None:
        super().__init__(
            "Too many sandboxes are being started at the moment, and nothing was made. Try again in a moment; a new "
            "try may use the same request id.",
            retry_after=retry_after,
            waiting=str(waiting),
        )
