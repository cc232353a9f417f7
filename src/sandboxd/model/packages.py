"""What is installed in a sandbox, and what has changed of it. Pure.

Everything here was read in the sandbox, which is not trusted: names and versions are what files there say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from sandboxd.model.processes import ProcessId

MAX_NAME_CHARACTERS: Final = 256
"""Longer names and versions are not taken: no package manager has them."""
MAX_PACKAGES: Final = 20_000
"""Most packages of one sandbox that are told; a full desktop has 3,000."""
HOME_PROGRAMS: Final = (".local/bin", ".npm-global/bin", ".cargo/bin", "go/bin", ".gem/bin")
"""Where below home the managers put programs of packages that were installed without sudo; found first, in this order.
The sandbox image says the same in its own files."""
NPM_PREFIX: Final = ".npm-global"
"""Below home: npm's directory for global packages; its own would be on the root file system."""
GEM_HOME: Final = ".gem"
"""Below home: Ruby's directory for gems, likewise."""


class PackageManager(StrEnum):
    """Who installed it, and whose database says so; `PROGRAM` for what none of them knows."""

    DPKG = "dpkg"
    """Debian packages, whatever front end asked for them: apt, apt-get, dpkg."""
    PIP = "pip"
    """Python distributions outside virtual environments."""
    NPM = "npm"
    """Global packages of npm and of what shares its directories."""
    CARGO = "cargo"
    """Programs of `cargo install`."""
    GEM = "gem"
    """Ruby gems."""
    GO = "go"
    """Programs of `go install`."""
    PROGRAM = "program"
    """None: a program that was put by hand, by `make install` or `curl | sh`, where programs are found. Its version is
    a fingerprint of its content."""


class PackagePlace(StrEnum):
    """Where it lies, which decides whether a commit is needed to keep it."""

    ROOT = "root"
    """Root file system: gone with the pod unless it is committed to an image."""
    HOME = "home"
    """Home volume: stays by itself."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PackageKey:
    """What makes two packages the same one, of whatever version."""

    manager: PackageManager
    name: str
    """As its manager writes it; Python's normalised, a foreign architecture's as `name:arch`."""
    directory: str
    """Where its manager keeps it, absolute: one name may be installed in several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One installed package."""

    key: PackageKey
    version: str
    place: PackagePlace
    requested: bool = True
    """False when it came only because another one needs it, where the manager tells."""
    initial: bool = False
    """True when it was there, in this version, when the sandbox's present life began."""

    @property
    def unsaved(self) -> bool:
        """True when it would be gone with the sandbox's compute."""
        return self.place is PackagePlace.ROOT and not self.initial


class PackageChangeKind(StrEnum):
    """What happened to a package."""

    INSTALLED = "installed"
    REMOVED = "removed"
    CHANGED = "changed"
    """Another version: an upgrade or a downgrade."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageChange:
    """One package, before and after."""

    sequence: int
    """1 for the first change that an agent notices, then one more each time."""
    kind: PackageChangeKind
    package: Package
    """As it is now; of a removed one as it was."""
    old_version: str = ""
    """Of a CHANGED one."""
    time: datetime
    """When it was noticed, by the sandbox's clock: a few seconds after it was done."""
    process: ProcessId | None = None
    """The started process that did it, where only one can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPackages:
    """All packages at one moment."""

    packages: Sequence[Package]
    sequence: int
    """Of the last change that is in them; 0 when nothing has changed since the agent started."""
    complete: bool = True
    """False when a database could not be read, or there were too many packages."""
    root_change_time: datetime | None = None
    """Latest change seen in the root file system since the agent started, packages or not; None when none was."""


PackageNews = InstalledPackages | PackageChange
"""What a watcher is told."""


def difference(
    before: Mapping[PackageKey, Package], after: Mapping[PackageKey, Package]
) -> list[tuple[PackageChangeKind, Package, str]]:
    """Compare two complete states: kind, package and old version of each change, removals first, then by key."""
    removed = [(PackageChangeKind.REMOVED, before[key], "") for key in sorted(before.keys() - after.keys())]
    installed = [(PackageChangeKind.INSTALLED, after[key], "") for key in sorted(after.keys() - before.keys())]
    changed = [
        (PackageChangeKind.CHANGED, after[key], before[key].version)
        for key in sorted(before.keys() & after.keys())
        if before[key].version != after[key].version
    ]
    return removed + installed + changed


def search_path(home: str, system: str) -> str:
    """Make a `PATH` in which what was installed below home is found before what the system has."""
    return ":".join([*(f"{home}/{directory}" for directory in HOME_PROGRAMS), system])


def is_word(text: str) -> bool:
    """Tell whether a text can be a name or a version: printable, without spaces, not too long."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and text.isprintable() and not any(map(str.isspace, text))
