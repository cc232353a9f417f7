"""What real package managers leave behind is found, and a real agent tells it."""

import asyncio
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.agent.package_client import GrpcPackageSource
from sandboxd.agent.package_reader import PackageReader
from sandboxd.dev.node import find_node
from sandboxd.model.packages import (
    InstalledPackages,
    PackageChange,
    PackageChangeKind,
    PackageManager,
    PackageNews,
    PackagePlace,
)
from sandboxd.model.processes import ProcessId, ProcessSpec
from tests.contract.agent_process import AgentProcess, start_agent

PATIENCE = timedelta(seconds=60)


def a_wheel(directory: Path, version: str) -> Path:
    path = directory / f"left_pad-{version}-py3-none-any.whl"
    info = f"left_pad-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("left_pad.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: left_pad\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pip_install(home: Path, wheel: Path) -> list[str]:
    quiet = ("--no-index", "--no-deps", "--disable-pip-version-check", "--no-warn-script-location", "--force-reinstall")
    return [
        sys.executable,
        "-m",
        "pip",
        "install",
        *quiet,
        "--ignore-installed",
        "--prefix",
        f"{home}/.local",
        f"{wheel}",
    ]


def a_tarball(directory: Path, name: str, version: str) -> Path:
    path = directory / "package.tgz"
    manifest = json.dumps({"name": name, "version": version}).encode()
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(manifest)
        archive.addfile(entry, io.BytesIO(manifest))
    return path


def a_deb(directory: Path, version: str) -> Path:
    tree = directory / f"hello-{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        f"Package: hello-test\nVersion: {version}\nArchitecture: all\nMaintainer: T <t@example.test>\nDescription: t\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", tree, directory], check=True, capture_output=True)
    return directory / f"hello-test_{version}_all.deb"


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


def names(reader: PackageReader) -> dict[tuple[PackageManager, str], tuple[str, PackagePlace]]:
    reading = reader.read()
    assert reading.complete
    return {(key.manager, key.name): (one.version, one.place) for key, one in reading.packages.items()}


def test_pip_and_npm_install_to_the_home_volume(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    reader = PackageReader(root=None, home=home)
    node = find_node()
    environment = {**os.environ, "HOME": str(home), "PATH": f"{node.binary.parent}:{os.environ['PATH']}"}
    tarball = a_tarball(tmp_path, "@scope/tool", "2.0.1")
    prefix = str(home / ".npm-global")
    npm = (*node.npm, "install", "--global", "--offline", "--no-audit", "--no-fund", "--prefix", prefix, str(tarball))

    before = names(reader)
    run(*pip_install(home, a_wheel(tmp_path, "1.3.0")))
    subprocess.run(npm, check=True, capture_output=True, env=environment, timeout=60)
    after = names(reader)
    shutil.rmtree(home / ".local")
    removed = names(reader)

    tool = {(PackageManager.NPM, "@scope/tool"): ("2.0.1", PackagePlace.HOME)}
    assert before == {}
    assert after == {(PackageManager.PIP, "left-pad"): ("1.3.0", PackagePlace.HOME), **tool}
    assert removed == tool


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="there is no dpkg here")
def test_dpkg_installs_upgrades_and_removes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for directory in ("info", "updates"):
        (root / "var/lib/dpkg" / directory).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    reader = PackageReader(root=root, home=tmp_path / "home")
    chrootless = ("--force-not-root", "--force-script-chrootless", f"--log={tmp_path / 'log'}")
    dpkg = ("dpkg", f"--root={root}", *chrootless)
    seen = []

    for version in ("1.0-1", "1.1-1"):
        run(*dpkg, "--install", a_deb(tmp_path, version))
        seen.append(names(reader))
    run(*dpkg, "--remove", "hello-test")
    seen.append(names(reader))

    key = (PackageManager.DPKG, "hello-test")
    assert seen == [{key: ("1.0-1", PackagePlace.ROOT)}, {key: ("1.1-1", PackagePlace.ROOT)}, {}]


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    running = await start_agent(tmp_path / "agent")
    yield running
    await running.end()


async def test_an_agent_tells_who_installed_what(process: AgentProcess, tmp_path: Path) -> None:
    agent = await process.connector.connect(process.endpoint)
    source = GrpcPackageSource(process.connector)
    argv = pip_install(process.home, a_wheel(tmp_path, "1.3.0"))
    told: list[PackageNews] = []

    async with asyncio.timeout(60), contextlib.aclosing(source.watch(process.endpoint, after=0)) as news:
        told.append(await anext(news))
        await agent.start_process(ProcessId("prc-quiet"), ProcessSpec(argv=["sleep", "1000"]))
        await agent.start_process(ProcessId("prc-pip"), ProcessSpec(argv=argv))
        await agent.wait_process(ProcessId("prc-pip"), timeout=PATIENCE)
        told.append(await anext(news))
    installed = await source.list(process.endpoint, timeout=PATIENCE)
    async with asyncio.timeout(60), contextlib.aclosing(source.watch(process.endpoint, after=0)) as again:
        told.append(await anext(again))
    await agent.close()

    before, change, repeated = told
    assert before == InstalledPackages(packages=[], sequence=0)
    assert isinstance(change, PackageChange)
    assert (change.sequence, change.kind, change.process) == (1, PackageChangeKind.INSTALLED, "prc-pip")
    assert repeated == change
    assert installed == InstalledPackages(packages=[change.package], sequence=1)
