"""Packages as a person reads them: what is installed, and what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from rich.console import Console
from rich.table import Table

from sandboxd.ctl.figures import count
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.tables import filled, when
from sandboxd.v1 import package_pb2 as pb
from sandboxd.v1 import stream_pb2

MAX_NAMES: Final = 5
"""Changes that one line names; more are counted."""
_VERBS: Final[Mapping[pb.PackageChangeKind.ValueType, str]] = {
    pb.PACKAGE_CHANGE_KIND_INSTALLED: "installed",
    pb.PACKAGE_CHANGE_KIND_REMOVED: "removed",
    pb.PACKAGE_CHANGE_KIND_CHANGED: "changed",
}
_REQUESTERS: Final[Mapping[pb.PackageRequester.ValueType, str]] = {
    pb.PACKAGE_REQUESTER_SESSION: "a session",
    pb.PACKAGE_REQUESTER_TERMINAL: "a terminal",
    pb.PACKAGE_REQUESTER_IMAGE: "the image",
}


def package_table(packages: Iterable[pb.Package], console: Console) -> Table:
    """Make the table of `packages`."""
    columns = ("MANAGER", "PACKAGE", "VERSION", "KEPT", "ASKED FOR")
    rows = [
        (
            _manager(each),
            clean_line(each.name),
            clean_line(each.version),
            _kept(each),
            "yes" if each.requested else "no",
        )
        for each in packages
    ]
    return filled(console, columns, rows, spare=("ASKED FOR",))


def history_table(changes: Iterable[pb.PackageChange], console: Console) -> Table:
    """Make the table of `packages --history`."""
    columns = ("NUMBER", "WHEN", "WHAT", "MANAGER", "PACKAGE", "VERSION", "BY", "KEPT")
    rows = [
        (
            str(each.number),
            when(each.keep_time),
            _VERBS.get(each.kind, str(each.kind)),
            _manager(each.package),
            clean_line(each.package.name),
            _versions(each),
            bare(clean_line(each.session)) or _REQUESTERS.get(each.requester, ""),
            _kept(each.package),
        )
        for each in changes
    ]
    return filled(console, columns, rows, spare=("NUMBER", "MANAGER", "BY", "KEPT"))


def changes_line(news: stream_pb2.PackagesChanged) -> str:
    """Write what a stream tells of changes, in one line."""
    shown = news.changes[-MAX_NAMES:]
    parts = [
        f"{_VERBS.get(each.kind, 'changed')} {clean_line(package.name)} {_versions(each)} ({_manager(package)})"
        for each in shown
        for package in [each.package]
    ]
    if earlier := len(news.changes) - len(shown) + news.earlier:
        parts.insert(0, f"{count(earlier, 'package')} before these")
    unsaved = any(each.package.unsaved for each in news.changes)
    return "packages: " + ", ".join(parts) + ("; not saved yet" if unsaved else "")


def _manager(package: pb.Package) -> str:
    known = pb.PackageManager.values()
    name = pb.PackageManager.Name(package.manager) if package.manager in known else str(package.manager)
    return name.removeprefix("PACKAGE_MANAGER_").lower()


def _versions(change: pb.PackageChange) -> str:
    old, new = clean_line(change.old_version), clean_line(change.package.version)
    return f"{old} → {new}" if old else new


def _kept(package: pb.Package) -> str:
    if package.place == pb.PACKAGE_PLACE_HOME:
        return "home volume"
    return "not saved" if package.unsaved else "image"
