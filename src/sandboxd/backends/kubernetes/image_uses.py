"""Which images a cluster's objects name: pods, StatefulSets with every revision, and `Sandbox` resources.

Of everybody, not only of this installation: an image that another one, or a person, starts from is not deleted either.
Every digest that is written anywhere in such an object counts, wherever it stands: more than what is used does no harm.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.backends.kubernetes.objects import ALL_SANDBOXES
from sandboxd.backends.kubernetes.refusals import translated
from sandboxd.kubeapi.errors import KubeError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.manager.image_care_ports import ImageUses
from sandboxd.model.errors import DeadlineError

PAGE: Final = 500
KINDS: Final[Mapping[str, str]] = {
    # In this order: what makes the others is asked for first, so that nothing is made between two questions from what
    # was not there at the first, and is gone at the second.
    "Sandbox": ALL_SANDBOXES,
    "StatefulSet": "/apis/apps/v1/statefulsets",
    "ControllerRevision": "/apis/apps/v1/controllerrevisions",
    "Pod": "/api/v1/pods",
}
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class KubernetesImageUses(ImageUses):
    """Asks the API server itself, not a mirror of it."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    @property
    @override
    def place(self) -> str:
        return "the cluster"

    @override
    async def named(self, *, timeout: timedelta) -> Mapping[str, str]:
        named: dict[str, str] = {}
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                for kind, path in KINDS.items():
                    await self._read(kind, path, named)
        except KubeError as error:
            raise translated(error, "Which images the cluster's objects name cannot be read", sandbox="") from error
        except TimeoutError as error:
            raise DeadlineError("The cluster did not tell in time which images its objects name.") from error
        return named

    async def _read(self, kind: str, path: str, named: dict[str, str]) -> None:
        query = {"limit": str(PAGE)}
        while True:
            page = await self._api.get(path, query=query)
            for item in page.get("items") or ():
                metadata = item["metadata"]
                by = f"{kind} {metadata.get('namespace', '')}/{metadata['name']}"
                for digest in _DIGEST.findall(json.dumps(item)):
                    named.setdefault(digest, by)
            following = page["metadata"].get("continue")
            if not following:
                return
            query["continue"] = following
