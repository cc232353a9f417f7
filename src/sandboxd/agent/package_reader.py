"""All package databases of a sandbox, read again only where something was written. Blocks; run it in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.agent.package_databases import READERS, Found, directories
from sandboxd.agent.package_files import IncompleteDatabaseError, Stamp, entries, stamp
from sandboxd.agent.package_programs import program_stamps, python_sites
from sandboxd.model.packages import MAX_PACKAGES, PackageManager

ROOT_MARKS: Final = (
    "etc",
    "opt",
    "usr/bin",
    "usr/lib",
    "usr/local",
    "usr/local/bin",
    "usr/local/include",
    "usr/local/lib",
    "usr/local/sbin",
    "usr/local/share",
    "usr/share",
    "var/lib",
    "var/lib/dpkg",
)
"""Directories whose change times tell of what was put into the root file system without a package manager."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the databases said at one moment."""

    packages: Found
    complete: bool
    """False when one could not be read: of that one, what it said last."""
    root_change_ns: int
    """Newest change time of the marks, in nanoseconds since the epoch; 0 without a root file system of its own."""


@dataclass(slots=True)
class _Known:
    stamps: tuple[Stamp, ...] = ()
    found: Found = field(default_factory=dict)


class PackageReader:
    """Reads, and remembers what it has read."""

    def __init__(self, *, root: Path | None, home: Path) -> None:
        """Take the places.

        Args:
            root: The root file system; None where it is not the sandbox's own.
            home: The home directory.
        """
        self._root = root
        self._home = home
        self._known: dict[tuple[PackageManager, Path], _Known] = {}

    def read(self) -> Reading:
        """Look at every database, and read those that have changed."""
        complete, packages = True, Found()
        present: dict[tuple[PackageManager, Path], _Known] = {}
        for manager, directory, place in directories(self._root, self._home):
            known = self._known.get((manager, directory)) or _Known()
            present[manager, directory] = known
            try:
                # The stamps from before the reading: what is written meanwhile is read again.
                stamps = tuple(_stamps(manager, directory))
                if manager is PackageManager.PROGRAM:
                    stamps += tuple(_of_distributions(directory, present))
                if stamps != known.stamps:
                    known.found = READERS[manager](directory, place)
                    known.stamps = stamps
            except (IncompleteDatabaseError, OSError):
                known.stamps = ()
                complete = False
            packages.update(known.found)
        self._known = present
        if len(packages) > MAX_PACKAGES:
            packages, complete = dict(sorted(packages.items())[:MAX_PACKAGES]), False
        return Reading(packages=packages, complete=complete, root_change_ns=self._root_change())

    def _root_change(self) -> int:
        newest = 0
        if self._root is None:
            return newest
        for mark in ROOT_MARKS:
            try:
                newest = max(newest, (self._root / mark).stat().st_ctime_ns)
            except OSError:
                continue
        return newest


def _of_distributions(programs: Path, present: Mapping[tuple[PackageManager, Path], _Known]) -> Iterator[Stamp]:
    """The stamps of those whose scripts go to a directory of programs; those of pip's own were just taken."""
    for site in python_sites(programs):
        known = present.get((PackageManager.PIP, site))
        yield from _stamps(PackageManager.PIP, site) if known is None else known.stamps


def _stamps(manager: PackageManager, directory: Path) -> Iterator[Stamp]:
    """Everything that is written when something is installed, removed or finished in a database."""
    match manager:
        case PackageManager.DPKG:
            yield stamp(directory / "status")
            yield stamp(directory.parent / "apt" / "extended_states")
        case PackageManager.CARGO:
            yield stamp(directory / ".crates2.json")
        case PackageManager.GEM:
            yield stamp(directory / "specifications")
        case PackageManager.PROGRAM:
            yield from program_stamps(directory)
        case PackageManager.PIP | PackageManager.GO:
            yield stamp(directory)
            endings = (".dist-info", ".egg-info") if manager is PackageManager.PIP else ("",)
            yield from (stamp(Path(one.path)) for one in entries(directory) if one.name.endswith(endings))
        case PackageManager.NPM:
            yield stamp(directory)
            for one in entries(directory):
                if one.name.startswith("@"):
                    yield stamp(Path(one.path))
                    yield from (stamp(Path(inner.path) / "package.json") for inner in entries(Path(one.path)))
                else:
                    yield stamp(Path(one.path) / "package.json")
