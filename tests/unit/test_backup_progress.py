"""How far a backup in a pod is: the log's end is read now and then, and what it says never goes back nor over 100 %."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import timedelta

import pytest
import structlog

from sandboxd.bootstrap.backup_worker import _log_progress
from sandboxd.kubeapi.errors import KubeUnavailableError
from sandboxd.model.backup import BackupSetProgress, Volume
from sandboxd.model.cluster_backup import (
    PROGRESS_EVENT,
    BackupState,
    BackupWorkStatus,
    progress_as_mapping,
    progress_from_mapping,
)
from sandboxd.monitor.logging import configure_logging
from sandboxd.operator.backing_up import BackupWorld
from sandboxd.operator.backup_progress import LOOK_EVERY, LOOK_LATER, BackupProgressReader, last_progress
from sandboxd.operator.backup_shape import pod_name
from sandboxd.operator.mirrors import WorkKey
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeClock
from tests.operator_world import NAMESPACE
from tests.unit.test_backing_up import NAME, TAKE, VERIFY, a_pod, a_world

KEY = WorkKey(namespace=NAMESPACE, backup=NAME)
RUNNING = BackupWorkStatus(state=BackupState.RUNNING, attempts=1)


def progress(volume: Volume = Volume.HOME, size: int = 0, total: int = 100, files: int = 0) -> BackupSetProgress:
    return BackupSetProgress(volume=volume, files=files, total_files=9, bytes=size, total_bytes=total)


def a_line(said: BackupSetProgress) -> str:
    return json.dumps({"event": PROGRESS_EVENT, "level": "info", **progress_as_mapping(said)}) + "\n"


HOME, WORK = Volume.HOME, Volume.WORKSPACE


@pytest.mark.parametrize(
    ("before", "said", "then"),
    [
        (None, progress(HOME, 5), progress(HOME, 5)),
        (None, progress(HOME, 5, total=3), progress(HOME, 5, total=5)),  # what is counted late
        (progress(HOME, 5), progress(HOME, 7, total=200), progress(HOME, 7, total=200)),
        (progress(HOME, 50), progress(HOME, 7, total=20), progress(HOME, 50)),  # another attempt
        (progress(HOME, 50), progress(WORK, 1, total=4), progress(WORK, 1, total=4)),
        (progress(WORK, 1), progress(HOME, 99), progress(WORK, 1)),
        (progress(HOME, 50, files=9), progress(HOME, 60, files=3), progress(HOME, 60, files=9)),
    ],
)
def test_it_never_goes_back_and_no_part_exceeds_its_whole(
    before: BackupSetProgress | None, said: BackupSetProgress, then: BackupSetProgress
) -> None:
    assert said.after(before) == then


def test_what_the_worker_logs_is_what_is_read() -> None:
    written = io.StringIO()
    said = progress(WORK, 1 << 40, total=1 << 41)
    configure_logging(role="backup-worker", style="json", level="info", stream=written)
    try:
        _log_progress(progress_as_mapping(said))
    finally:
        structlog.reset_defaults()

    assert last_progress(written.getvalue()) == said


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no json",
        '"a word"',
        "[1]",
        "null",
        json.dumps({"event": "another", **progress_as_mapping(progress())}),
        json.dumps({"event": PROGRESS_EVENT}),
        json.dumps({"event": PROGRESS_EVENT, **progress_as_mapping(progress()), "volume": "root"}),
        json.dumps({"event": PROGRESS_EVENT, **progress_as_mapping(progress()), "bytes": -1}),
        json.dumps({"event": PROGRESS_EVENT, **progress_as_mapping(progress()), "bytes": 1 << 63}),
        json.dumps({"event": PROGRESS_EVENT, **progress_as_mapping(progress()), "bytes": None}),
        a_line(progress())[:-5],
    ],
)
def test_a_line_that_says_nothing_of_it_is_passed_over(line: str) -> None:
    assert last_progress(f"{line}\n") is None
    assert last_progress(f"{a_line(progress(size=3))}{line}\n") == progress(size=3)


def test_a_status_with_progress_is_read_as_it_was_written_and_one_without_says_nothing_of_it() -> None:
    status = replace(RUNNING, progress=progress(WORK, 3))

    assert BackupWorkStatus.from_mapping(status.as_mapping()) == status
    assert "progress" not in RUNNING.as_mapping()
    with pytest.raises(ValueError, match="negative"):
        progress_from_mapping(progress_as_mapping(progress(size=-1)))


class World:
    """A reader, and a pod with a log."""

    def __init__(self) -> None:
        self.api, self.clock = FakeKube(), FakeClock()
        self.reader = BackupProgressReader(self.api, clock=self.clock)
        pod = a_pod({"running": {}})
        self.api.objects["pods", NAMESPACE, pod_name(NAME, 1)] = pod
        self.world: BackupWorld = a_world(TAKE, status=RUNNING, pod=pod)
        self.lines = self.api.logs.setdefault(pod_name(NAME, 1), [])

    async def read(self, status: BackupWorkStatus = RUNNING) -> tuple[BackupWorkStatus, float | None]:
        return await self.reader.read(KEY, self.world, status)


async def test_a_pod_is_looked_at_once_in_two_seconds_however_often_it_is_woken() -> None:
    world = World()
    world.lines.append(a_line(progress(HOME, 10)))

    first, again = await world.read()
    world.lines.append(a_line(progress(HOME, 20)))
    world.clock.advance(0.5)
    second, left = await world.read(first)
    world.clock.advance(LOOK_EVERY.total_seconds() - 0.5)
    third, _ = await world.read(second)

    assert (first.progress, again) == (progress(HOME, 10), LOOK_EVERY.total_seconds())
    assert second == first
    assert left == pytest.approx(LOOK_EVERY.total_seconds() - 0.5)
    assert third.progress == progress(HOME, 20)
    assert len(world.api.requests) == 2


async def test_a_log_that_cannot_be_read_changes_nothing_and_is_asked_for_later() -> None:
    world = World()
    before = replace(RUNNING, progress=progress(WORK, 3))
    world.api.away = KubeUnavailableError("the kubelet is away")

    status, again = await world.read(before)

    assert (status, again) == (before, LOOK_LATER.total_seconds())


async def test_what_does_not_run_or_reads_no_volumes_is_not_looked_at() -> None:
    world = World()
    waiting = replace(RUNNING, state=BackupState.WAITING)

    assert await world.read(waiting) == (waiting, None)
    world.world = a_world(VERIFY, status=RUNNING, pod=world.world.pod)
    assert await world.read() == (RUNNING, None)
    assert world.api.requests == []


def test_looks_are_further_apart_than_anything_that_would_be_a_burden() -> None:
    assert timedelta(seconds=2) <= LOOK_EVERY < LOOK_LATER
