"""Exit codes of a headless run that ended without a result. Pure."""

from __future__ import annotations

from sandboxd.model.events import Error
from sandboxd.model.session import StopReason
from sandboxd.stream.cutting import shorten
from sandboxd.stream.failures import CLI_AUTH_REQUIRED, CLI_ERROR, cli_exited, failure_from_api, named_failure
from sandboxd.stream.limits import MAX_MESSAGE_BYTES

INPUT_REFUSED = 42
"""`--resume` with an id that it does not know, among others."""
_INTERRUPTED = frozenset({0, 130, 143, 137})
"""SIGINT and SIGTERM end a run with exit code 0 and no result; 128 and more come from shells and launchers."""
_NAMED = {
    41: (CLI_AUTH_REQUIRED, "The CLI could not authenticate."),
    INPUT_REFUSED: ("CLI_INPUT_REFUSED", "The CLI refused its arguments."),
    44: (CLI_ERROR, "The CLI could not set up its own sandbox."),
    52: ("CLI_SETTINGS_INVALID", "The CLI could not read its settings."),
    54: (CLI_ERROR, "The CLI could not run a tool."),
    55: ("CLI_FOLDER_UNTRUSTED", "The CLI does not trust the workspace."),
}
_MAX_TURNS = 53
_API_STATUSES = (400, 401, 402, 403, 404, 413, 429, 500, 502, 503, 504)
"""Errors of the model API end the process with `status & 255`."""
_BY_BYTE = {status & 255: status for status in reversed(_API_STATUSES)}


def judge_exit(*, exit_code: int | None, signal: int | None, stderr_tail: str) -> tuple[StopReason, Error | None]:
    """What the end of a process without a result means for its turn."""
    if signal or exit_code is None or exit_code in _INTERRUPTED:
        return StopReason.INTERRUPTED, cli_exited(exit_code=exit_code, signal=signal, stderr_tail=stderr_tail)
    if exit_code == _MAX_TURNS:
        return StopReason.MAX_TURN_REQUESTS, None
    lines = [line.strip() for line in stderr_tail.splitlines() if line.strip()]
    said = shorten(lines[-1], MAX_MESSAGE_BYTES) if lines else ""
    if exit_code in _NAMED:
        reason, message = _NAMED[exit_code]
        return StopReason.ERROR, named_failure(reason, f"{message} {said}".strip())
    if exit_code in _BY_BYTE:
        return StopReason.ERROR, failure_from_api(_BY_BYTE[exit_code], said)
    return StopReason.INTERRUPTED, cli_exited(exit_code=exit_code, signal=None, stderr_tail=stderr_tail)
