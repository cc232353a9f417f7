"""`sandboxctl commit`, `images`, `sbom` and `rollback` against the contract."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from sandboxd.v1 import sandbox_pb2
from tests.fakes.platform_server import FakePlatform
from tests.integration.test_ctl_commands import BOX, ctl, platform

__all__ = ["platform"]


def test_commit_tells_what_was_kept_and_what_was_not(platform: FakePlatform) -> None:
    ran = ctl("commit", "demo")

    assert ran.code == 0
    assert "the next start takes g000001" in ran.out
    assert "layer 45.6 MB, 123.4 MB on nodes, 1,234 entries; image 300.0 MB in 3 layers" in ran.out
    assert "capture 1.5 s" in ran.out
    assert "left out, secret: 2 (root/.netrc, root/" in ran.out
    assert "\x1b[31m" not in ran.out
    assert "hold keys or tokens" in ran.out
    assert "g000001: capturing" in ran.err


def test_commit_in_json_is_the_image(platform: FakePlatform) -> None:
    ran = ctl("commit", "demo", "-o", "json")

    (image,) = ran.objects
    assert (image["name"], image["status"]) == (f"sandboxes/{BOX}/images/g000001", "IMAGE_STATUS_ACTIVE")
    assert image["digest"].startswith("sha256:")
    assert ran.err == ""


def test_a_dry_run_says_that_it_was_one(platform: FakePlatform) -> None:
    ran = ctl("commit", "demo", "--dry-run")

    assert (ran.code, "nothing was pushed" in ran.out) == (0, True)


def test_a_commit_that_fails_says_why_and_so_does_its_exit(platform: FakePlatform) -> None:
    platform.fail_commits = "IMAGE_TOO_LARGE"

    ran = ctl("commit", "demo")

    assert (ran.code, "usr/share" in ran.err) == (1, True)
    assert "There are no images" in ctl("images", "demo").err
    assert "IMAGE_TOO_LARGE" in ctl("images", "demo", "--all").out


def test_images_are_listed_over_all_pages(platform: FakePlatform) -> None:
    for _ in range(3):
        ctl("commit", "demo")

    ran = ctl("images", "demo")

    assert [line.split()[:2] for line in ran.out.splitlines()[1:]] == [
        ["g000003", "ACTIVE"],
        ["g000002", "SUPERSEDED"],
        ["g000001", "SUPERSEDED"],
    ]


def test_show_says_which_image_the_next_start_takes(platform: FakePlatform) -> None:
    platform.sandboxes[f"sandboxes/{BOX}"].image = f"sandboxes/{BOX}/images/g000007"

    shown = {line.split()[0]: line.split()[-1] for line in ctl("show", "demo").out.splitlines() if line.strip()}

    assert shown["image"] == "g000007"


@pytest.mark.parametrize("said", [[], ["g000001"], ["1"]])
def test_the_list_of_packages_is_printed_as_it_is(platform: FakePlatform, said: list[str]) -> None:
    ctl("commit", "demo")

    ran = ctl("sbom", "demo", *said)

    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == {"components": [{"name": "ripgrep"}]}


def test_where_no_image_is_active_there_is_no_list_of_packages(platform: FakePlatform) -> None:
    ran = ctl("sbom", "demo")

    assert (ran.code, ran.out) == (3, "")
    assert "sandboxctl commit" in ran.err


@pytest.mark.parametrize("said", ["g000001", "1"])
def test_rollback_takes_a_tag_or_a_number(platform: FakePlatform, said: str) -> None:
    for _ in range(2):
        ctl("commit", "demo")

    ran = ctl("rollback", "demo", said)

    assert ran.code == 0
    assert "takes g000001" in ran.out
    assert f"sandboxctl pause {BOX}" in ran.out


@pytest.mark.parametrize("said", ["latest", "0", "1000000", "g1", "-"])
def test_what_names_no_image_is_a_usage_error(platform: FakePlatform, said: str) -> None:
    assert ctl("rollback", "demo", "--", said).code == 2


def test_ctrl_c_cancels_the_commit(platform: FakePlatform) -> None:
    platform.committing.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "sandboxd.ctl", "commit", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "capturing" in line

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "Cancelling the commit" in err
    assert out == ""
    (image,) = platform.images.values()
    assert image.failure.reason == "COMMIT_CANCELLED"


def test_why_a_commit_failed_is_told_to_its_end(platform: FakePlatform) -> None:
    platform.fail_commits = "IMAGE_BROKEN"
    platform.why = "It does not boot: " + "x" * 500 + " (step packages)."

    ran = ctl("commit", "demo")

    assert (ran.code, "(step packages)." in ran.err.replace("\n", "")) == (1, True)
    assert "images " in ctl("images", "demo").err


def test_one_that_somebody_else_began_is_followed_or_ended(platform: FakePlatform) -> None:
    none = ctl("commit", "demo", "--follow"), ctl("commit", "demo", "--cancel")
    platform.begin_commit(sandbox_pb2.CommitRequest(name=f"sandboxes/{BOX}"))
    followed = ctl("commit", "demo", "--follow")
    platform.begin_commit(sandbox_pb2.CommitRequest(name=f"sandboxes/{BOX}"))
    ended = ctl("commit", "demo", "--cancel")

    assert [one.code for one in none] == [3, 3]
    assert "Nothing commits" in none[0].err
    assert (followed.code, "the next start takes g000001" in followed.out) == (0, True)
    assert (ended.code, "It was cancelled." in ended.err) == (0, True)
    assert ctl("commit", "demo", "--cancel", "--dry-run").code == 2
    assert len(platform.images) == 2, "nothing was begun by these"


def test_an_upgrade_is_followed_to_its_end_and_says_what_was_left_out(platform: FakePlatform) -> None:
    ran = ctl("upgrade", "demo", "--skip")

    assert ran.code == 0
    assert "g000001: installing packages on the new base" in ran.err
    assert "the next start takes g000001" in ran.out
    assert "left out, package_failed: 1 (dpkg ripgrep 14.1-1)" in ran.out
    assert "package_failed" not in ctl("upgrade", "demo").out


def test_an_upgrade_that_fails_says_why_and_so_does_its_exit(platform: FakePlatform) -> None:
    platform.fail_commits = "REPLAY_INCOMPLETE"

    ran = ctl("upgrade", "demo")

    assert (ran.code, "usr/share" in ran.err) == (1, True)


def test_a_plan_of_an_upgrade_shows_what_would_be_installed_and_what_would_be_lost(platform: FakePlatform) -> None:
    ctl("commit", "demo")

    ran = ctl("upgrade", "demo", "--dry-run")

    assert ran.code == 0
    assert ran.out.split().count("ripgrep") == 1
    assert "installed again" in ran.out
    assert "would be lost, by_hand: 12 (usr/local/bin/tool, opt/" in ran.out
    assert "\x1b[31m" not in ran.out
    assert len(platform.images) == 1


def test_a_plan_where_nothing_is_to_be_upgraded_says_so(platform: FakePlatform) -> None:
    ran = ctl("upgrade", "demo", "--dry-run")

    assert (ran.code, "there is nothing to upgrade" in ran.out) == (0, True)
    (plan,) = ctl("upgrade", "demo", "--dry-run", "-o", "json").objects
    assert plan["new_base"].startswith("registry.test/base@")
