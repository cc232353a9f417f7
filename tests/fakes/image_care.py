"""What the care of kept images needs beside rows and registry, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from typing_extensions import override

from sandboxd.manager.image_care_ports import ImageSightings, ImageUses
from sandboxd.model.errors import SandboxdError


class FakeImageSightings(ImageSightings):
    """Keeps what is noted, by repository and digest."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, str], datetime] = {}
        self.orphans: dict[tuple[str, str], datetime] = {}

    @override
    async def note_used(self, repository: str, digests: Sequence[str], *, at: datetime) -> None:
        self.used |= {(repository, digest): at for digest in digests}

    @override
    async def last_used(self, repository: str) -> Mapping[str, datetime]:
        return {digest: at for (where, digest), at in self.used.items() if where == repository}

    @override
    async def note_orphans(self, repository: str, digests: Sequence[str], *, at: datetime) -> Mapping[str, datetime]:
        since = {digest: self.orphans.get((repository, digest), at) for digest in digests}
        self.orphans = {key: one for key, one in self.orphans.items() if key[0] != repository}
        self.orphans |= {(repository, digest): one for digest, one in since.items()}
        return since

    @override
    async def forget(self, repository: str, digest: str) -> None:
        self.used.pop((repository, digest), None)
        self.orphans.pop((repository, digest), None)


class FakeImageUses(ImageUses):
    """Names what a test says."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.error: SandboxdError | None = None
        self.asked = 0
        self.later: dict[str, str] = {}
        """Named from the second question on."""

    @property
    @override
    def place(self) -> str:
        return "the cluster"

    @override
    async def named(self, *, timeout: timedelta) -> Mapping[str, str]:
        if self.error is not None:
            raise self.error
        self.asked += 1
        return {**self.names, **(self.later if self.asked > 1 else {})}
