"""How much there is of a sandbox's files: from the agent while it runs, else as it was last counted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.backends.kubernetes.objects import FILES_ANNOTATION, SandboxObjects
from sandboxd.kubeapi.errors import KubeError
from sandboxd.kubeapi.ports import Json
from sandboxd.manager.agents import visit
from sandboxd.manager.backend_port import FilesSize
from sandboxd.model.cluster import HOME_VOLUME
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.stream.agent_port import AgentConnector

LAST_COUNT: Final = timedelta(seconds=3)
"""How long the count before a stop may take; a larger tree keeps its earlier figure."""

log = structlog.get_logger(__name__)


class Figures:
    """Counts, and keeps the figure on the claim of the home volume."""

    def __init__(self, *, objects: SandboxObjects, connector: AgentConnector) -> None:
        self._objects = objects
        self._connector = connector

    async def count(self, endpoint: AgentEndpoint, *, timeout: timedelta) -> FilesSize:
        """Ask an agent.

        Raises:
            AgentUnavailableError, DeadlineError: It does not answer in time.
        """
        async with visit(self._connector, endpoint) as agent:
            stats = await agent.get_stats(measure_trees=True, timeout=timeout)
        return FilesSize(
            files=sum(root.files or 0 for root in stats.roots),
            size_bytes=sum(root.used_bytes or 0 for root in stats.roots),
        )

    async def recorded(self, sandbox: SandboxId) -> FilesSize:
        """The figure of the last count; nothing where there was none.

        Raises:
            KubeError: The cluster does not answer.
        """
        for claim in await self._objects.claims(sandbox):
            text = (claim["metadata"].get("annotations") or {}).get(FILES_ANNOTATION, "")
            files, comma, size = text.partition(",")
            if comma and files.isdigit() and size.isdigit():
                return FilesSize(files=int(files), size_bytes=int(size))
        return FilesSize()

    async def record_last(self, sandbox: SandboxId, endpoint: AgentEndpoint) -> None:
        """Count before a stop, and keep the figure. What fails here is logged and stops nothing."""
        try:
            found = await self.count(endpoint, timeout=LAST_COUNT)
            claim = _home(await self._objects.claims(sandbox))
            if claim is not None:
                await self._objects.annotate_claim(claim, FILES_ANNOTATION, f"{found.files},{found.size_bytes}")
        except SandboxdError as error:
            log.info("cluster.files_not_counted", sandbox=sandbox, error=error.message)
        except KubeError as error:
            log.info("cluster.files_not_counted", sandbox=sandbox, error=error.message)


def _home(claims: Sequence[Json]) -> Json | None:
    return next((claim for claim in claims if claim["metadata"]["name"].startswith(f"{HOME_VOLUME}-")), None)
