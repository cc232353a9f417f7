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
        violations = [
            violation
            for subject, quotas, whose in limits
            for violation in check_sandbox(
                subject, quotas, await work.quotas.sandboxes(client, freelancer=whose), tier=tier
            )
        ]
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
        found = await work.clients.find(client, for_update=True)
        person = None if found is None else await work.freelancers.find(client, freelancer)
        if found is not None and person is not None:
            return Standing(client=found, freelancer=person)
        if self._explicit:
            raise ClientUnknownError(client) if found is None else FreelancerUnknownError(client, freelancer)
        await work.freelancers.ensure(client, freelancer, at=at)
        return Standing(
            client=await work.clients.get(client, for_update=True),
            freelancer=await work.freelancers.get(client, freelancer),
        )
