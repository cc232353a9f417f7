"""The calls of packages, as part of the client (`client.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sandboxd.ctl.connection import Connection
from sandboxd.v1 import package_pb2, package_pb2_grpc

PAGE: Final = 1000


@dataclass(slots=True)
class Listed:
    """Everything of one list."""

    packages: list[package_pb2.Package] = field(default_factory=list)
    last: package_pb2.ListPackagesResponse = field(default_factory=package_pb2.ListPackagesResponse)
    """The last page: what is said of all of them."""


class PackageClient:
    """What is installed in sandboxes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = package_pb2_grpc.PackageServiceStub(connection.channel)

    async def history(
        self, sandbox: str, *, manager: str = "", unsaved: bool = False, limit: int = 0
    ) -> tuple[Sequence[package_pb2.PackageChange], package_pb2.ListPackageChangesResponse]:
        """Return the newest changes that are wanted, at most so many (0: all), by number; and the last page's words."""
        request = package_pb2.ListPackageChangesRequest(
            sandbox=sandbox, unsaved=unsaved, order_by="number desc", manager=_manager(manager)
        )
        changes: list[package_pb2.PackageChange] = []
        while True:
            request.page_size = min(PAGE, limit - len(changes)) if limit else PAGE
            page = await self._connection.call(self._stub.ListPackageChanges, request)
            changes.extend(page.changes)
            if not page.next_page_token or 0 < limit <= len(changes):
                return changes[::-1], page
            request.page_token = page.next_page_token

    async def list(self, sandbox: str, *, manager: str = "", unsaved: bool = False) -> Listed:
        """Return all packages that are wanted."""
        request = package_pb2.ListPackagesRequest(
            sandbox=sandbox, page_size=PAGE, unsaved=unsaved, manager=_manager(manager)
        )
        listed = Listed()
        while True:
            listed.last = await self._connection.call(self._stub.ListPackages, request)
            listed.packages.extend(listed.last.packages)
            if not listed.last.next_page_token:
                return listed
            request.page_token = listed.last.next_page_token


def _manager(name: str) -> package_pb2.PackageManager.ValueType:
    if not name:
        return package_pb2.PACKAGE_MANAGER_UNSPECIFIED
    return package_pb2.PackageManager.Value(f"PACKAGE_MANAGER_{name.upper()}")
