"""Packages between the wire and our own types, for the agent and its client. Pure.

A newer agent may know managers that we do not: what is unknown is passed over, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.agent import codec
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.packages import (
    InstalledPackages,
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackageNews,
    PackagePlace,
    is_word,
)
from sandboxd.model.processes import ProcessId

PAGE_PACKAGES: Final = 1000
MANAGERS: Final = {
    PackageManager.DPKG: pb.PACKAGE_MANAGER_DPKG,
    PackageManager.PIP: pb.PACKAGE_MANAGER_PIP,
    PackageManager.NPM: pb.PACKAGE_MANAGER_NPM,
    PackageManager.CARGO: pb.PACKAGE_MANAGER_CARGO,
    PackageManager.GEM: pb.PACKAGE_MANAGER_GEM,
    PackageManager.GO: pb.PACKAGE_MANAGER_GO,
    PackageManager.PROGRAM: pb.PACKAGE_MANAGER_PROGRAM,
}
PLACES: Final = {PackagePlace.ROOT: pb.PACKAGE_PLACE_ROOT, PackagePlace.HOME: pb.PACKAGE_PLACE_HOME}
KINDS: Final = {
    PackageChangeKind.INSTALLED: pb.PACKAGE_CHANGE_KIND_INSTALLED,
    PackageChangeKind.REMOVED: pb.PACKAGE_CHANGE_KIND_REMOVED,
    PackageChangeKind.CHANGED: pb.PACKAGE_CHANGE_KIND_CHANGED,
}
_MANAGERS_FROM: Final = {value: one for one, value in MANAGERS.items()}
_PLACES_FROM: Final = {value: one for one, value in PLACES.items()}
_KINDS_FROM: Final = {value: one for one, value in KINDS.items()}


def news_to(news: PackageNews) -> Iterator[pb.WatchPackagesResponse]:
    """Write what a watcher is told; what is installed takes a message for each page."""
    if isinstance(news, PackageChange):
        yield pb.WatchPackagesResponse(change=_change_to(news))
        return
    pages = range(0, max(len(news.packages), 1), PAGE_PACKAGES)
    for begin in pages:
        page = snapshot_to(news, begin, begin + PAGE_PACKAGES)
        page.more = begin + PAGE_PACKAGES < len(news.packages)
        yield pb.WatchPackagesResponse(snapshot=page)


def snapshot_to(installed: InstalledPackages, begin: int = 0, end: int | None = None) -> pb.PackageSnapshot:
    """Write what is installed, or a part of it."""
    return pb.PackageSnapshot(
        packages=[_package_to(one) for one in installed.packages[begin:end]],
        sequence=installed.sequence,
        complete=installed.complete,
        root_change_time=codec.time_to(installed.root_change_time),
    )


def snapshot_from(pages: Iterable[pb.PackageSnapshot]) -> InstalledPackages:
    """Read what is installed from all pages of one moment, at least one."""
    listed = list(pages)
    return installed_from(listed[-1], [one for page in listed for one in packages_from(page)])


def packages_from(page: pb.PackageSnapshot) -> list[Package]:
    """Read the packages of one page; what cannot be is left out."""
    return [one for told in page.packages if (one := _package_from(told)) is not None]


def installed_from(last: pb.PackageSnapshot, packages: Sequence[Package]) -> InstalledPackages:
    """Read what is said of all pages on the last one, with the packages of all."""
    return InstalledPackages(
        packages=packages,
        sequence=last.sequence,
        complete=last.complete,
        root_change_time=_moment(last.root_change_time) if last.HasField("root_change_time") else None,
    )


def change_from(told: pb.PackageChange) -> PackageChange | None:
    """Read a change; None when it is of a kind that we do not know, or says what cannot be."""
    kind, package, moment = _KINDS_FROM.get(told.kind), _package_from(told.package), _moment(told.time)
    if kind is None or package is None or moment is None:
        return None
    return PackageChange(
        sequence=told.sequence,
        kind=kind,
        package=package,
        old_version=told.old_version if is_word(told.old_version) else "",
        time=moment,
        process=ProcessId(told.process_id) if is_word(told.process_id) else None,
    )


def _moment(told: Timestamp) -> datetime | None:
    try:
        return codec.time_from(told)
    except (ValueError, OverflowError):  # no moment of this calendar
        return None


def _change_to(change: PackageChange) -> pb.PackageChange:
    return pb.PackageChange(
        sequence=change.sequence,
        kind=KINDS[change.kind],
        package=_package_to(change.package),
        old_version=change.old_version,
        time=codec.time_to(change.time),
        process_id=change.process or "",
    )


def _package_to(package: Package) -> pb.Package:
    return pb.Package(
        manager=MANAGERS[package.key.manager],
        name=package.key.name,
        version=package.version,
        place=PLACES[package.place],
        directory=package.key.directory,
        requested=package.requested,
        initial=package.initial,
    )


def _package_from(told: pb.Package) -> Package | None:
    manager, place = _MANAGERS_FROM.get(told.manager), _PLACES_FROM.get(told.place)
    # An agent is not trusted: what it says is checked as if it were the files themselves.
    if manager is None or place is None or not is_word(told.name) or not is_word(told.version):
        return None
    key = PackageKey(manager=manager, name=told.name, directory=told.directory[:4096])
    return Package(key=key, version=told.version, place=place, requested=told.requested, initial=told.initial)
