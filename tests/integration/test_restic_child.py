"""What whoever runs the service reads of a restic that cannot work: a stand-in for it says what it says."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sandboxd.backends.restic.child import ResticChild, ResticSettings
from sandboxd.model.backup_errors import BackupToolError

PATIENCE = timedelta(seconds=30)
RETRIES = """#!/bin/sh
for wait in 1 2 3; do echo "Load(<key/01>, 0, 0) returned error, retrying after ${wait}s: 500 Internal" >&2; done
"""


def settings(directory: Path, *, program: str) -> ResticSettings:
    password = directory / "password"
    password.write_text("secret")
    return ResticSettings(program=program, location="s3:http://storage/b", password_file=password, work=directory)


async def test_a_storage_that_must_be_asked_again_is_told_once_while_that_goes_on(tmp_path: Path) -> None:
    program = tmp_path / "restic"
    program.write_text(RETRIES)
    program.chmod(0o755)

    with capture_logs() as logs:
        ended = await ResticChild(settings(tmp_path, program=str(program))).run("snapshots", timeout=PATIENCE)

    assert (ended.code, len(ended.complaints)) == (0, 3)
    (told,) = [one for one in logs if one["event"] == "backup.storage_retried"]
    assert (told["log_level"], "retrying after 1s: 500 Internal" in told["complaint"]) == ("warning", True)


async def test_a_restic_that_is_not_there_is_told_with_what_names_another(tmp_path: Path) -> None:
    child = ResticChild(settings(tmp_path, program="restic-that-is-none"))

    with capture_logs() as logs, pytest.raises(BackupToolError, match="SANDBOXD_BACKUPS_RESTIC"):
        await child.run("version", timeout=PATIENCE)

    (told,) = [one for one in logs if one["event"] == "backup.tool_not_started"]
    assert (told["log_level"], told["program"]) == ("warning", "restic-that-is-none")
