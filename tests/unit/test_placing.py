"""What a restore has put together takes its place in a volume, or the volume stays as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandboxd.model.backup_errors import BackupIncompleteError
from sandboxd.volumes.placing import RestorePathBlockedError, clear_staging, make_staging, put_paths, put_whole
from sandboxd.volumes.ports import STAGING
from sandboxd.volumes.removing import remove_tree
from tests.backup_trees import a_deep_tree, a_hard_tree, everything


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    (root / "src").mkdir(parents=True)
    (root / "src/main.py").write_text("now")
    (root / "stays").write_text("now")
    (root / "zzz").write_text("now")
    return root


def a_staging(volume: Path, **files: str) -> Path:
    staging = volume / f"{STAGING}rst-1"
    for name, content in files.items():
        path = staging / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return staging


@contextmanager
def immutable(path: Path, *, then: Path | None = None) -> Iterator[None]:
    """A file that nobody may change, and where it is then; which takes root, and a file system that has such."""
    done = subprocess.run(["chattr", "+i", path], capture_output=True, check=False, timeout=30)
    if done.returncode != 0:
        pytest.skip(f"needs root and a file system with immutable files: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", then or path], check=True, timeout=30)


def contents(volume: Path) -> dict[str, str]:
    return {str(one.relative_to(volume)): one.read_text() for one in volume.rglob("*") if one.is_file()}


def test_all_of_it_takes_the_place_of_all_that_there_is(volume: Path) -> None:
    staging = a_staging(volume, src__main_py="then", new="then")
    staging.chmod(0o750)

    put_whole(volume, staging)

    assert contents(volume) == {"src/main_py": "then", "new": "then"}
    assert oct(volume.stat().st_mode)[-3:] == "750"


def test_a_volume_in_which_a_restore_began_and_was_ended_has_its_old_times(volume: Path) -> None:
    os.utime(volume, ns=(1, 2))

    make_staging(volume, volume / f"{STAGING}other")
    begun = volume.stat().st_mtime_ns
    clear_staging(volume)

    assert (begun, volume.stat().st_mtime_ns) == (2, 2)
    with pytest.raises(BackupIncompleteError):
        make_staging(volume / "none", volume / "none" / f"{STAGING}other")


def test_a_path_takes_the_place_of_what_is_there_and_makes_directories_that_are_not(volume: Path) -> None:
    staging = a_staging(volume, src__main="then", a__b__c="then")
    (volume / "src/main").mkdir()

    put_paths(volume, staging, [b"src/main", b"a/b/c"])
    clear_staging(volume)

    now = {"src/main.py": "now", "stays": "now", "zzz": "now"}
    assert contents(volume) == {**now, "src/main": "then", "a/b/c": "then"}


def test_what_cannot_be_moved_away_is_named_and_the_volume_is_as_it_was(volume: Path) -> None:
    staging, before = a_staging(volume, new="then"), everything(volume)

    with immutable(volume / "zzz"), pytest.raises(RestorePathBlockedError, match="'zzz'.*chattr -i"):
        put_whole(volume, staging)
    clear_staging(volume)

    assert everything(volume) == {k: v for k, v in before.items() if not k.startswith(STAGING.encode())}


def test_a_path_that_cannot_be_moved_away_is_named_and_stays(volume: Path) -> None:
    staging = a_staging(volume, zzz="then", stays="then")

    with immutable(volume / "zzz"), pytest.raises(RestorePathBlockedError, match="'zzz'"):
        put_paths(volume, staging, [b"stays", b"zzz"])
    clear_staging(volume)

    assert contents(volume) == {"src/main.py": "now", "stays": "then", "zzz": "now"}


def test_what_was_moved_away_and_cannot_be_removed_is_left_and_the_next_restore_removes_it(volume: Path) -> None:
    kept = volume / f"{STAGING}rst-1-before/src/main.py"
    with immutable(volume / "src/main.py", then=kept):
        put_whole(volume, a_staging(volume, new="then"))

        assert (volume / "new").read_text() == "then"
        assert kept.read_text() == "now"
    clear_staging(volume)

    assert contents(volume) == {"new": "then"}


def test_what_a_freelancer_planted_is_removed_and_leads_nowhere(volume: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (volume / f"{STAGING}link").symlink_to(outside)
    (volume / f"{STAGING}dir").mkdir()
    (volume / f"{STAGING}dir/link").symlink_to(outside)
    (volume / f"{STAGING}rst-1-before").symlink_to(outside)
    os.mkfifo(volume / f"{STAGING}pipe")

    clear_staging(volume)
    put_whole(volume, a_staging(volume, new="then"))

    assert contents(volume) == {"new": "then"}
    assert (outside / "file").read_text() == "mine"


def test_a_path_is_not_put_through_a_link(volume: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (volume / "link").symlink_to(outside)

    with pytest.raises(RestorePathBlockedError, match="no directory now"):
        put_paths(volume, a_staging(volume, link__file="then"), [b"link/file"])

    assert list(outside.iterdir()) == []


def test_trees_of_any_depth_are_replaced(volume: Path) -> None:
    a_deep_tree(volume / "deep")

    put_whole(volume, a_staging(volume, new="then"))

    assert contents(volume) == {"new": "then"}
    assert [one.name for one in volume.iterdir()] == ["new"]


def test_a_tree_with_everything_in_it_is_removed_and_what_it_points_at_stays(tmp_path: Path) -> None:
    tree, beside = tmp_path / "tree", tmp_path / "beside"
    beside.write_text("stays")
    tree.mkdir()
    a_hard_tree(tree)
    (tree / "out").symlink_to(beside)
    (tree / "d/closed").mkdir()
    (tree / "d/closed/file").touch()
    (tree / "d/closed").chmod(0o000)
    for number in range(200):
        (tree / f"d/{number}").mkdir()

    remove_tree(str(tree))
    remove_tree(str(tree))

    assert [one.name for one in tmp_path.iterdir()] == ["beside"]


def test_what_cannot_be_removed_is_named_from_the_top(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").touch()

    with immutable(tree / "a/b/file"), pytest.raises(PermissionError) as caught:
        remove_tree(str(tree))

    assert caught.value.filename == b"a/b/file"
