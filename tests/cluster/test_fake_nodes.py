"""The bench on fake nodes, small: what it drives is real, and nothing of it outlives it, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from devcluster.processes import running
from tests.eventually import eventually
from tests.fake_nodes.enclosure import HOME_VARIABLE, PREFIX, sweep
from tests.kube import Cluster

pytestmark = pytest.mark.timeout(180)

MEMBERS = 50
ROOT = Path(__file__).resolve().parents[2]


async def a_bench(*arguments: str, place: Path) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "tests.bench.fake_nodes", "--rest", "2", *arguments]
    with (place / "bench.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *command, env={**os.environ, "TMPDIR": str(place)}, stdout=log, stderr=log, cwd=ROOT
        )


def living(place: Path) -> list[tuple[str, ...]]:
    """Commands of the processes that belong to runs of this place."""
    word, found = f"{HOME_VARIABLE}={place}/".encode(), []
    for one in running():
        with suppress(OSError):  # it has ended
            if word in Path(f"/proc/{one.pid}/environ").read_bytes():
                found.append(one.command)
    return found


@pytest.fixture
def place(cluster: Cluster) -> Iterator[Path]:
    """Where runs have their homes. Of the development cluster only programs and keys are used."""
    if cluster.places is None:
        pytest.skip("kwok is built with the development cluster")
    folder = Path(tempfile.mkdtemp(prefix="fake-nodes-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    yield folder
    shutil.rmtree(folder)


async def test_members_on_fake_nodes_come_up_through_the_operator_rest_and_are_claimed_warm(place: Path) -> None:
    output = place / "figures.json"

    bench = await a_bench("--members", str(MEMBERS), "--rate", "20", "--output", str(output), place=place)
    code = await bench.wait()

    assert not living(place)
    assert not list(place.glob(f"{PREFIX}*"))
    assert code == 0, (place / "bench.log").read_text()[-4000:]
    report: dict[str, Any] = json.loads(output.read_text())
    claims = report["claims"]
    assert [one["warm"] for one in claims] == [one["number"] for one in claims] == [25, 24]
    filling = next(phase for phase in report["phases"] if phase["name"] == "filling")
    for part in ("serve", "operator", "API server", "etcd", "kwok", "agents, simulated"):
        assert filling["uses"][part]["cores"] > 0, part
    assert any(asked.startswith("operator ") for asked in report["asked"]), "the Lease is renewed"


async def test_a_killed_run_leaves_no_process_and_its_files_go_with_the_next_one(place: Path) -> None:
    bench = await a_bench("--members", "2", place=place)
    await eventually(lambda: any("kube-apiserver" in command for command in living(place)), within=60, every=0.1)

    bench.kill()
    await bench.wait()

    await eventually(lambda: not living(place), within=20, every=0.1)
    assert list(place.glob(f"{PREFIX}*"))
    sweep(place)
    assert not list(place.glob(f"{PREFIX}*"))
