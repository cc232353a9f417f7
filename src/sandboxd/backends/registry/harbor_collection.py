"""The schedule of Harbor's garbage collection: made where there is none, else left alone; it is the whole Harbor's."""

from __future__ import annotations

import json

import structlog

from sandboxd.backends.registry.harbor_api import HarborApi
from sandboxd.backends.registry.transport import Answer
from sandboxd.model.errors import UnavailableError

PATH = "system/gc/schedule"

log = structlog.get_logger(__name__)


class HarborCollection:
    """One wished-for schedule. Harbor keeps nothing that would tell who made one, so another one is somebody else's."""

    def __init__(self, api: HarborApi, *, cron: str) -> None:
        self._api = api
        self._cron = cron

    async def converge(self) -> bool:
        """See that there is a schedule; False where there is another one, which is told.

        Raises:
            UnavailableError: Harbor does not answer, or our account lacks a right.
        """
        answer = await self._api.ask("GET", PATH, 200, right="garbage-collection: read (of the system)")
        there = self._read(answer)
        if there is None:
            body = {
                "schedule": {"type": "Custom", "cron": self._cron},
                "parameters": {"delete_untagged": True, "workers": 1},
            }
            right = "garbage-collection: create (of the system)"
            await self._api.ask("POST", PATH, 201, right=right, body=body)
            log.info("images.collection_scheduled", cron=self._cron)
            return True
        cron, untagged = there
        if (cron, untagged) == (self._cron, True):
            return True
        log.warning("images.collection_otherwise", cron=cron, delete_untagged=untagged, wanted=self._cron)
        return False

    def _read(self, answer: Answer) -> tuple[str, bool] | None:
        """Say when it collects, and whether what has no tag goes; None where the answer is empty: it never does."""
        if not answer.content.strip():
            return None
        said = self._api.read(answer, dict)
        cron = str((said.get("schedule") or {}).get("cron") or "")
        try:
            parameters = json.loads(said.get("job_parameters") or "{}")
            return (cron, parameters.get("delete_untagged") is True) if cron else None
        except (ValueError, AttributeError, TypeError) as error:
            raise UnavailableError("Harbor's schedule of its garbage collection cannot be read.") from error
