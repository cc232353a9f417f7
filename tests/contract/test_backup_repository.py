"""What a repository of backups promises: the same suite for the fake, for restic on a disk and for restic on S3."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandboxd.backends.restic.child import ResticSettings
from sandboxd.backends.restic.repository import ResticRepository
from sandboxd.model.backup import SnapshotId
from sandboxd.model.backup_errors import BackupSnapshotNotFoundError
from sandboxd.model.errors import InvalidRequestError
from sandboxd.volumes.ports import STAGING, BackupProgress, BackupRepository
from tests.backup_trees import BACKUP_PASSWORD, PATIENCE, a_hard_tree, everything, ignore, without_sockets
from tests.fakes.backups import FakeBackupRepository
from tests.s3_server import an_s3_server

pytestmark = pytest.mark.timeout(400)
SOURCE = "sbx-1/home"
NOTHING = SnapshotId("0" * 64)


@pytest.fixture(params=["fake", "restic", "restic-s3"])
async def repository(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BackupRepository]:
    if request.param == "fake":
        fake = FakeBackupRepository(directory=tmp_path / "kept")
        await fake.prepare(timeout=PATIENCE)
        yield fake
        return
    program: Path = request.getfixturevalue("restic")
    (tmp_path / "password").write_text(BACKUP_PASSWORD)
    settings = ResticSettings(
        location=str(tmp_path / "kept"),
        password_file=tmp_path / "password",
        work=tmp_path / "work",
        program=str(program),
    )
    if request.param == "restic":
        shutil.copytree(request.getfixturevalue("empty_backups"), settings.location)
        yield ResticRepository(settings)
        return
    async with an_s3_server(tmp_path, settings) as on_s3:
        made = ResticRepository(on_s3)
        await made.prepare(timeout=PATIENCE)
        yield made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    a_hard_tree(made)
    return made


async def taken(repository: BackupRepository, tree: Path, *, source: str = SOURCE, **tags: str) -> SnapshotId:
    snapshot = await repository.snapshot(tree, source=source, tags=tags, timeout=PATIENCE, progress=ignore)
    return snapshot.id


async def back(repository: BackupRepository, snapshot: SnapshotId, into: Path, *paths: bytes) -> Path:
    await repository.restore(snapshot, into, paths=paths, timeout=PATIENCE, progress=ignore)
    return into


async def test_a_tree_comes_back_as_it_was_with_its_root_and_without_sockets(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    told: list[BackupProgress] = []
    before = datetime.now(UTC)
    snapshot = await repository.snapshot(tree, source=SOURCE, tags={}, timeout=PATIENCE, progress=told.append)

    restored = await repository.restore(snapshot.id, tmp_path / "new/back", timeout=PATIENCE, progress=told.append)

    without_sockets(tree)
    assert everything(tmp_path / "new/back") == everything(tree)
    assert (tmp_path / "new/back/holes").stat().st_blocks * 512 < 4 << 20
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    assert snapshot.files == len(files)
    assert snapshot.bytes == sum(path.stat().st_size for path in files)
    assert restored.entries >= len(files)
    assert before - timedelta(seconds=1) <= snapshot.take_time <= datetime.now(UTC)


async def test_what_is_unchanged_is_not_stored_again_and_what_changed_comes_back_by_its_snapshot(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    (tree / "big").write_bytes(os.urandom(4 << 20))
    first = await repository.snapshot(tree, source=SOURCE, tags={}, timeout=PATIENCE, progress=ignore)
    same = await repository.snapshot(tree, source=SOURCE, tags={}, timeout=PATIENCE, progress=ignore)
    (tree / "program").write_bytes(b"other")

    changed = await taken(repository, tree)

    assert first.added_bytes > 4 << 20
    assert same.added_bytes < 1000
    assert same.tree == first.tree
    assert (await back(repository, first.id, tmp_path / "1") / "program").read_bytes() == b"hello"
    assert (await back(repository, changed, tmp_path / "2") / "program").read_bytes() == b"other"


@pytest.mark.parametrize(
    "paths",
    [
        (b"d",),
        (b"d/e", b"nowhere", b"d/na\nme\xff*?[a]\\", b"d/$HOME", b"d/-rf", b"d/ ", b"d/a=b,c", b'd/"'),
    ],
)
async def test_paths_come_back_with_all_below_them_and_nothing_else(
    repository: BackupRepository, tree: Path, tmp_path: Path, paths: tuple[bytes, ...]
) -> None:
    snapshot = await taken(repository, tree)

    await back(repository, snapshot, tmp_path / "back", *paths)

    without_sockets(tree)
    before, after = everything(tree), everything(tmp_path / "back")
    wanted = {b""}
    for path in paths:
        wanted |= {one for one in before if one == path or one.startswith(path + b"/") or path.startswith(one + b"/")}
    assert after.keys() - {b"/links"} == wanted
    assert all(after[one] == before[one] for one in wanted)


async def test_what_a_broken_restore_left_in_the_root_is_not_taken(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    left = tree / f"{STAGING}rst-1"
    (left / "inside").mkdir(parents=True)
    (left / "inside/half").write_text("half")
    of_the_freelancer = tree / "inside" / f"{STAGING}notes"
    of_the_freelancer.mkdir(parents=True)
    (of_the_freelancer / "mine").write_text("mine")

    snapshot = await taken(repository, tree)

    shutil.rmtree(left)
    without_sockets(tree)
    after = everything(await back(repository, snapshot, tmp_path / "back"))
    assert after.keys() == everything(tree).keys()
    assert (tmp_path / "back/inside" / of_the_freelancer.name / "mine").read_text() == "mine"


async def test_a_path_that_the_snapshot_has_not_is_refused_also_through_a_link(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    (tree / "out").symlink_to("/etc")
    snapshot = await taken(repository, tree)

    for number, path in enumerate((b"out/passwd", b"program/x")):
        with pytest.raises(BackupSnapshotNotFoundError):
            await back(repository, snapshot, tmp_path / str(number), b"out", path)


async def test_a_path_that_is_none_is_refused(repository: BackupRepository, tree: Path, tmp_path: Path) -> None:
    snapshot = await taken(repository, tree)

    for path in (b"", b"/etc/passwd", b"../x", b"d/../../x", b"d//e", b"./d", b"d/", b"a\0b"):
        with pytest.raises(InvalidRequestError):
            await back(repository, snapshot, tmp_path / "back", path)
    assert not (tmp_path / "back").exists()


async def test_nothing_is_restored_over_what_is_there(repository: BackupRepository, tree: Path, tmp_path: Path) -> None:
    snapshot = await taken(repository, tree)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")

    for into in ("there", "there/mine", "link"):
        with pytest.raises(InvalidRequestError):
            await back(repository, snapshot, tmp_path / into)

    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]
    assert list((tmp_path / "empty").iterdir()) == []


async def test_snapshots_are_listed_by_source_and_tags_the_oldest_first(
    repository: BackupRepository, tree: Path
) -> None:
    first = await taken(repository, tree, set="a", client="acme")
    second = await taken(repository, tree, set="b", client="acme")
    other = await taken(repository, tree, source="sbx-2/home", set="a", client="acme")

    async def ids(**asked: object) -> list[SnapshotId]:
        return [one.id for one in await repository.list(timeout=PATIENCE, **asked)]  # type: ignore[arg-type]

    assert await ids() == [first, second, other]
    assert await ids(source=SOURCE) == [first, second]
    assert await ids(tags={"set": "a"}) == [first, other]
    assert await ids(source=SOURCE, tags={"set": "b", "client": "acme"}) == [second]
    assert await ids(source=SOURCE, tags={"set": "b", "client": "other"}) == []
    listed = await repository.list(source="sbx-2/home", timeout=PATIENCE)
    assert (listed[0].source, listed[0].tags) == ("sbx-2/home", {"set": "a", "client": "acme"})
    assert listed[0].bytes > 32 << 20


async def test_what_is_forgotten_and_pruned_is_gone_and_the_rest_comes_back(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    first = await taken(repository, tree)
    (tree / "later").write_bytes(os.urandom(1 << 20))
    second = await taken(repository, tree)

    forgotten = await repository.forget([second, NOTHING], timeout=PATIENCE)
    again = await repository.forget([second], timeout=PATIENCE)
    await repository.prune(timeout=PATIENCE)

    assert (forgotten.snapshots, forgotten.left, again.left) == ((second, NOTHING), 1, 1)
    assert [one.id for one in await repository.list(timeout=PATIENCE)] == [first]
    with pytest.raises(BackupSnapshotNotFoundError):
        await back(repository, second, tmp_path / "gone")
    await repository.verify(content=True, timeout=PATIENCE)
    assert not (await back(repository, first, tmp_path / "back") / "later").exists()


async def test_a_snapshot_that_is_not_there_cannot_be_restored(repository: BackupRepository, tmp_path: Path) -> None:
    for number, snapshot in enumerate((NOTHING, SnapshotId("latest"), SnapshotId("--help"))):
        with pytest.raises(BackupSnapshotNotFoundError):
            await back(repository, snapshot, tmp_path / str(number))


async def test_a_snapshot_can_be_read_for_nothing_but_the_proof(repository: BackupRepository, tree: Path) -> None:
    snapshot = await taken(repository, tree)

    read = await repository.read(snapshot, timeout=PATIENCE)

    assert (read.id, read.tree) == (snapshot, (await repository.list(timeout=PATIENCE))[0].tree)
    for wrong in (NOTHING, SnapshotId("latest"), SnapshotId("--help")):
        with pytest.raises(BackupSnapshotNotFoundError):
            await repository.read(wrong, timeout=PATIENCE)


async def test_what_is_no_tree_and_what_is_no_word_are_refused(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tree)
    for wrong in (tmp_path / "nothing", tmp_path / "link", tree / "program"):
        with pytest.raises(InvalidRequestError):
            await taken(repository, wrong)
    for source in ("", "a,b", "a b", "a\n", "x" * 201):
        with pytest.raises(InvalidRequestError):
            await taken(repository, tree, source=source)
    with pytest.raises(InvalidRequestError):
        await taken(repository, tree, tag="a,b=c")

    assert await repository.list(timeout=PATIENCE) == []


async def test_preparing_again_changes_nothing(repository: BackupRepository, tree: Path) -> None:
    snapshot = await taken(repository, tree)

    await repository.prepare(timeout=PATIENCE)

    assert [one.id for one in await repository.list(timeout=PATIENCE)] == [snapshot]


async def test_snapshots_and_restores_run_beside_each_other(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    first = await taken(repository, tree)

    both = await asyncio.gather(
        taken(repository, tree), taken(repository, tree, source="other"), back(repository, first, tmp_path / "back")
    )

    assert len({first, *both}) == 4
    assert len(await repository.list(timeout=PATIENCE)) == 3


async def test_what_came_back_compares_as_the_snapshot_says(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    snapshot = await taken(repository, tree)
    there = await back(repository, snapshot, tmp_path / "back")

    told: list[asyncio.AbstractEventLoop] = []

    compared = await repository.compare(
        snapshot, there, timeout=PATIENCE, progress=lambda _: told.append(asyncio.get_running_loop())
    )

    assert set(told) == {asyncio.get_running_loop()}, "whoever asks is told on the loop, never in a thread"
    assert (compared.differences, compared.difference_count) == ((), 0)
    assert compared.expected == compared.found
    assert len(compared.expected) == 64
    assert compared.entries == len(everything(there)) - 1, "all paths and the root, but not what links are one file"
    assert compared.bytes >= 32 << 20


async def test_whatever_is_another_thing_by_now_is_told(
    repository: BackupRepository, tree: Path, tmp_path: Path
) -> None:
    snapshot = await taken(repository, tree)
    there = await back(repository, snapshot, tmp_path / "back")
    times = (there / "holes").stat()
    with (there / "holes").open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"muddle")
    os.utime(there / "holes", ns=(times.st_atime_ns, times.st_mtime_ns))
    (there / "empty").chmod(0o600)
    os.utime(there / "d/-rf", ns=(1, 1))
    (there / "d/ ").unlink()
    (there / "d/more").touch()
    (there / "nowhere").unlink()
    (there / "nowhere").symlink_to("/etc/passwd")
    os.setxattr(there / "program", "user.x", b"other")
    (there / "pipe").unlink()

    compared = await repository.compare(snapshot, there, timeout=PATIENCE, progress=ignore)

    told = " ".join(compared.differences)
    assert compared.expected != compared.found
    assert compared.difference_count >= 9
    assert "d/  is not there" in told
    assert "empty mode is 384, and was 0" in told
    assert "pipe is not there" in told
    assert "d/-rf modification time is" in told


async def test_only_the_content_of_one_file_or_one_file_more_is_enough(
    repository: BackupRepository, tmp_path: Path
) -> None:
    tree = tmp_path / "home"
    tree.mkdir()
    (tree / "a").write_bytes(b"1" * 100)
    (tree / "link").symlink_to("a")
    os.setxattr(tree / "a", "user.x", b"1")
    snapshot = await taken(repository, tree)
    before, root = (tree / "a").stat(), tree.stat()

    async def differences() -> tuple[str, ...]:
        os.utime(tree / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(tree, ns=(root.st_atime_ns, root.st_mtime_ns))
        return tuple((await repository.compare(snapshot, tree, timeout=PATIENCE, progress=ignore)).differences)

    (tree / "a").write_bytes(b"1" * 99 + b"2")
    assert await differences() == ("a has other content",)
    (tree / "a").write_bytes(b"1" * 100)
    os.setxattr(tree / "a", "user.x", b"2")
    assert await differences() == ("a has another attribute user.x",)
    os.setxattr(tree / "a", "user.x", b"1")
    (tree / "b").touch()
    assert await differences() == (". has 1 entries that the backup has not",)


async def test_nothing_is_compared_with_what_is_not_there(repository: BackupRepository, tmp_path: Path) -> None:
    with pytest.raises(BackupSnapshotNotFoundError):
        await repository.compare(NOTHING, tmp_path, timeout=PATIENCE, progress=ignore)
    with pytest.raises((InvalidRequestError, BackupSnapshotNotFoundError)):
        await repository.compare(NOTHING, tmp_path / "nothing", timeout=PATIENCE, progress=ignore)
