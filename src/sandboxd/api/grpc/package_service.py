"""PackageService: decode, call, encode."""

from __future__ import annotations

from typing import Any, Final

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.names import sandbox_id, timestamp
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.manager.packages import LOOK_TIMEOUT, Packages, PackageSelection
from sandboxd.model.packages import Package, PackageManager, PackagePlace
from sandboxd.v1 import package_pb2 as pb
from sandboxd.v1 import package_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""
_MANAGERS: Final = {
    PackageManager.DPKG: pb.PACKAGE_MANAGER_DPKG,
    PackageManager.PIP: pb.PACKAGE_MANAGER_PIP,
    PackageManager.NPM: pb.PACKAGE_MANAGER_NPM,
    PackageManager.CARGO: pb.PACKAGE_MANAGER_CARGO,
    PackageManager.GEM: pb.PACKAGE_MANAGER_GEM,
    PackageManager.GO: pb.PACKAGE_MANAGER_GO,
}
_MANAGERS_BACK: Final = {number: manager for manager, number in _MANAGERS.items()}
_PLACES: Final = {PackagePlace.ROOT: pb.PACKAGE_PLACE_ROOT, PackagePlace.HOME: pb.PACKAGE_PLACE_HOME}


class PackageServicer(package_pb2_grpc.PackageServiceServicer):
    """Serves packages."""

    def __init__(self, *, packages: Packages) -> None:
        self._packages = packages

    @override
    async def ListPackages(self, request: pb.ListPackagesRequest, context: Context) -> pb.ListPackagesResponse:
        """Return a page of what is installed."""
        rpc = current_rpc()
        page = await self._packages.list(
            rpc.caller,
            sandbox_id(request.sandbox),
            PackageSelection(manager=_MANAGERS_BACK.get(request.manager), unsaved=request.unsaved),
            page_size=request.page_size,
            page_token=request.page_token,
            timeout=rpc.remaining(at_most=LOOK_TIMEOUT),
        )
        return pb.ListPackagesResponse(
            packages=[_encode(package) for package in page.packages],
            next_page_token=page.next_token,
            incomplete=not page.complete,
            root_change_time=timestamp(page.root_change_time),
        )


def _encode(package: Package) -> pb.Package:
    return pb.Package(
        manager=_MANAGERS[package.key.manager],
        name=package.key.name,
        version=package.version,
        place=_PLACES[package.place],
        directory=package.key.directory,
        requested=package.requested,
        initial=package.initial,
    )
