"""Errors of requests as they are raised again."""

from datetime import timedelta

import pytest

from sandboxd.manager.outcome import record_error, restore_error
from sandboxd.manager.ports import ErrorRecord
from sandboxd.model.errors import (
    AgentUnavailableError,
    ErrorKind,
    ExhaustedError,
    InvalidRequestError,
    SandboxdError,
    SandboxNotFoundError,
)

FULL = ExhaustedError("Full.", retry_after=timedelta(seconds=30))


@pytest.mark.parametrize(
    "error",
    [
        SandboxNotFoundError("sbx-1"),
        AgentUnavailableError("No.", sandbox="sbx-1"),
        InvalidRequestError("Bad."),
        FULL,
    ],
    ids=lambda error: error.reason,
)
def test_an_error_comes_back_as_its_own_class(error: SandboxdError) -> None:
    restored = restore_error(record_error(error))

    assert type(restored) is type(error)
    assert (restored.message, restored.metadata, str(restored)) == (error.message, error.metadata, str(error))
    assert restored.retry_after == error.retry_after, "who repeats a request is advised as who asked first"


def test_an_error_that_this_version_does_not_know_keeps_its_kind_and_reason() -> None:
    restored = restore_error(ErrorRecord(kind=ErrorKind.CONFLICT, reason="OF_LATER", message="Later."))

    assert (restored.kind, restored.reason, restored.message) == (ErrorKind.CONFLICT, "OF_LATER", "Later.")
