"""PackageService: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.codec_packages import (
    KINDS_BACK,
    MANAGERS_BACK,
    PLACES_BACK,
    REQUESTERS_BACK,
    encode_package,
    encode_package_change,
)
from sandboxd.api.grpc.names import moment, sandbox_id, timestamp
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.manager.package_ports import ChangeSelection
from sandboxd.manager.packages import LOOK_TIMEOUT, Packages, PackageSelection
from sandboxd.v1 import package_pb2 as pb
from sandboxd.v1 import package_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


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
            PackageSelection(manager=MANAGERS_BACK.get(request.manager), unsaved=request.unsaved),
            page_size=request.page_size,
            page_token=request.page_token,
            timeout=rpc.remaining(at_most=LOOK_TIMEOUT),
        )
        return pb.ListPackagesResponse(
            packages=[encode_package(one.package, unsaved=one.unsaved) for one in page.packages],
            next_page_token=page.next_token,
            incomplete=not page.complete,
            root_change_time=timestamp(page.root_change_time),
            recorded=page.record_time is not None,
            record_time=timestamp(page.record_time),
        )

    @override
    async def ListPackageChanges(
        self, request: pb.ListPackageChangesRequest, context: Context
    ) -> pb.ListPackageChangesResponse:
        """Return a page of a history."""
        sandbox = sandbox_id(request.sandbox)
        page = await self._packages.changes(
            current_rpc().caller,
            sandbox,
            ChangeSelection(
                manager=MANAGERS_BACK.get(request.manager),
                kind=KINDS_BACK.get(request.kind),
                place=PLACES_BACK.get(request.place),
                requester=REQUESTERS_BACK.get(request.requester),
                unsaved=request.unsaved,
                after_number=request.after_number,
                since=moment(request, "start_time"),
            ),
            newest_first=request.order_by == "number desc",
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListPackageChangesResponse(
            changes=[encode_package_change(one, sandbox=sandbox) for one in page.changes],
            next_page_token=page.next_token,
            last_number=page.last_number,
            missed=page.missed,
        )
