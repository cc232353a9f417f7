"""Failpoints do nothing unless a test asks for it."""

import subprocess
import sys

import pytest

from sandboxd.model import failpoints
from sandboxd.model.failpoints import VARIABLE, FailpointError, failpoint


@pytest.fixture(autouse=True)
def _no_passes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_passes", {})


def test_a_failpoint_is_passed_when_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    failpoint("create.after_commit")
    monkeypatch.setenv(VARIABLE, "another=error")
    failpoint("create.after_commit")


def test_an_error_is_raised_at_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a=sleep:0, b=error")
    failpoint("a")
    with pytest.raises(FailpointError):
        failpoint("b")


def test_an_action_can_wait_for_its_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a=error@2")
    failpoint("a")
    with pytest.raises(FailpointError):
        failpoint("a")
    failpoint("a")


def test_a_wrong_action_is_no_silent_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a=explode")
    with pytest.raises(ValueError, match="explode"):
        failpoint("a")


def test_exit9_ends_the_process_as_kill_9_does() -> None:
    code = "from sandboxd.model.failpoints import failpoint; failpoint('a'); print('still here')"

    ended = subprocess.run(
        [sys.executable, "-c", code], env={VARIABLE: "a=exit9"}, capture_output=True, check=False, timeout=30
    )

    assert (ended.returncode, ended.stdout) == (-9, b"")
