"""Package databases are read whole or not at all, and a change of them is noticed once."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.agent import package_databases as databases
from sandboxd.agent import package_wire
from sandboxd.agent.package_files import IncompleteDatabaseError, read_bounded
from sandboxd.agent.package_go import find_module, parse_build_info
from sandboxd.agent.package_reader import PackageReader, Reading
from sandboxd.agent.package_watch import PackageWatch
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.packages import (
    GEM_HOME,
    NPM_PREFIX,
    InstalledPackages,
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackageNews,
    PackagePlace,
    difference,
    search_path,
)
from sandboxd.model.processes import ProcessId

IMAGE = Path(__file__).resolve().parents[2] / "images" / "sandbox"
ROOT, HOME = PackagePlace.ROOT, PackagePlace.HOME
STATUS = """\
Package: dpkg
Status: install ok installed
Architecture: amd64
Version: 1.22.6

Package: tree
Status: install ok installed
Architecture: amd64
Version: 2.1.1-2
Description: shows directories
 as trees
 Version: 9

Package: libc6
Status: install ok installed
Architecture: i386
Version: 2.41-12

Package: held
Status: hold ok installed
Architecture: all
Version: 1.0

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: half
Status: install ok half-configured
Architecture: amd64
Version: 1.0

"""


def a_package(name: str, version: str = "1", *, place: PackagePlace = ROOT, requested: bool = True) -> Package:
    key = PackageKey(manager=PackageManager.DPKG, name=name, directory="/var/lib/dpkg")
    return Package(key=key, version=version, place=place, requested=requested)


def versions(found: databases.Found) -> dict[str, str]:
    return {key.name: package.version for key, package in found.items()}


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_of_dpkg_counts_what_is_installed_and_configured() -> None:
    assert databases.parse_status(STATUS.encode()) == [
        ("dpkg", "1.22.6"),
        ("tree", "2.1.1-2"),
        ("libc6:i386", "2.41-12"),
        ("held", "1.0"),
    ]


def test_apt_tells_which_package_only_came_along(tmp_path: Path) -> None:
    write(tmp_path / "dpkg/status", STATUS)
    write(tmp_path / "apt/extended_states", "Package: tree\nArchitecture: amd64\nAuto-Installed: 1\n\n")

    found = databases.read_dpkg(tmp_path / "dpkg")

    assert {key.name: package.requested for key, package in found.items() if key.name in {"tree", "held"}} == {
        "tree": False,
        "held": True,
    }


@pytest.mark.parametrize("cut", [1, 30, 60, len(STATUS) - 40])
def test_a_status_file_that_is_cut_counts_for_nothing(cut: int) -> None:
    with pytest.raises(IncompleteDatabaseError):
        databases.parse_status(STATUS.encode()[:cut])


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader_of_dpkg(data: bytes) -> None:
    with contextlib.suppress(IncompleteDatabaseError):
        assert all(name and version for name, version in databases.parse_status(data))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_go(data: bytes) -> None:
    name, version = parse_build_info(b"\xff Go buildinf:" + b"\x08\x02" + bytes(16) + data)

    assert bool(name) or not version


def test_of_python_counts_what_is_finished(tmp_path: Path) -> None:
    write(
        tmp_path / "Foo_Bar-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.2\n\nName: no\n"
    )
    write(tmp_path / "Foo_Bar-1.2.dist-info/RECORD", "")
    write(tmp_path / "half-1.dist-info/METADATA", "Name: half\nVersion: 1\n")
    write(tmp_path / "~old-1.dist-info/METADATA", "Name: old\nVersion: 1\n")
    write(tmp_path / "~old-1.dist-info/RECORD", "")
    write(tmp_path / "egg-3.egg-info/PKG-INFO", "Name: egg\nVersion: 3\n")
    write(tmp_path / "flat-4.egg-info", "Name: flat\nVersion: 4\n")

    assert versions(databases.read_python(tmp_path, HOME)) == {"foo-bar": "1.2", "egg": "3", "flat": "4"}


def test_of_npm_count_scopes_and_not_what_it_moves(tmp_path: Path) -> None:
    write(tmp_path / "left-pad/package.json", '{"name": "other", "version": "1.3.0"}')
    write(tmp_path / "@scope/tool/package.json", '{"version": "2.0.0"}')
    write(tmp_path / ".left-pad-Xa1/package.json", '{"version": "0"}')
    write(tmp_path / "odd/package.json", '{"version": {"not": "a text"}}')

    assert versions(databases.read_npm(tmp_path, HOME)) == {"left-pad": "1.3.0", "@scope/tool": "2.0.0"}


def test_half_a_file_of_npm_is_none(tmp_path: Path) -> None:
    write(tmp_path / "left-pad/package.json", '{"version": "1.')

    with pytest.raises(IncompleteDatabaseError):
        databases.read_npm(tmp_path, HOME)


def test_of_cargo_and_gems_counts_what_they_note(tmp_path: Path) -> None:
    installs = {"ripgrep 14.1.0 (registry+https://example.test/index)": {"bins": ["rg"]}}
    write(tmp_path / ".crates2.json", json.dumps({"installs": installs}))
    for name in ("rails-html-sanitizer-1.6.0", "nokogiri-1.16.2-x86_64-linux", "two-1.9.0", "two-1.10.0", "nonsense"):
        write(tmp_path / "specifications" / f"{name}.gemspec", "")

    assert versions(databases.read_cargo(tmp_path, HOME)) == {"ripgrep": "14.1.0"}
    assert versions(databases.read_gems(tmp_path, HOME)) == {
        "rails-html-sanitizer": "1.6.0",
        "nokogiri": "1.16.2",
        "two": "1.10.0",
    }


def test_of_go_counts_what_the_linker_wrote(tmp_path: Path) -> None:
    modules = b"m" * 16 + b"path\texample.test/cmd/tool\nmod\texample.test\tv1.4.0\th1:x\n" + b"m" * 16
    info = b"\xff Go buildinf:\x08\x02" + bytes(16) + b"\x06go1.22" + bytes([len(modules)]) + modules
    # A program that looks for the mark holds it too, at no multiple of 16.
    program = write(tmp_path / "tool", b"\x7fELF" + bytes(100) + b"\xff Go buildinf:" + bytes(1 << 20))
    program.write_bytes(program.read_bytes().ljust(2 << 20, b"\0") + info)
    write(tmp_path / "script", "#!/bin/sh\n")

    assert find_module(program) == ("example.test/cmd/tool", "v1.4.0")
    assert versions(databases.read_go(tmp_path, HOME)) == {"example.test/cmd/tool": "v1.4.0"}


def test_a_pipe_or_a_giant_in_place_of_a_database_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "giant").write_bytes(b"")
    os.truncate(tmp_path / "giant", 1 << 40)

    for name in ("pipe", "giant"):
        with pytest.raises(IncompleteDatabaseError):
            read_bounded(tmp_path / name, 1 << 20)


def test_a_database_that_cannot_be_read_keeps_what_it_said(tmp_path: Path) -> None:
    status = write(tmp_path / "var/lib/dpkg/status", STATUS)
    reader = PackageReader(root=tmp_path, home=tmp_path / "home")
    before = reader.read()

    status.write_text(STATUS[:-50])
    damaged = reader.read()
    status.write_text(STATUS.replace("Package: tree", "Package: bush"))
    after = reader.read()

    assert (damaged.packages, damaged.complete) == (before.packages, False)
    assert after.complete
    assert "bush" in versions(after.packages)


def test_the_machines_own_root_is_not_looked_at(tmp_path: Path) -> None:
    reading = PackageReader(root=None, home=tmp_path).read()

    assert (reading.packages, reading.complete, reading.root_change_ns) == ({}, True, 0)


def test_a_difference_has_the_old_version_too() -> None:
    before = {one.key: one for one in (a_package("a"), a_package("b", "1"), a_package("c"))}
    after = {one.key: one for one in (a_package("b", "2"), a_package("c"), a_package("d"))}

    assert [(kind, one.key.name, old) for kind, one, old in difference(before, after)] == [
        (PackageChangeKind.REMOVED, "a", ""),
        (PackageChangeKind.INSTALLED, "d", ""),
        (PackageChangeKind.CHANGED, "b", "1"),
    ]


class Readings:
    """What the databases say, as a test wants it."""

    def __init__(self, *now: Package) -> None:
        self.now = now
        self.root_change_ns = 0
        self.waiting: Iterator[tuple[Package, ...]] = iter(())

    def __call__(self) -> Reading:
        self.now = next(self.waiting, self.now)
        return Reading(packages={one.key: one for one in self.now}, complete=True, root_change_ns=self.root_change_ns)


def a_watch(readings: Readings) -> PackageWatch:
    return PackageWatch(
        read=readings,
        requester=lambda _: ProcessId("prc-cli"),
        every=timedelta(milliseconds=1),
        settle=timedelta(0),
    )


async def test_what_was_there_at_the_start_is_no_change() -> None:
    watch = a_watch(Readings(a_package("a")))
    await watch.begin()

    state = await watch.look()

    assert (state.sequence, [one.key.name for one in state.packages], state.root_change_time) == (0, ["a"], None)


async def test_what_came_later_or_changed_is_not_initial() -> None:
    readings = Readings(a_package("a"), a_package("b", "1"))
    watch = a_watch(readings)
    await watch.begin()
    readings.now = (a_package("a"), a_package("b", "2"), a_package("c"))

    state = await watch.look()

    assert [(one.key.name, one.initial) for one in state.packages] == [("a", True), ("b", False), ("c", False)]


async def test_an_upgrade_through_absence_is_one_change() -> None:
    readings = Readings(a_package("a", "1"))
    watch = a_watch(readings)
    await watch.begin()
    readings.waiting = iter([(), (a_package("a", "2"),), (a_package("a", "2"),)])

    async with contextlib.aclosing(watch.watch(0)) as news:
        change, state = await anext(news), await anext(news)

    assert isinstance(change, PackageChange)
    assert (change.sequence, change.kind, change.old_version, change.package.version, change.process) == (
        1,
        PackageChangeKind.CHANGED,
        "1",
        "2",
        "prc-cli",
    )
    assert isinstance(state, InstalledPackages)
    assert state.sequence == 1


async def test_a_watcher_that_comes_back_gets_what_it_has_not() -> None:
    readings = Readings()
    watch = a_watch(readings)
    await watch.begin()
    for count in range(1, 4):
        readings.now = tuple(a_package(f"p{number}") for number in range(count))
        await watch.look()

    async with contextlib.aclosing(watch.watch(2)) as news:
        first, second = await anext(news), await anext(news)
        readings.now = ()
        later = [await anext(news) for _ in range(3)]
    async with contextlib.aclosing(watch.watch(99)) as strange:  # a number of another incarnation
        again = await anext(strange)

    assert [_sequence(one) for one in (first, second, *later, again)] == [3, 3, 4, 5, 6, 1]
    assert isinstance(second, InstalledPackages)


async def test_a_change_outside_packages_is_told_as_a_change_of_the_root() -> None:
    readings = Readings(a_package("a"))
    watch = a_watch(readings)
    await watch.begin()

    async with contextlib.aclosing(watch.watch(0)) as news:
        before = await anext(news)
        readings.root_change_ns = 1 << 62
        async with asyncio.timeout(10):
            after = await anext(news)

    assert isinstance(before, InstalledPackages)
    assert isinstance(after, InstalledPackages)
    assert (before.root_change_time is None, after.root_change_time is None) == (True, False)


def test_pages_of_the_wire_make_one_moment() -> None:
    installed = InstalledPackages(packages=[a_package(f"p{number:05}") for number in range(2500)], sequence=7)

    pages = [message.snapshot for message in package_wire.news_to(installed)]

    assert [len(page.packages) for page in pages] == [1000, 1000, 500]
    assert [page.more for page in pages] == [True, True, False]
    assert package_wire.snapshot_from(pages) == installed


def test_what_an_agent_says_beyond_our_words_is_passed_over() -> None:
    odd = [
        pb.Package(manager=99, name="a", version="1", place=pb.PACKAGE_PLACE_ROOT),  # type: ignore[arg-type]  # newer
        pb.Package(manager=pb.PACKAGE_MANAGER_PIP, name="a\x1b[2J", version="1", place=pb.PACKAGE_PLACE_ROOT),
        pb.Package(manager=pb.PACKAGE_MANAGER_PIP, name="a" * 257, version="1", place=pb.PACKAGE_PLACE_ROOT),
    ]

    assert package_wire.snapshot_from([pb.PackageSnapshot(packages=odd)]).packages == []


def test_a_change_at_no_moment_or_by_an_odd_process_is_no_reason_to_fail() -> None:
    package = pb.Package(manager=pb.PACKAGE_MANAGER_PIP, name="a", version="1", place=pb.PACKAGE_PLACE_ROOT)
    told = pb.PackageChange(sequence=1, kind=pb.PACKAGE_CHANGE_KIND_INSTALLED, package=package, process_id="p" * 257)

    read = package_wire.change_from(told)
    told.time.seconds = 1 << 62

    assert read is not None
    assert read.process is None
    assert package_wire.change_from(told) is None
    assert package_wire.snapshot_from([pb.PackageSnapshot(root_change_time=told.time)]).root_change_time is None


def _sequence(news: PackageNews) -> int:
    return news.sequence


def test_the_image_finds_programs_where_the_agent_does(tmp_path: Path) -> None:
    dockerfile = (IMAGE / "Dockerfile").read_text()
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    script = f'. "{IMAGE}/profile.sh"; once="$PATH"; . "{IMAGE}/profile.sh"; echo "$once"; echo "$PATH"; env'

    once, twice, *told = subprocess.run(
        ["/bin/sh", "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()

    assert once == twice == search_path(str(tmp_path), "/usr/bin:/bin")
    assert {f"NPM_CONFIG_PREFIX={tmp_path}/{NPM_PREFIX}", f"GEM_HOME={tmp_path}/{GEM_HOME}"} <= set(told)
    assert f"ENV PATH={search_path('/home/gemini', '/usr/local/sbin')}:" in dockerfile


def test_no_database_is_looked_for_where_the_freelancer_may_not_look(tmp_path: Path) -> None:
    closed = tmp_path / "root"
    for directory in ("go/bin", ".cargo", ".local/lib/python3.13/site-packages"):
        (closed / directory).mkdir(parents=True)

    looked = [directory for _, directory, _ in databases.directories(tmp_path, tmp_path / "home")]

    assert [one for one in looked if one.is_relative_to(closed)] == []


async def test_an_agent_starts_although_nothing_can_be_read() -> None:
    def refused() -> Reading:
        raise PermissionError("no")

    watch = PackageWatch(read=refused)

    await watch.begin()

    assert (watch.state.packages, watch.state.complete) == ([], False)
