"""Lets new sandboxes in: their client and freelancer are known, may act, and have room in their quotas.

All in the transaction that makes the sandbox, under a lock of the client's row: of a hundred creates at a limit exactly
as many succeed as fit.
"""

from __future__ import annotations

from datetime import datetime

from sandboxd.manager.account_cache import require_active
from sandboxd.manager.ports import UnitOfWork
from sandboxd.model.client import Standing
from sandboxd.model.client_errors import ClientUnknownError, FreelancerUnknownError, QuotaExceededError
from sandboxd.model.errors import QuotaViolation
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.quota import SandboxesInUse, check_sandbox
from sandboxd.model.sandbox import TIER_RESOURCES, Sandbox, Tier


class Admission:
    """Checks and registers."""

    def __init__(self, *, explicit: bool = False) -> None:
        """Say whether clients and freelancers must be made before they act."""
        self._explicit = explicit

    async def admit(
        self, work: UnitOfWork, client: ClientId, freelancer: FreelancerId, *, tier: Tier, at: datetime
    ) -> None:
        """Make room for one sandbox, and hold the client's lock until the end of the unit of work.

        Raises:
            ForbiddenError: The client or the freelancer may not act, or is not known and should be.
            QuotaExceededError: It does not fit.
        """
        standing = await self._known(work, client, freelancer, at=at)
        require_active(standing, client=client, freelancer=freelancer, explicit=self._explicit)
        limits = (
            (f"clients/{client}", standing.policy.quotas, None),
            (f"clients/{client}/freelancers/{freelancer}", standing.freelancer_quotas, freelancer),
        )
        violations: list[QuotaViolation] = []
        for subject, quotas, whose in limits:
            # Counting what has no limit would only prolong the client's lock.
            counts = quotas.sandboxes is not None or quotas.storage_bytes is not None
            present = await work.quotas.sandboxes(client, freelancer=whose) if counts else SandboxesInUse()
            violations += check_sandbox(subject, quotas, present, tier=tier)
        if violations:
            raise QuotaExceededError(violations)

    async def readmit(self, work: UnitOfWork, sandbox: Sandbox, *, tier: Tier, at: datetime) -> None:
        """Make room for another tier of a sandbox that is there, and hold the client's lock as `admit` does.

        Raises:
            ForbiddenError: The client or the freelancer may not act.
            QuotaExceededError: It does not fit.
        """
        client, freelancer = sandbox.client, sandbox.freelancer
        standing = await self._known(work, client, freelancer, at=at)
        require_active(standing, client=client, freelancer=freelancer, explicit=self._explicit)
        own = TIER_RESOURCES[sandbox.tier].storage_bytes
        violations: list[QuotaViolation] = []
        for subject, quotas, whose in (
            (f"clients/{client}", standing.policy.quotas, None),
            (f"clients/{client}/freelancers/{freelancer}", standing.freelancer_quotas, freelancer),
        ):
            present = await work.quotas.sandboxes(client, freelancer=whose)
            others = SandboxesInUse(count=present.count - 1, storage_bytes=max(0, present.storage_bytes - own))
            violations += check_sandbox(subject, quotas, others, tier=tier)
        if violations:
            raise QuotaExceededError(violations)

    async def _known(self, work: UnitOfWork, client: ClientId, freelancer: FreelancerId, *, at: datetime) -> Standing:
        # The lock of the client's row is what makes the counts true until the commit.
        found = await work.clients.standing(client, freelancer)
        if found.client is not None and found.freelancer is not None:
            return found
        if self._explicit:
            raise ClientUnknownError(client) if found.client is None else FreelancerUnknownError(client, freelancer)
        await work.freelancers.ensure(client, freelancer, at=at)
        return await work.clients.standing(client, freelancer)
