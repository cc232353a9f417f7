"""What of a freelancer's image can be made again on another base: packages by their managers, files not at all. Pure.

Names and versions were read in a sandbox, which is not trusted: what is handed to a package manager is checked here,
and never goes through a shell. What a base has comes from its registry and is told by paths alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sandboxd.model.packages import Package, PackageManager, PackagePlace

_M = PackageManager
ORDER: Final = (_M.DPKG, _M.PIP, _M.NPM, _M.GEM, _M.CARGO, _M.GO)
"""The order to install in: Debian's packages bring what the others run on."""
_NAMES: Final[Mapping[PackageManager, re.Pattern[str]]] = {
    _M.DPKG: re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?"),
    _M.PIP: re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?"),
    _M.NPM: re.compile(r"(@[a-z0-9~][a-z0-9._~-]*/)?[A-Za-z0-9][A-Za-z0-9._~-]*"),
    _M.GEM: re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*"),
    _M.CARGO: re.compile(r"[A-Za-z][A-Za-z0-9_-]*"),
    _M.GO: re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*\.[A-Za-z0-9.-]+(/[A-Za-z0-9._~-]+)+"),
}
"""Words that can be no option, address, file or range to their manager."""
_VERSIONS: Final[Mapping[PackageManager, re.Pattern[str]]] = {
    _M.DPKG: re.compile(r"[0-9][A-Za-z0-9.+:~-]*"),
    _M.PIP: re.compile(r"[0-9][A-Za-z0-9.+!_-]*"),
    _M.NPM: re.compile(r"[0-9][A-Za-z0-9.+-]*"),
    _M.GEM: re.compile(r"[0-9][A-Za-z0-9.-]*"),
    _M.CARGO: re.compile(r"[0-9][A-Za-z0-9.+-]*"),
    _M.GO: re.compile(r"v[0-9][A-Za-z0-9.+-]*"),
}
_DPKG: Final = re.compile(r"var/lib/dpkg/info/([a-z0-9][a-z0-9+.-]*)(?::([a-z0-9-]+))?\.list")
_PYTHON: Final = re.compile(
    r"usr/local/lib/python3[^/]*/(?:site|dist)-packages/([^/]+?)-[^/-]+(?:-py[^/]*)?\.(?:dist|egg)-info(?:/.*)?"
)
_NODE: Final = re.compile(r"(?:usr/local|opt/node)/lib/node_modules/((?:@[^/]+/)?[^/]+)/package\.json")
_GEM: Final = re.compile(
    r"(?:var/lib/gems|usr/local/lib/ruby/gems)/[^/]+/specifications/"
    r"([^/]+?)-\d+(?:\.[0-9A-Za-z]+)*(?:-\D[^/]*)?\.gemspec"
)
_PROGRAM: Final = re.compile(r"usr/local/bin/([^/]+)")
_NORMAL: Final = re.compile(r"[-_.]+")
_MAJOR: Final = re.compile(r"v[0-9]+")

_OF_PACKAGES: Final = re.compile(
    r"usr/local/lib/python3[^/]*/(?:site|dist)-packages/.*|(?:usr/local|opt/node)/lib/node_modules/.*"
    r"|usr/local/lib/ruby/.*|usr/local/cargo/.*|opt/node/.*|.*/__pycache__/.*"
)
"""Directories of package managers that lie where else only people put things."""
_BY_HAND: Final = re.compile(r"(?:usr/local|opt|srv|root|home|var/www|workspace)/.*")
"""Where Debian's packages put next to nothing."""
_WRITTEN_BY_TOOLS: Final = re.compile(
    r"etc/(?:passwd|group|shadow|gshadow|subuid|subgid)-?|etc/\.pwd\.lock|etc/ld\.so\.cache|etc/alternatives/.*"
    r"|etc/rc[0-9S]\.d/.*|etc/ssl/certs/.*|etc/.*\.dpkg-(?:old|dist|new|tmp)"
)
"""Below /etc, what the scripts of packages write."""
_PASSING: Final = re.compile(r"var/(?:lib/(?:dpkg|apt|systemd)|cache|log|backups)/.*|.*/__pycache__/.*|run/.*|tmp/.*")
"""What every installation writes anew."""


class ReplayPolicy(StrEnum):
    """What happens where something cannot be made again."""

    FAIL = "fail"
    """Nothing changes: the old image stays, and what it was is named."""
    SKIP = "skip"
    """It is left out and named."""


class ReplayAction(StrEnum):
    """What becomes of a package on the new base."""

    INSTALL = "install"
    IN_BASE = "in_base"
    """The new base has it itself, in its own version."""
    IMPOSSIBLE = "impossible"
    """Its name or version is none that its manager could be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPackage:
    """A package that was asked for beyond the old base, and what becomes of it."""

    package: Package
    action: ReplayAction


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePackages:
    """What a base has, as its paths tell it: names, no versions."""

    names: frozenset[tuple[PackageManager, str]]
    programs: frozenset[str] = frozenset()
    """In `/usr/local/bin`."""

    def has(self, package: Package) -> bool:
        """Tell whether a package is one of the base's own."""
        key = package.key
        if key.manager is PackageManager.GO:
            return _program_of(key.name) in self.programs
        return (key.manager, key.name) in self.names


def packages_in(paths: Iterable[bytes]) -> BasePackages:
    """Tell what a root file system's paths say is installed in it; what cargo has installed cannot be told so."""
    names, programs = set[tuple[PackageManager, str]](), set[str]()
    for raw in paths:
        path = raw.decode("utf-8", "replace")
        if found := _DPKG.fullmatch(path):
            names.add((PackageManager.DPKG, found[1]))
            if found[2]:
                names.add((PackageManager.DPKG, f"{found[1]}:{found[2]}"))
        elif found := _PYTHON.fullmatch(path):
            names.add((PackageManager.PIP, _NORMAL.sub("-", found[1]).lower()))
        elif found := _NODE.fullmatch(path):
            names.add((PackageManager.NPM, found[1]))
        elif found := _GEM.fullmatch(path):
            names.add((PackageManager.GEM, found[1]))
        elif found := _PROGRAM.fullmatch(path):
            programs.add(found[1])
    return BasePackages(names=frozenset(names), programs=frozenset(programs))


def plan_packages(known: Iterable[Package], *, old: BasePackages, new: BasePackages) -> list[PlannedPackage]:
    """Say what becomes of each package that somebody asked for beyond the old base, in the order to install.

    Args:
        known: What is installed in the image.
        old: What its own base has: that is the base's business, in whatever version it is now.
        new: What the new base has.
    """
    planned = [
        PlannedPackage(package=one, action=_action(one, new))
        for one in known
        if one.requested
        and one.place is PackagePlace.ROOT
        and one.key.manager in ORDER  # the others are files, and those are told of by their paths
        and not old.has(one)
    ]
    return sorted(planned, key=lambda one: (ORDER.index(one.package.key.manager), one.package.key))


def is_by_hand(path: bytes, *, in_old_base: bool) -> bool:
    """Tell whether a path of an image is no package's, as far as paths tell.

    That is what lies where people put things and not in a directory of a package manager, and what the base has below
    `/etc` and somebody changed. What a package brought to `/etc` itself counts as the package's.
    """
    text = path.decode("utf-8", "replace")
    if _PASSING.fullmatch(text) or _OF_PACKAGES.fullmatch(text):
        return False
    if text.startswith("etc/"):
        return in_old_base and not _WRITTEN_BY_TOOLS.fullmatch(text)
    return _BY_HAND.fullmatch(text) is not None


def is_missed(path: bytes, *, there: bool, same: bool) -> bool:
    """Tell whether a file of the old image is lost on the new base: it is not there, or was a setting and is another.

    Args:
        path: Which.
        there: Whether the new image has anything at this path.
        same: Whether that is the same.
    """
    text = path.decode("utf-8", "replace")
    if same or _PASSING.fullmatch(text):
        return False
    if not there:
        return True
    return text.startswith("etc/") and not _WRITTEN_BY_TOOLS.fullmatch(text)


def install_command(packages: Sequence[Package], *, pinned: bool) -> list[str]:
    """Build the command that installs packages of one manager, as root.

    Args:
        packages: All of one manager; those that are `IMPOSSIBLE` must not be among them. One of Go's at a time.
        pinned: In these versions; else the newest that can be had.
    """
    manager = packages[0].key.manager
    words = [_word(one, pinned=pinned) for one in packages]
    match manager:
        case PackageManager.DPKG:
            options = ["--yes", "--quiet", "--allow-downgrades", "-o", "Dpkg::Options::=--force-confold"]
            return ["apt-get", "install", *options, "--", *words]
        case PackageManager.PIP:
            return ["python3", "-m", "pip", "install", "--no-input", "--no-cache-dir", "--", *words]
        case PackageManager.NPM:
            prefix = packages[0].key.directory.removesuffix("/lib/node_modules")
            return ["npm", "install", "--global", "--prefix", prefix, "--no-audit", "--no-fund", "--", *words]
        case PackageManager.GEM:
            return ["gem", "install", "--no-document", *words]
        case PackageManager.CARGO:
            return ["cargo", "install", "--root", packages[0].key.directory, *words]
        case PackageManager.GO:
            return ["go", "install", *words]
        case PackageManager.PROGRAM:
            raise ValueError("no manager installs a program that none knows")


def _action(package: Package, new: BasePackages) -> ReplayAction:
    if new.has(package):
        return ReplayAction.IN_BASE
    key = package.key
    possible = _NAMES[key.manager].fullmatch(key.name) and _VERSIONS[key.manager].fullmatch(package.version)
    if key.manager in (PackageManager.NPM, PackageManager.CARGO):
        possible = possible and re.fullmatch(r"(?:/[A-Za-z0-9._-]+)+", key.directory)
    return ReplayAction.INSTALL if possible else ReplayAction.IMPOSSIBLE


def _word(package: Package, *, pinned: bool) -> str:
    name, version = package.key.name, package.version
    match package.key.manager:
        case PackageManager.DPKG:
            return f"{name}={version}" if pinned else name
        case PackageManager.PIP:
            return f"{name}=={version}" if pinned else name
        case PackageManager.NPM | PackageManager.CARGO:
            return f"{name}@{version}" if pinned else name
        case PackageManager.GEM:
            return f"{name}:{version}" if pinned else name
        case PackageManager.GO:
            return f"{name}@{version if pinned else 'latest'}"
        case PackageManager.PROGRAM:
            raise ValueError("no manager has a word for a program that none knows")


def _program_of(package: str) -> str:
    """Name the program that `go install` makes of a package: its last word, but for the number of a major version."""
    words = package.split("/")
    return words[-2] if len(words) > 1 and _MAJOR.fullmatch(words[-1]) else words[-1]
