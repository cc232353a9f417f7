"""The package databases, one reader for each manager. Pure functions of a directory; they run no program.

Each returns what is installed there, by key, or raises `IncompleteDatabaseError`: half a database is none.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sandboxd.agent.package_files import IncompleteDatabaseError, entries, read_bounded, subdirectories
from sandboxd.agent.package_go import find_module
from sandboxd.agent.package_programs import CRATES, program_directories, programs_in
from sandboxd.model.packages import GEM_HOME, NPM_PREFIX, Package, PackageKey, PackageManager, PackagePlace, is_word

STATUS_BYTES: Final = 64 << 20
"""Largest status file of dpkg; a full desktop's has 4 MiB."""
HEAD_BYTES: Final = 64 << 10
"""Of a Python distribution's metadata: name and version stand before everything long."""
JSON_BYTES: Final = 4 << 20
_GEM: Final = re.compile(r"(?P<name>.+?)-(?P<version>\d+(?:\.[0-9A-Za-z]+)*)(?:-\D.*)?\.gemspec")
"""A platform behind the version never begins with a digit; a name may end with one."""
_NORMAL: Final = re.compile(r"[-_.]+")

Found = dict[PackageKey, Package]


def read_dpkg(admin: Path, place: PackagePlace = PackagePlace.ROOT) -> Found:
    """Read dpkg's database (`/var/lib/dpkg`), and from beside it which packages apt installed by itself."""
    status = read_bounded(admin / "status", STATUS_BYTES)
    if status is None:
        return {}
    automatic = _automatic(admin.parent / "apt" / "extended_states")
    directory = str(admin)
    found: Found = {}
    for name, version in parse_status(status):
        key = PackageKey(manager=PackageManager.DPKG, name=name, directory=directory)
        plain = name.partition(":")[0]
        found[key] = Package(key=key, version=version, place=place, requested=plain not in automatic)
    return found


def parse_status(data: bytes) -> list[tuple[str, str]]:
    """Read dpkg's status file: names and versions of what is installed and configured, in the file's order.

    A package of another architecture than dpkg's own is `name:arch`, as dpkg itself writes it.

    Raises:
        IncompleteDatabaseError: The file ends in the middle of a paragraph, or one is no paragraph.
    """
    if data and not data.endswith(b"\n"):
        raise IncompleteDatabaseError("the status file of dpkg has no end")
    installed: list[tuple[str, str, str]] = []
    native = ""
    for paragraph in data.decode("utf-8", "replace").split("\n\n"):
        if not paragraph.strip("\n"):
            continue
        fields = _fields(paragraph)
        name, state = fields.get("package", ""), fields.get("status", "")
        if not name or not state:
            raise IncompleteDatabaseError("a paragraph of dpkg's status file has no package or no status")
        version, architecture = fields.get("version", ""), fields.get("architecture", "")
        if name == "dpkg":
            native = architecture
        # "hold ok installed" is installed too: what counts is the last word, and that nothing is half done.
        if state.split()[1:] == ["ok", "installed"] and is_word(name) and is_word(version):
            installed.append((name, version, architecture if is_word(architecture) else ""))
    return [
        (name if not native or architecture in {"all", "", native} else f"{name}:{architecture}", version)
        for name, version, architecture in installed
    ]


def read_python(site: Path, place: PackagePlace) -> Found:
    """Read a directory of Python distributions (`site-packages`, `dist-packages`)."""
    found: Found = {}
    for entry in entries(site):
        if entry.name.startswith(("~", ".")):  # pip puts aside what it may have to bring back
            continue
        metadata = None
        if entry.name.endswith(".dist-info"):
            # RECORD is written last: without it, the installation is not over, or was cut.
            if (Path(entry.path) / "RECORD").is_file():
                metadata = read_bounded(Path(entry.path) / "METADATA", HEAD_BYTES, head=True)
        elif entry.name.endswith(".egg-info"):
            whole = Path(entry.path)
            metadata = read_bounded(whole / "PKG-INFO" if whole.is_dir() else whole, HEAD_BYTES, head=True)
        if metadata is None:
            continue
        fields = _fields(metadata.decode("utf-8", "replace").partition("\n\n")[0])
        name, version = _NORMAL.sub("-", fields.get("name", "")).lower(), fields.get("version", "")
        _add(found, PackageManager.PIP, name, version, site, place)
    return found


def read_npm(modules: Path, place: PackagePlace) -> Found:
    """Read npm's directory of global packages (`lib/node_modules`), scopes included."""
    found: Found = {}
    for entry in entries(modules):
        if entry.name.startswith("."):  # what npm is just moving, and its own notes
            continue
        inner = entries(Path(entry.path)) if entry.name.startswith("@") else [entry]
        scope = f"{entry.name}/" if entry.name.startswith("@") else ""
        for one in inner:
            if one.name.startswith(".") or (data := read_bounded(Path(one.path) / "package.json", JSON_BYTES)) is None:
                continue
            told = _json(data)
            version = told.get("version") if isinstance(told, dict) else None
            # The name of the directory, not of the file in it: an alias is installed under its own.
            _add(found, PackageManager.NPM, scope + one.name, version, modules, place)
    return found


def read_cargo(home: Path, place: PackagePlace) -> Found:
    """Read what `cargo install` notes of its programs (`$CARGO_HOME/.crates2.json`)."""
    found: Found = {}
    for crate in _installs(home):
        name, _, rest = crate.partition(" ")
        _add(found, PackageManager.CARGO, name, rest.partition(" ")[0], home, place)
    return found


def read_gems(gems: Path, place: PackagePlace) -> Found:
    """Read a directory of Ruby gems by the names of its specifications; the newest of several versions counts."""
    found: Found = {}
    for entry in entries(gems / "specifications"):
        if match := _GEM.fullmatch(entry.name):
            name, version = match["name"], match["version"]
            key = PackageKey(manager=PackageManager.GEM, name=name, directory=str(gems))
            if key not in found or _numbers(found[key].version) < _numbers(version):
                _add(found, PackageManager.GEM, name, version, gems, place)
    return found


def read_go(programs: Path, place: PackagePlace) -> Found:
    """Read the programs of `go install` (`$GOPATH/bin`) by what the linker wrote into them; others are passed."""
    found: Found = {}
    for entry in entries(programs):
        if entry.is_file(follow_symlinks=False):
            with contextlib.suppress(IncompleteDatabaseError):  # a program is no database: it may be anything
                name, version = find_module(Path(entry.path))
                _add(found, PackageManager.GO, name, version, programs, place)
    return found


def read_programs(programs: Path, place: PackagePlace) -> Found:
    """Read which programs of a directory no manager put there; what tells cargo's is the list above it."""
    found: Found = {}
    bins = (told.get("bins") for told in _installs(programs.parent).values() if isinstance(told, dict))
    crates = frozenset(str(name) for listed in bins if isinstance(listed, list) for name in listed)
    for name, fingerprint in programs_in(programs, go=is_go_directory(programs), crates=crates).items():
        _add(found, PackageManager.PROGRAM, name, fingerprint, programs, place)
    return found


def is_go_directory(programs: Path) -> bool:
    """Tell whether the programs of Go in a directory are told as Go's."""
    return programs.match("usr/local/bin") or programs.match("go/bin")


def _installs(home: Path) -> dict[str, Any]:  # Any: what a file says is checked by who reads it
    data = read_bounded(home / CRATES, JSON_BYTES)
    told = _json(data) if data is not None else {}
    installs = told.get("installs") if isinstance(told, dict) else None
    return installs if isinstance(installs, dict) else {}


def _automatic(states: Path) -> frozenset[str]:
    """Names of the packages that apt installed because others need them."""
    try:
        data = read_bounded(states, STATUS_BYTES) or b""
    except IncompleteDatabaseError:
        return frozenset()  # only whether somebody asked for them is then not known
    paragraphs = (_fields(one) for one in data.decode("utf-8", "replace").split("\n\n"))
    return frozenset(one["package"] for one in paragraphs if one.get("auto-installed") == "1" and "package" in one)


def _fields(paragraph: str) -> dict[str, str]:
    """Read `Name: value` lines; of several of a name the first counts, lines that go on are passed."""
    found: dict[str, str] = {}
    for line in paragraph.split("\n"):
        name, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t")):
            found.setdefault(name.lower(), value.strip())
    return found


def _json(data: bytes) -> Any:  # Any: what a file says is checked by who reads it
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IncompleteDatabaseError(f"no JSON: {error}") from error


def _numbers(version: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in version[:64].split(".")]


def _add(
    found: Found, manager: PackageManager, name: str, version: object, directory: Path, place: PackagePlace
) -> None:
    if is_word(name) and isinstance(version, str) and is_word(version):
        key = PackageKey(manager=manager, name=name, directory=str(directory))
        found[key] = Package(key=key, version=version, place=place)


def directories(root: Path | None, home: Path) -> Iterator[tuple[PackageManager, Path, PackagePlace]]:
    """Name every database that is there now.

    Virtual environments are not looked for: they belong to a project and lie with it, in the workspace or at home. What
    Debian's own packages of Python hold (`/usr/lib/python3`) is dpkg's. Root's home is closed to the freelancer, with
    whose rights all this is read.

    Args:
        root: The root file system; None where it is not the sandbox's own.
        home: The home directory.
    """
    if root is not None:
        yield PackageManager.DPKG, root / "var/lib/dpkg", PackagePlace.ROOT
        yield from _python(root / "usr/local/lib", PackagePlace.ROOT)
        for prefix in ("usr/local", "opt/node"):
            yield PackageManager.NPM, root / prefix / "lib/node_modules", PackagePlace.ROOT
        yield PackageManager.CARGO, root / "usr/local/cargo", PackagePlace.ROOT
        for gems in ("var/lib/gems", "usr/local/lib/ruby/gems"):
            yield from ((PackageManager.GEM, one, PackagePlace.ROOT) for one in subdirectories(root / gems))
        yield PackageManager.GO, root / "usr/local/bin", PackagePlace.ROOT
    yield from _python(home / ".local/lib", PackagePlace.HOME)
    for prefix in (NPM_PREFIX, ".local"):
        yield PackageManager.NPM, home / prefix / "lib/node_modules", PackagePlace.HOME
    yield PackageManager.CARGO, home / ".cargo", PackagePlace.HOME
    yield PackageManager.GEM, home / GEM_HOME, PackagePlace.HOME
    for gems in (".gem/ruby", ".local/share/gem/ruby"):
        yield from ((PackageManager.GEM, one, PackagePlace.HOME) for one in subdirectories(home / gems))
    yield PackageManager.GO, home / "go/bin", PackagePlace.HOME
    for directory, at_home in program_directories(root, home):
        yield PackageManager.PROGRAM, directory, PackagePlace.HOME if at_home else PackagePlace.ROOT


def _python(library: Path, place: PackagePlace) -> Iterator[tuple[PackageManager, Path, PackagePlace]]:
    for version in subdirectories(library, "python3"):
        for name in ("site-packages", "dist-packages"):
            yield PackageManager.PIP, version / name, place


READERS: Final[Mapping[PackageManager, Callable[[Path, PackagePlace], Found]]] = {
    PackageManager.DPKG: read_dpkg,
    PackageManager.PIP: read_python,
    PackageManager.NPM: read_npm,
    PackageManager.CARGO: read_cargo,
    PackageManager.GEM: read_gems,
    PackageManager.GO: read_go,
    PackageManager.PROGRAM: read_programs,
}
