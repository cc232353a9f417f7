"""`sandboxctl backups` against the contract."""

from __future__ import annotations

from sandboxd.v1 import backup_pb2 as pb
from tests.fakes.platform_server import FakePlatform
from tests.integration.test_ctl_commands import BOX, ctl, platform

__all__ = ["platform"]


def test_a_backup_is_made_and_told_of(platform: FakePlatform) -> None:
    ran = ctl("backups", "create", "demo")

    assert ran.code == 0
    assert "COMPLETE" in ran.out
    assert "crash consistent" in ran.out
    assert "home: 1,234 files, 45.6 MB, 1.2 MB stored" in ran.out
    assert "1 vanished" in ran.out


def test_in_json_it_is_the_backup(platform: FakePlatform) -> None:
    (made,) = ctl("backups", "create", "demo", "-o", "json").objects

    assert (made["name"].rpartition("/")[0], made["status"]) == (
        f"sandboxes/{BOX}/backups",
        "BACKUP_STATUS_COMPLETE",
    )


def test_one_that_fails_says_why_and_so_does_its_exit(platform: FakePlatform) -> None:
    platform.fail_backups = "BACKUP_STORAGE_FULL"

    ran = ctl("backups", "create", "demo")

    assert (ran.code, "There is no" in ran.err, "\x1b[31m" in ran.err) == (1, True, False)
    assert "BACKUP_STORAGE_FULL" in ctl("backups", "ls", "demo").out


def test_they_are_listed_over_all_pages_shown_by_their_end_and_deleted_with_proof(platform: FakePlatform) -> None:
    for _ in range(3):
        ctl("backups", "create", "demo")

    assert ctl("backups", "ls", "demo").out.count("COMPLETE") == 3
    assert "checksum ccc" in ctl("backups", "show", "demo", "02").out
    assert "1" * 64 in ctl("backups", "rm", "demo", "02", "--yes").out
    assert ctl("backups", "ls", "demo").out.count("COMPLETE") == 2
    assert "DELETED" in ctl("backups", "ls", "demo", "--all").out


def test_it_is_said_why_each_is_kept_until_when_nobody_deletes_it_and_what_holds(platform: FakePlatform) -> None:
    ctl("backups", "create", "demo")

    listed, shown = ctl("backups", "ls", "demo"), ctl("backups", "show", "demo", "01")

    holds = "made every 12 h 0 min of use and after terminate; kept: the newest 3, and the newest of 7 days and of 1"
    assert holds in " ".join(listed.err.split())
    assert holds in " ".join(shown.out.split())
    assert "newest, immutable until" in shown.out
    assert "immutable until 2027-01-31" in shown.out


def test_what_names_none_or_several_is_refused(platform: FakePlatform) -> None:
    for _ in range(11):
        ctl("backups", "create", "demo")

    none, several = ctl("backups", "show", "demo", "zzz"), ctl("backups", "rm", "demo", "1")

    assert (none.code, several.code) == (3, 2)
    assert "No backup of" in none.err
    assert "sandboxctl backups ls" in none.err
    assert "2 backups of" in several.err


def test_a_backup_is_not_deleted_where_nobody_can_be_asked(platform: FakePlatform) -> None:
    ctl("backups", "create", "demo")

    ran = ctl("backups", "rm", "demo", "01")

    assert (ran.code, "--yes" in ran.err) == (2, True)
    assert ctl("backups", "ls", "demo").out.count("COMPLETE") == 1


def test_a_restore_says_from_what_and_which_paths(platform: FakePlatform) -> None:
    ctl("backups", "create", "demo")

    ran = ctl("restore", "demo", "01", "--path", "home:.bashrc", "--path", "workspace:/src/")
    wrong = ctl("restore", "demo", "01", "--path", "etc/passwd")

    (request,) = platform.restores
    assert (ran.code, request.backup) == (0, f"sandboxes/{BOX}/backups/bak-{1:026}")
    assert [(one.kind, one.path) for one in request.paths] == [(1, b".bashrc"), (2, b"src")]
    assert (wrong.code, "home:PATH" in wrong.err) == (2, True)


def test_a_backup_is_brought_into_a_new_sandbox_or_one_that_is_there(platform: FakePlatform) -> None:
    ctl("backups", "create", "demo")
    ctl("backups", "create", "demo")
    ctl("create", "--name", "there")

    new = ctl("restore", "demo", "--into", "copy")
    there = ctl("restore", "demo", "01", "--into", "there", "--path", "workspace:src")
    wrong = ctl("restore", "demo", "--into", "nowhere", "--path", "workspace:src")

    assert (new.code, "is made from" in new.out) == (0, True)
    made = platform.creates[-1]
    assert made.sandbox.display_name == "copy"
    assert made.from_backup == f"sandboxes/{BOX}/backups/bak-{2:026}"
    assert made.sandbox.tier == 0, "the backup's"
    (request,) = platform.restores
    assert (there.code, platform.sandboxes[request.name].display_name) == (0, "there")
    assert (request.backup.rpartition("/")[2], [one.path for one in request.paths]) == (f"bak-{1:026}", [b"src"])
    assert (wrong.code, "no sandbox 'nowhere'" in wrong.err) == (2, True)


def test_create_takes_the_newest_backup_or_the_one_that_is_named(platform: FakePlatform) -> None:
    empty = ctl("create", "--from-backup", "demo")
    ctl("backups", "create", "demo")
    ctl("backups", "create", "demo")

    ran = ctl("create", "--from-backup", "demo", "--tier", "standard")
    named = ctl("create", "--from-backup", "demo/01", "--workspace-only", "--freelancer", "bob")

    assert (empty.code, "has no backup" in empty.err, ran.code, named.code) == (2, True, 0, 0)
    newest, first = platform.creates
    assert (newest.from_backup.rpartition("/")[2], newest.sandbox.tier) == (f"bak-{2:026}", 2)
    assert (first.from_backup.rpartition("/")[2], first.workspace_only) == (f"bak-{1:026}", True)
    assert first.sandbox.freelancer == "bob"


def test_one_that_somebody_else_asked_for_is_followed_or_ended(platform: FakePlatform) -> None:
    none = ctl("backups", "follow", "demo"), ctl("backups", "cancel", "demo")
    platform.CreateBackup(pb.CreateBackupRequest(sandbox=f"sandboxes/{BOX}"), None)
    followed = ctl("backups", "follow", "demo")
    platform.CreateBackup(pb.CreateBackupRequest(sandbox=f"sandboxes/{BOX}"), None)
    ended = ctl("backups", "cancel", "demo")

    assert [one.code for one in none] == [3, 3]
    assert "No backup of" in none[0].err
    assert (followed.code, "COMPLETE" in followed.out) == (0, True)
    assert (ended.code, "It was cancelled." in ended.err) == (0, True)
    assert [one.failure.reason for one in platform.backups.values()] == ["", "BACKUP_CANCELLED"]


def test_a_drill_says_what_it_came_to_and_so_does_its_exit(platform: FakePlatform) -> None:
    ctl("backups", "create", "demo")
    empty = ctl("backups", "drills")

    passed = ctl("backups", "drill", "demo/01")
    platform.fail_drills = "DRILL_DIFFERS"
    failed = ctl("backups", "drill")
    ctl("backups", "drill", "demo")
    listed = ctl("backups", "drills")
    (last,) = ctl("backups", "drills", "--limit", "1", "-o", "json").objects

    assert "No restore has been tried yet" in empty.err
    assert (passed.code, "PASSED" in passed.out, "as it was" in passed.out) == (0, True, True)
    assert (failed.code, "notes has other content" in failed.out) == (1, True)
    assert "It came back otherwise" in failed.err
    assert (listed.out.count("FAILED"), listed.out.count("PASSED")) == (2, 1)
    assert last["status"] == "DRILL_STATUS_FAILED"


def test_a_restore_is_cancelled_and_told_what_the_sandbox_is_then(platform: FakePlatform) -> None:
    ran = ctl("restore", "demo", "--cancel")
    wrong = ctl("restore", "demo", "01", "--cancel")

    assert (ran.code, platform.cancelled_restores) == (0, [f"sandboxes/{BOX}"])
    assert "PAUSED" in ran.out
    assert "\x1b[31m" not in ran.out
    assert (wrong.code, platform.restores) == (2, [])
