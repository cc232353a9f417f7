"""The care of clients' projects on the registry: quotas and rules as settings have them, accounts before they end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from sandboxd.images.projects import ImageProjects
from sandboxd.manager.commit_steps import PROJECT_TIMEOUT
from sandboxd.manager.image_care_metrics import ImageCareMetrics
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId

PAGE: Final = 500
"""Freelancers that one query names."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectCare:
    """Passes over every client that has, or had, images."""

    units: UnitsOfWork
    projects: ImageProjects
    metrics: ImageCareMetrics

    async def run(self) -> int:
        """Put every project right; answers how many there are. One that fails does not keep the others from it."""
        renewed = failed = 0
        last: ClientId | None = None
        after = None
        try:
            await self.projects.schedule_collection(timeout=PROJECT_TIMEOUT)
        except SandboxdError as error:
            failed += 1
            log.warning("images.collection_not_scheduled", reason=error.reason, error=error.message)
        while True:
            async with self.units.begin() as work:
                owners = await work.generations.owners(limit=PAGE, after=after)
            for client, _ in owners:
                if client == last:
                    continue
                last = client
                try:
                    renewed += await self.projects.renew(client, timeout=PROJECT_TIMEOUT)
                except SandboxdError as error:
                    failed += 1
                    log.warning("images.project_not_renewed", client=client, reason=error.reason, error=error.message)
            if len(owners) < PAGE:
                break
            after = owners[-1]
        self.metrics.projects_passed("failed" if failed else "done")
        return renewed
