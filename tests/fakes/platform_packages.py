"""Packages as the platform's contract tells them, from memory; a part of `FakePlatform`."""

from typing import Any

import grpc
from typing_extensions import override

from sandboxd.v1 import package_pb2 as pb
from sandboxd.v1 import package_pb2_grpc


class FakePackages(package_pb2_grpc.PackageServiceServicer):
    """The same packages in every sandbox, one on each page."""

    def __init__(self) -> None:
        self.packages: list[pb.Package] = []

    def add_packages_to(self, server: grpc.Server) -> None:
        package_pb2_grpc.add_PackageServiceServicer_to_server(self, server)

    @override
    def ListPackages(self, request: pb.ListPackagesRequest, context: Any) -> pb.ListPackagesResponse:
        wanted = [one for one in self.packages if request.manager in (0, one.manager)]
        if request.unsaved:
            wanted = [one for one in wanted if one.place == pb.PACKAGE_PLACE_ROOT and not one.initial]
        page = int(request.page_token or 0)
        following = str(page + 1) if page + 1 < len(wanted) else ""
        response = pb.ListPackagesResponse(packages=wanted[page : page + 1], next_page_token=following)
        response.root_change_time.GetCurrentTime()
        return response
