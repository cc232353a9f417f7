"""Packages: from what the database holds to the model, and back. No I/O.

A set is compressed JSON, a list for each package. Directories, of which there are a handful, are named once.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sandboxd.model.ids import IncarnationId, SandboxId, SessionId
from sandboxd.model.package_history import Asked, KeptChange, KnownPackage, PackageRecord, Requester
from sandboxd.model.packages import (
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackagePlace,
)
from sandboxd.model.processes import ProcessId
from sandboxd.persistence.sandbox_rows import Row, Values


def pack(known: Iterable[KnownPackage]) -> bytes:
    """Make the bytes of a set."""
    directories: dict[str, int] = {}
    rows = [
        [
            one.package.key.manager.value,
            one.package.key.name,
            directories.setdefault(one.package.key.directory, len(directories)),
            one.package.version,
            one.package.place.value,
            int(one.package.requested),
            int(one.package.initial),
            None if one.unsaved_time is None else one.unsaved_time.timestamp(),
        ]
        for one in known
    ]
    return zlib.compress(json.dumps([list(directories), rows], separators=(",", ":")).encode(), 1)


def unpack(packed: bytes) -> Mapping[PackageKey, KnownPackage]:
    """Read the bytes of a set."""
    if not packed:
        return {}
    directories, rows = json.loads(zlib.decompress(packed))
    known: dict[PackageKey, KnownPackage] = {}
    for manager, name, directory, version, place, requested, initial, unsaved in rows:
        key = PackageKey(manager=PackageManager(manager), name=name, directory=directories[directory])
        known[key] = KnownPackage(
            package=Package(
                key=key,
                version=version,
                place=PackagePlace(place),
                requested=bool(requested),
                initial=bool(initial),
            ),
            unsaved_time=None if unsaved is None else datetime.fromtimestamp(unsaved, UTC),
        )
    return known


def record_values(record: PackageRecord, packages: bytes) -> Values:
    """A record by columns, without its owner; its set is packed already."""
    return {
        "sandbox": record.sandbox,
        "incarnation": record.incarnation,
        "sequence": record.sequence,
        "number": record.number,
        "looked": record.looked,
        "complete": record.complete,
        "root_change_time": record.root_change_time,
        "look_time": record.look_time,
        "dirty_since": record.dirty_since,
        "other_unsaved_time": record.other_unsaved_time,
        "saved_time": record.saved_time,
        "saved_sequence": record.saved_sequence,
        "saved_root_time": record.saved_root_time,
        "missed": record.missed,
        "packages": packages,
    }


def read_record(row: Row, known: Mapping[PackageKey, KnownPackage]) -> PackageRecord:
    """A record from its columns, and the set that was unpacked from them."""
    return PackageRecord(
        sandbox=SandboxId(row["sandbox"]),
        incarnation=IncarnationId(row["incarnation"]),
        owner=row["owner"],
        sequence=row["sequence"],
        number=row["number"],
        known=known,
        looked=row["looked"],
        complete=row["complete"],
        root_change_time=row["root_change_time"],
        look_time=row["look_time"],
        dirty_since=row["dirty_since"],
        other_unsaved_time=row["other_unsaved_time"],
        saved_time=row["saved_time"],
        saved_sequence=row["saved_sequence"],
        saved_root_time=row["saved_root_time"],
        missed=row["missed"],
    )


def change_values(sandbox: SandboxId, kept: KeptChange) -> dict[str, Any]:  # Any: columns of any type
    """A change by columns."""
    change, package = kept.change, kept.change.package
    return {
        "sandbox": sandbox,
        "number": kept.number,
        "incarnation": kept.incarnation,
        "sequence": change.sequence,
        "kind": change.kind.value,
        "manager": package.key.manager.value,
        "name": package.key.name,
        "directory": package.key.directory,
        "version": package.version,
        "old_version": change.old_version,
        "place": package.place.value,
        "requested": package.requested,
        "change_time": change.time,
        "kept_time": kept.kept_time,
        "process": change.process or "",
        "requester": kept.asked.requester.value,
        "session": kept.asked.session,
        "saved": kept.saved,
    }


def read_change(row: Row) -> KeptChange:
    """A change from its columns."""
    key = PackageKey(manager=PackageManager(row["manager"]), name=row["name"], directory=row["directory"])
    package = Package(key=key, version=row["version"], place=PackagePlace(row["place"]), requested=row["requested"])
    return KeptChange(
        number=row["number"],
        incarnation=IncarnationId(row["incarnation"]),
        change=PackageChange(
            sequence=row["sequence"],
            kind=PackageChangeKind(row["kind"]),
            package=package,
            old_version=row["old_version"],
            time=row["change_time"],
            process=ProcessId(row["process"]) if row["process"] else None,
        ),
        kept_time=row["kept_time"],
        asked=Asked(
            requester=Requester(row["requester"]), session=SessionId(row["session"]) if row["session"] else None
        ),
        saved=row["saved"],
    )
