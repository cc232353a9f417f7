"""Packages and their changes between the model and the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sandboxd.api.grpc.names import session_name, timestamp
from sandboxd.manager.package_tidings import PackageTidings
from sandboxd.model.ids import SandboxId
from sandboxd.model.package_history import KeptChange, Requester
from sandboxd.model.packages import Package, PackageChangeKind, PackageManager, PackagePlace
from sandboxd.v1 import package_pb2 as pb
from sandboxd.v1 import stream_pb2

MANAGERS: Final[Mapping[PackageManager, pb.PackageManager.ValueType]] = {
    one: pb.PackageManager.Value(f"PACKAGE_MANAGER_{one.name}") for one in PackageManager
}
PLACES: Final[Mapping[PackagePlace, pb.PackagePlace.ValueType]] = {
    one: pb.PackagePlace.Value(f"PACKAGE_PLACE_{one.name}") for one in PackagePlace
}
KINDS: Final[Mapping[PackageChangeKind, pb.PackageChangeKind.ValueType]] = {
    one: pb.PackageChangeKind.Value(f"PACKAGE_CHANGE_KIND_{one.name}") for one in PackageChangeKind
}
REQUESTERS: Final[Mapping[Requester, pb.PackageRequester.ValueType]] = {
    Requester.UNKNOWN: pb.PACKAGE_REQUESTER_UNSPECIFIED,
    Requester.SESSION: pb.PACKAGE_REQUESTER_SESSION,
    Requester.TERMINAL: pb.PACKAGE_REQUESTER_TERMINAL,
    Requester.IMAGE: pb.PACKAGE_REQUESTER_IMAGE,
}
MANAGERS_BACK: Final = {number: one for one, number in MANAGERS.items()}
PLACES_BACK: Final = {number: one for one, number in PLACES.items()}
KINDS_BACK: Final = {number: one for one, number in KINDS.items()}
REQUESTERS_BACK: Final = {number: one for one, number in REQUESTERS.items() if one is not Requester.UNKNOWN}


def encode_package(package: Package, *, unsaved: bool) -> pb.Package:
    """Encode a package."""
    return pb.Package(
        manager=MANAGERS[package.key.manager],
        name=package.key.name,
        version=package.version,
        place=PLACES[package.place],
        directory=package.key.directory,
        requested=package.requested,
        initial=package.initial,
        unsaved=unsaved,
    )


def encode_package_change(kept: KeptChange, *, sandbox: SandboxId) -> pb.PackageChange:
    """Encode a change of a sandbox."""
    change, asked = kept.change, kept.asked
    return pb.PackageChange(
        number=kept.number,
        kind=KINDS[change.kind],
        package=encode_package(change.package, unsaved=not kept.saved),
        old_version=change.old_version,
        change_time=timestamp(change.time),
        keep_time=timestamp(kept.kept_time),
        requester=REQUESTERS[asked.requester],
        session=session_name(sandbox, asked.session) if asked.session else "",
        incarnation=kept.incarnation,
    )


def encode_tidings(tidings: PackageTidings, *, sandbox: SandboxId, told: int) -> stream_pb2.StreamResponse:
    """Encode what a stream tells of changes, where it has told those up to a number."""
    return stream_pb2.StreamResponse(
        event_time=timestamp(tidings.changes[-1].kept_time),
        packages_changed=stream_pb2.PackagesChanged(
            changes=[encode_package_change(one, sandbox=sandbox) for one in tidings.changes],
            earlier=max(0, tidings.changes[0].number - told - 1),
            last_number=tidings.last_number,
        ),
    )
