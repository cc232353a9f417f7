"""Backups by restic in bad weather: killed, cancelled, damaged, full, away, locked, with the wrong password."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.backends.restic.child import ResticSettings
from sandboxd.backends.restic.clients import ResticRepositories
from sandboxd.backends.restic.repository import ResticRepository
from sandboxd.model.backup_errors import (
    BackupDamagedError,
    BackupIncompleteError,
    BackupPasswordLostError,
    BackupPasswordWrongError,
    BackupRepositoryBusyError,
    BackupStorageFullError,
    BackupStorageUnavailableError,
    BackupToolError,
)
from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import ClientId
from sandboxd.volumes.ports import BackupProgress, TreeSnapshot
from tests.backup_trees import BACKUP_PASSWORD, PATIENCE, everything, ignore
from tests.eventually import eventually
from tests.ports import a_free_port
from tests.rootfs_changes import CHANGES, Change, do_change
from tests.small_disk import small_disk

pytestmark = pytest.mark.timeout(400)
MEBIBYTE = 1 << 20


@pytest.fixture
def there(tmp_path: Path, restic: Path) -> ResticSettings:
    """Where the repository of a test is."""
    (tmp_path / "password").write_text(BACKUP_PASSWORD)
    return ResticSettings(
        location=str(tmp_path / "kept"),
        password_file=tmp_path / "password",
        work=tmp_path / "work",
        program=str(restic),
    )


@pytest.fixture
def repository(there: ResticSettings, empty_backups: Path) -> ResticRepository:
    shutil.copytree(empty_backups, there.location)
    there.work.mkdir()
    return ResticRepository(there)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """48 MiB in three files that nothing compresses."""
    made = tmp_path / "home"
    made.mkdir()
    for name in "abc":
        (made / name).write_bytes(os.urandom(16 * MEBIBYTE))
    return made


async def taken(repository: ResticRepository, tree: Path) -> TreeSnapshot:
    return await repository.snapshot(tree, source="s", tags={}, timeout=PATIENCE, progress=ignore)


def children() -> list[psutil.Process]:
    """Processes of restic that this one started."""
    found = []
    for one in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "restic" and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def locks(there: ResticSettings) -> list[Path]:
    return list(Path(there.location, "locks").iterdir())


def stored(there: ResticSettings) -> int:
    """Bytes of whole packs."""
    return sum(
        path.stat().st_size
        for path in Path(there.location, "data").rglob("*")
        if path.is_file() and "-tmp-" not in path.name
    )


async def on_its_way(there: ResticSettings, tree: Path, *, least: int = 12 * MEBIBYTE) -> asyncio.Task[TreeSnapshot]:
    """A slow snapshot of which so much is stored."""
    slow = ResticRepository(replace(there, upload_kibibytes=12 * 1024))
    task = asyncio.create_task(taken(slow, tree))
    await eventually(lambda: stored(there) > least or task.done(), within=60)
    assert not task.done()
    return task


async def test_a_snapshot_that_is_cancelled_leaves_no_process_and_no_lock_and_its_pieces_are_taken_up(
    repository: ResticRepository, there: ResticSettings, tree: Path
) -> None:
    task = await on_its_way(there, tree)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert children() == []
    assert locks(there) == []
    assert await repository.list(timeout=PATIENCE) == []
    assert (await taken(repository, tree)).added_bytes < 40 * MEBIBYTE
    await repository.verify(content=False, timeout=PATIENCE)


async def test_a_killed_snapshot_is_an_error_and_the_next_goes_on_and_its_lock_is_healed(
    repository: ResticRepository, there: ResticSettings, tree: Path
) -> None:
    task = await on_its_way(there, tree)

    (one,) = children()
    one.send_signal(signal.SIGKILL)
    with pytest.raises(BackupToolError):
        await task

    assert len(locks(there)) == 1
    afterwards = ResticRepository(there)  # another life of the service
    assert (await taken(afterwards, tree)).added_bytes < 40 * MEBIBYTE
    assert locks(there) == []
    await afterwards.prune(timeout=PATIENCE)
    await afterwards.verify(content=True, timeout=PATIENCE)


async def test_the_lock_of_a_process_that_lives_is_left_alone(
    repository: ResticRepository, there: ResticSettings, tree: Path
) -> None:
    task = await on_its_way(there, tree)
    (one,) = children()
    one.suspend()  # it lives, and does not come to its end by itself meanwhile
    held = locks(there)

    with pytest.raises(BackupRepositoryBusyError):
        await repository.prune(timeout=PATIENCE)

    assert len(held) == 1
    assert locks(there) == held
    one.resume()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_deadline_ends_a_snapshot_and_leaves_no_process_and_no_lock(
    repository: ResticRepository, there: ResticSettings, tree: Path
) -> None:
    slow = ResticRepository(replace(there, upload_kibibytes=4096))

    with pytest.raises(DeadlineError):
        await slow.snapshot(tree, source="s", tags={}, timeout=timedelta(seconds=6), progress=ignore)

    assert children() == []
    assert locks(there) == []


async def test_an_upload_keeps_to_its_bound_and_tells_how_far_it_is(
    repository: ResticRepository, there: ResticSettings, tree: Path
) -> None:
    slow = ResticRepository(replace(there, upload_kibibytes=12 * 1024))
    told: list[BackupProgress] = []
    began = time.monotonic()

    await slow.snapshot(tree, source="s", tags={}, timeout=PATIENCE, progress=told.append)

    assert time.monotonic() - began > 3.0, "48 MiB at 12 MiB a second, with a second's worth ahead"
    assert [one.bytes for one in told] == sorted(one.bytes for one in told)
    assert told[-1].total_bytes == 48 * MEBIBYTE
    assert 0 < told[-1].bytes <= 48 * MEBIBYTE


async def test_neither_argv_nor_the_environment_holds_the_password(
    repository: ResticRepository, there: ResticSettings, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXD_OF_THE_SERVICE", "a secret of the service")
    task = await on_its_way(there, tree)
    (one,) = children()

    argv, environment = one.cmdline(), one.environ()

    assert "a secret" not in " ".join([*argv, *environment.values()])
    assert not [name for name in environment if name.startswith("SANDBOXD_")]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_wrong_a_missing_and_an_empty_password_are_said_to_be_so(
    repository: ResticRepository, there: ResticSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("wrong", "another secret"), ("empty", "\n")):
        (tmp_path / name).write_text(content)
    for name in ("wrong", "empty", "missing"):
        wrong = ResticRepository(replace(there, password_file=tmp_path / name))
        with pytest.raises(BackupPasswordWrongError):
            await wrong.prepare(timeout=PATIENCE)
    with pytest.raises(BackupPasswordWrongError):
        await ResticRepository(replace(there, password_file=tmp_path / "wrong")).list(timeout=PATIENCE)

    assert "another secret" not in "".join(capfd.readouterr())


async def test_a_damaged_pack_is_found_by_a_check_of_contents_and_by_a_restore(
    repository: ResticRepository, there: ResticSettings, tree: Path, tmp_path: Path
) -> None:
    snapshot = await taken(repository, tree)
    pack = max(Path(there.location, "data").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(MEBIBYTE)
        file.write(b"\0" * 4096)

    with pytest.raises(BackupDamagedError):
        await repository.verify(content=True, timeout=PATIENCE)
    with pytest.raises(BackupDamagedError):
        await repository.read(snapshot.id, timeout=PATIENCE)
    with pytest.raises(BackupDamagedError):
        await repository.restore(snapshot.id, tmp_path / "back", timeout=PATIENCE, progress=ignore)


async def test_a_missing_pack_is_found_by_every_check(
    repository: ResticRepository, there: ResticSettings, tree: Path, tmp_path: Path
) -> None:
    snapshot = await taken(repository, tree)
    for pack in Path(there.location, "data").rglob("*"):
        if pack.is_file() and pack.stat().st_size > MEBIBYTE:
            pack.unlink()

    with pytest.raises(BackupDamagedError):
        await repository.verify(content=False, timeout=PATIENCE)
    with pytest.raises(BackupDamagedError):
        await repository.restore(snapshot.id, tmp_path / "back", timeout=PATIENCE, progress=ignore)


async def test_a_full_storage_is_said_to_be_full_and_works_again_when_it_has_room(
    there: ResticSettings, tree: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", megabytes=80) as disk:
        repository = ResticRepository(replace(there, location=str(disk.path / "kept")))
        await repository.prepare(timeout=PATIENCE)
        disk.fill(leave=20 * MEBIBYTE)

        with pytest.raises(BackupStorageFullError):
            await taken(repository, tree)

        disk.make_room()
        snapshot = await taken(repository, tree)
        await repository.restore(snapshot.id, tmp_path / "back", timeout=PATIENCE, progress=ignore)
        assert everything(tmp_path / "back") == everything(tree)


async def test_a_restore_where_there_is_no_room_says_so(
    repository: ResticRepository, tree: Path, tmp_path: Path
) -> None:
    snapshot = await taken(repository, tree)

    with small_disk(tmp_path / "disk", megabytes=20) as disk, pytest.raises(BackupStorageFullError):
        await repository.restore(snapshot.id, disk.path / "back", timeout=PATIENCE, progress=ignore)


async def test_a_storage_that_is_away_is_said_to_be_away(
    repository: ResticRepository, there: ResticSettings, tree: Path
) -> None:
    Path(there.location).rename(f"{there.location}.away")
    with pytest.raises(BackupStorageUnavailableError):
        await repository.list(timeout=PATIENCE)
    with pytest.raises(BackupStorageUnavailableError):
        await taken(repository, tree)
    assert not Path(there.location).exists()

    keys = there.work / "keys"
    keys.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    nobody = f"s3:http://127.0.0.1:{a_free_port()}/backups"
    remote = ResticRepository(replace(there, location=nobody, s3_credentials_file=keys))
    with pytest.raises(BackupStorageUnavailableError):
        await remote.list(timeout=timedelta(seconds=8))


async def test_a_program_that_is_not_there_or_too_old_is_an_error_of_ours(
    there: ResticSettings, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho restic 0.14.0 compiled with go1.19\n")
    old.chmod(0o755)

    for program in (old, tmp_path / "nothing"):
        with pytest.raises(BackupToolError):
            await ResticRepository(replace(there, program=str(program))).prepare(timeout=PATIENCE)


async def test_what_a_program_says_without_end_is_bounded(there: ResticSettings, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    endless.write_text("#!/bin/sh\nexec cat /dev/zero\n")
    endless.chmod(0o755)

    with pytest.raises(BackupToolError, match="more than"):
        await ResticRepository(replace(there, program=str(endless))).list(timeout=PATIENCE)


async def test_a_file_that_cannot_be_read_is_named_and_no_snapshot_stays(
    repository: ResticRepository, there: ResticSettings, tree: Path, tmp_path: Path
) -> None:
    (tree / "b").chmod(0)
    # Root reads everything by a capability, so restic gets none.
    powerless = tmp_path / "powerless"
    powerless.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-all {there.program} "$@"\n')
    powerless.chmod(0o755)
    reader = ResticRepository(replace(there, program=str(powerless)) if os.geteuid() == 0 else there)

    with pytest.raises(BackupIncompleteError, match="home/b"):
        await taken(reader, tree)

    assert await repository.list(timeout=PATIENCE) == []


async def test_files_that_vanish_while_they_are_read_are_counted_and_are_no_failure(
    repository: ResticRepository, tree: Path
) -> None:
    stop = asyncio.Event()

    async def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (tree / f"short-lived-{number}").write_bytes(b"x")
            (tree / f"short-lived-{max(0, number - 200)}").unlink(missing_ok=True)
            await asyncio.sleep(0)

    churning = asyncio.create_task(churn())
    snapshots = [await taken(repository, tree) for _ in range(2)]
    stop.set()
    await churning

    assert all(one.vanished_count >= len(one.vanished) for one in snapshots)
    assert len(await repository.list(timeout=PATIENCE)) == 2


async def test_other_file_systems_below_a_tree_are_left_out(
    repository: ResticRepository, tree: Path, tmp_path: Path
) -> None:
    with small_disk(tree / "mounted", megabytes=1) as disk:
        (disk.path / "of-another").write_text("x")
        snapshot = await taken(repository, tree)
        await repository.restore(snapshot.id, tmp_path / "back", timeout=PATIENCE, progress=ignore)

    assert list((tmp_path / "back/mounted").iterdir()) == []
    assert stat.S_ISDIR((tmp_path / "back/mounted").lstat().st_mode)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    trees=st.lists(st.lists(CHANGES, max_size=20), min_size=1, max_size=3),
)
async def test_any_tree_comes_back_as_it_was_from_each_of_its_snapshots(
    repository: ResticRepository, trees: list[list[Change]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "home"
        root.mkdir()
        snapshots: list[tuple[TreeSnapshot, dict[bytes, Any]]] = []  # Any: as `everything` says
        for changes in trees:
            for change in changes:
                do_change(root, change)
            if os.geteuid() == 0:
                os.chown(root, len(snapshots), 7)
            snapshots.append((await taken(repository, root), everything(root)))

        for number, (snapshot, wanted) in enumerate(snapshots):
            into = Path(directory) / str(number)
            await repository.restore(snapshot.id, into, timeout=PATIENCE, progress=ignore)
            assert everything(into) == wanted


async def test_a_clients_lost_password_is_told_and_no_other_one_takes_its_place(
    there: ResticSettings, tmp_path: Path
) -> None:
    def repositories() -> ResticRepositories:
        settings = replace(there, location=str(tmp_path / "all"), work=tmp_path / "clients")
        return ResticRepositories(settings=settings, passwords=tmp_path / "passwords")

    acme, file = ClientId("acme"), tmp_path / "passwords" / "acme"
    with pytest.raises(BackupPasswordLostError):
        await repositories().reopen(acme, timeout=PATIENCE)
    await repositories().open(acme, timeout=PATIENCE)
    copy = file.read_text()
    file.unlink()

    for again in (repositories().open, repositories().reopen):
        with pytest.raises(BackupPasswordLostError, match="Put it back"):
            await again(acme, timeout=PATIENCE)
        assert not file.exists()

    file.write_text(copy)
    await repositories().reopen(acme, timeout=PATIENCE)
