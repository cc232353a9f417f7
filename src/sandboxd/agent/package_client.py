"""The service's side of an agent's packages: implements `PackageSource`, and hides protobuf."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Final

import grpc
from typing_extensions import override

from sandboxd.agent import package_wire
from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.agent.wire import from_rpc_error
from sandboxd.manager.package_ports import PackageSource
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.packages import MAX_PACKAGES, InstalledPackages, Package, PackageNews
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.stream.agent_port import ProcessNotFoundError

MAX_PAGES: Final = MAX_PACKAGES // package_wire.PAGE_PACKAGES + 1
"""More than this an honest agent does not send for one moment."""

MAX_ODD: Final = 1000
"""Changes of one call that may be of a kind that we do not know: nobody slows down who tells nothing else."""


class GrpcPackageSource(PackageSource):
    """Asks agents over gRPC."""

    def __init__(self, connector: GrpcAgentConnector) -> None:
        self._connector = connector

    @override
    async def list(self, endpoint: AgentEndpoint, *, timeout: timedelta) -> InstalledPackages:
        agent = await self._connector.connect(endpoint)
        try:
            answer = await agent.stub.ListPackages(pb.ListPackagesRequest(), timeout=timeout.total_seconds())
            return package_wire.snapshot_from([answer.snapshot])
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise from_rpc_error(error) from error
        finally:
            await agent.close()

    @override
    async def has_terminal(self, endpoint: AgentEndpoint, process: ProcessId, *, timeout: timedelta) -> bool:
        agent = await self._connector.connect(endpoint)
        try:
            return (await agent.get_process(process, timeout=timeout)).spec.terminal is not None
        except ProcessNotFoundError:
            return False
        finally:
            await agent.close()

    @override
    async def watch(self, endpoint: AgentEndpoint, *, after: int) -> AsyncGenerator[PackageNews, None]:
        agent = await self._connector.connect(endpoint)
        call = agent.stub.WatchPackages(pb.WatchPackagesRequest(after_sequence=after))
        odd, pages, packages = 0, 0, list[Package]()
        try:
            async for message in call:
                if message.WhichOneof("news") == "change":
                    change = package_wire.change_from(message.change)
                    if change is None:
                        odd += 1
                        if odd > MAX_ODD:
                            raise InvalidRequestError(f"The agent told {odd} changes that cannot be read.")
                        continue
                    yield change
                    continue
                # Page by page, as they come: all at once would hold up the event loop for a tenth of a second.
                pages += 1
                packages.extend(package_wire.packages_from(message.snapshot))
                if pages > MAX_PAGES:
                    raise InvalidRequestError(f"The agent told more than {MAX_PACKAGES} packages.")
                if not message.snapshot.more:
                    yield package_wire.installed_from(message.snapshot, packages)
                    pages, packages = 0, []
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
            await agent.close()
