"""Packages as agents tell them, from memory."""

from collections.abc import AsyncGenerator
from datetime import timedelta

from typing_extensions import override

from sandboxd.manager.package_ports import PackageSource
from sandboxd.model.errors import AgentUnavailableError
from sandboxd.model.packages import InstalledPackages, PackageNews
from sandboxd.model.sandbox import AgentEndpoint


class FakePackageSource(PackageSource):
    """Answers what a test says; an endpoint that it does not know is an agent that does not answer."""

    def __init__(self) -> None:
        self.installed: dict[AgentEndpoint, InstalledPackages] = {}

    @override
    async def list(self, endpoint: AgentEndpoint, *, timeout: timedelta) -> InstalledPackages:
        if endpoint not in self.installed:
            raise AgentUnavailableError("Nobody is there.")
        return self.installed[endpoint]

    @override
    async def watch(self, endpoint: AgentEndpoint, *, after: int) -> AsyncGenerator[PackageNews, None]:
        yield await self.list(endpoint, timeout=timedelta(seconds=1))
