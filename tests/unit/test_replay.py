"""What can be made again on another base: which packages, how they are asked for, and which files are lost."""

from __future__ import annotations

import pytest

from sandboxd.model.packages import Package, PackageKey, PackageManager, PackagePlace
from sandboxd.model.replay import (
    ORDER,
    BasePackages,
    ReplayAction,
    install_command,
    is_by_hand,
    is_missed,
    packages_in,
    plan_packages,
)

M = PackageManager
DIRECTORIES = {
    M.DPKG: "/var/lib/dpkg",
    M.PIP: "/usr/local/lib/python3.13/dist-packages",
    M.NPM: "/usr/local/lib/node_modules",
    M.CARGO: "/usr/local/cargo",
    M.GEM: "/var/lib/gems/3.3.0",
    M.GO: "/usr/local/bin",
    M.PROGRAM: "/usr/local/bin",
}
NOTHING = BasePackages(names=frozenset())


def a_package(manager: M, name: str, version: str = "1.0", **more: object) -> Package:
    key = PackageKey(manager=manager, name=name, directory=str(more.pop("directory", DIRECTORIES[manager])))
    return Package(key=key, version=version, place=PackagePlace.ROOT, **more)  # type: ignore[arg-type]  # of a test


def actions(*known: Package, old: BasePackages = NOTHING, new: BasePackages = NOTHING) -> dict[str, ReplayAction]:
    return {one.package.key.name: one.action for one in plan_packages(known, old=old, new=new)}


def test_a_base_tells_its_packages_by_its_paths() -> None:
    base = packages_in(
        [
            b"var/lib/dpkg/info/bash.list",
            b"var/lib/dpkg/info/libc6:amd64.list",
            b"var/lib/dpkg/info/bash.md5sums",
            b"usr/local/lib/python3.13/dist-packages/Foo_Bar-1.0.dist-info/RECORD",
            b"usr/local/lib/python3.13/site-packages/old-2.0-py3.13.egg-info",
            b"usr/local/lib/node_modules/@scope/tool/package.json",
            b"opt/node/lib/node_modules/npm/package.json",
            b"opt/node/lib/node_modules/npm/node_modules/inner/package.json",
            b"var/lib/gems/3.3.0/specifications/rake-13.0.6.gemspec",
            b"usr/local/bin/golint",
            b"etc/\xff",
        ]
    )

    assert base.names == {
        (M.DPKG, "bash"),
        (M.DPKG, "libc6"),
        (M.DPKG, "libc6:amd64"),
        (M.PIP, "foo-bar"),
        (M.PIP, "old"),
        (M.NPM, "@scope/tool"),
        (M.NPM, "npm"),
        (M.GEM, "rake"),
    }
    assert base.programs == {"golint"}


def test_what_was_asked_for_beyond_the_old_base_is_installed_again() -> None:
    old = packages_in([b"var/lib/dpkg/info/bash.list"])
    new = packages_in([b"var/lib/dpkg/info/jq.list"])

    assert actions(
        a_package(M.DPKG, "bash"),
        a_package(M.DPKG, "ripgrep"),
        a_package(M.DPKG, "libpcre2-8-0", requested=False),
        a_package(M.DPKG, "jq"),
        old=old,
        new=new,
    ) == {"jq": ReplayAction.IN_BASE, "ripgrep": ReplayAction.INSTALL}


def test_what_lies_on_the_home_volume_stays_by_itself() -> None:
    key = PackageKey(manager=M.PIP, name="six", directory="/home/gemini/.local/lib/python3.13/site-packages")

    assert plan_packages([Package(key=key, version="1", place=PackagePlace.HOME)], old=NOTHING, new=NOTHING) == []


def test_a_program_that_no_manager_knows_is_a_file_and_told_as_one() -> None:
    assert actions(a_package(M.PROGRAM, "helm")) == {}
    assert is_by_hand(b"usr/local/bin/helm", in_old_base=False)


def test_packages_are_installed_in_an_order_that_brings_what_others_run_on() -> None:
    planned = plan_packages([a_package(one, "a.b/c/d", "v1") for one in reversed(ORDER)], old=NOTHING, new=NOTHING)

    assert [one.package.key.manager for one in planned] == list(ORDER)


@pytest.mark.parametrize(
    ("program", "package"),
    [("staticcheck", "honnef.co/go/tools/cmd/staticcheck"), ("yq", "github.com/mikefarah/yq/v4")],
)
def test_a_program_of_go_is_known_by_its_name(program: str, package: str) -> None:
    one = a_package(M.GO, package, "v1.2.3")

    assert packages_in([f"usr/local/bin/{program}".encode()]).has(one)
    assert not packages_in([b"usr/local/bin/other"]).has(one)


@pytest.mark.parametrize(
    "package",
    [
        a_package(M.DPKG, "--allow-unauthenticated"),
        a_package(M.DPKG, "a=1"),
        a_package(M.DPKG, "a/sid"),
        a_package(M.DPKG, "a", "1=2"),
        a_package(M.DPKG, "a", "$(id)"),
        a_package(M.PIP, "https://x.test/a"),
        a_package(M.PIP, "-r"),
        a_package(M.PIP, "a", "1;python_version<'4'"),
        a_package(M.NPM, "file:/etc"),
        a_package(M.NPM, "a", "file:../x"),
        a_package(M.NPM, "a/../../b"),
        a_package(M.NPM, "a", directory="/usr/local/lib/$x/node_modules"),
        a_package(M.GEM, "-y"),
        a_package(M.CARGO, "--git"),
        a_package(M.GO, "./..."),
        a_package(M.GO, "a.b/c", "master"),
        a_package(M.GO, "a.b/c", "(devel)"),
    ],
    ids=lambda one: f"{one.key.manager} {one.key.name} {one.version}",
)
def test_what_could_be_an_option_an_address_or_a_file_to_a_manager_is_never_given_to_it(package: Package) -> None:
    assert actions(package) == {package.key.name: ReplayAction.IMPOSSIBLE}


@pytest.mark.parametrize(
    ("package", "pinned", "newest"),
    [
        (a_package(M.DPKG, "jq", "1.7.1-3+b1"), "jq=1.7.1-3+b1", "jq"),
        (a_package(M.DPKG, "libc6:i386", "1:2.41~rc1"), "libc6:i386=1:2.41~rc1", "libc6:i386"),
        (a_package(M.PIP, "six", "1.17.0"), "six==1.17.0", "six"),
        (a_package(M.NPM, "@a/b", "1.0.0-rc.1"), "@a/b@1.0.0-rc.1", "@a/b"),
        (a_package(M.GEM, "rake", "13.0.6"), "rake:13.0.6", "rake"),
        (a_package(M.CARGO, "ripgrep", "14.1.1"), "ripgrep@14.1.1", "ripgrep"),
        (a_package(M.GO, "a.b/c/d", "v1.2.3"), "a.b/c/d@v1.2.3", "a.b/c/d@latest"),
    ],
    ids=lambda one: one if isinstance(one, str) else one.key.manager.value,
)
def test_a_package_is_asked_for_in_its_version_or_in_the_newest(package: Package, pinned: str, newest: str) -> None:
    assert actions(package) == {package.key.name: ReplayAction.INSTALL}
    assert install_command([package], pinned=True)[-1] == pinned
    assert install_command([package], pinned=False)[-1] == newest


def test_npm_installs_where_the_package_was() -> None:
    command = install_command([a_package(M.NPM, "a", directory="/opt/node/lib/node_modules")], pinned=True)

    assert command[command.index("--prefix") + 1] == "/opt/node"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (b"usr/local/bin/tool", True),
        (b"opt/tool/bin/tool", True),
        (b"root/.bashrc", True),
        (b"usr/bin/rg", False),
        (b"usr/local/lib/python3.13/dist-packages/six.py", False),
        (b"usr/local/lib/node_modules/a/index.js", False),
        (b"etc/nginx/nginx.conf", False),
        (b"var/lib/dpkg/status", False),
        (b"opt/x/__pycache__/a.pyc", False),
    ],
)
def test_what_no_package_brings_is_known_by_its_place(path: bytes, told: bool) -> None:
    assert is_by_hand(path, in_old_base=False) is told


@pytest.mark.parametrize(("path", "told"), [(b"etc/bash.bashrc", True), (b"etc/passwd", False), (b"usr/bin/ls", False)])
def test_a_setting_of_the_base_that_was_changed_is_told_and_what_scripts_change_is_not(path: bytes, told: bool) -> None:
    assert is_by_hand(path, in_old_base=True) is told


@pytest.mark.parametrize(
    ("path", "there", "same", "missed"),
    [
        (b"usr/bin/rg", True, True, False),
        (b"usr/bin/rg", True, False, False),
        (b"usr/bin/mine", False, False, True),
        (b"etc/nginx/nginx.conf", True, False, True),
        (b"etc/ld.so.cache", True, False, False),
        (b"var/lib/apt/extended_states", False, False, False),
    ],
)
def test_what_the_new_image_has_not_is_missed_and_so_is_a_setting_that_is_another(
    path: bytes, there: bool, same: bool, missed: bool
) -> None:
    assert is_missed(path, there=there, same=same) is missed
