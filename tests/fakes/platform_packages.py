"""Packages as the platform's contract tells them, from memory; a part of `FakePlatform`."""

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from typing_extensions import override

from sandboxd.v1 import package_pb2 as pb
from sandboxd.v1 import package_pb2_grpc


class FakePackages(package_pb2_grpc.PackageServiceServicer):
    """The same packages in every sandbox, one on each page."""

    def __init__(self) -> None:
        self.packages: list[pb.Package] = []
        self.changes: list[pb.PackageChange] = []
        self.missed = 0
        self.record_time: Timestamp | None = None
        """Set where the sandbox does not run."""

    def add_packages_to(self, server: grpc.Server) -> None:
        package_pb2_grpc.add_PackageServiceServicer_to_server(self, server)

    @override
    def ListPackages(self, request: pb.ListPackagesRequest, context: Any) -> pb.ListPackagesResponse:
        wanted = [one for one in self.packages if request.manager in (0, one.manager)]
        if request.unsaved:
            wanted = [one for one in wanted if one.unsaved]
        page = int(request.page_token or 0)
        following = str(page + 1) if page + 1 < len(wanted) else ""
        response = pb.ListPackagesResponse(packages=wanted[page : page + 1], next_page_token=following)
        response.root_change_time.GetCurrentTime()
        if self.record_time is not None:
            response.recorded = True
            response.record_time.CopyFrom(self.record_time)
        return response

    @override
    def ListPackageChanges(self, request: pb.ListPackageChangesRequest, context: Any) -> pb.ListPackageChangesResponse:
        wanted = [one for one in self.changes if request.manager in (0, one.package.manager)]
        if request.unsaved:
            wanted = [one for one in wanted if one.package.unsaved]
        wanted.sort(key=lambda one: one.number, reverse=request.order_by == "number desc")
        start, size = int(request.page_token or 0), min(request.page_size or 50, 2)
        following = str(start + size) if start + size < len(wanted) else ""
        return pb.ListPackageChangesResponse(
            changes=wanted[start : start + size],
            next_page_token=following,
            last_number=max((one.number for one in self.changes), default=0),
            missed=self.missed,
        )
