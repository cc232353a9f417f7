"""A role that starts while the database goes away and comes back waits for it, and does not end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandboxd.bootstrap.schema import while_away
from sandboxd.model.errors import DatabaseUnavailableError, InternalError


class Work:
    """Fails as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.done = 0

    async def __call__(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.done += 1


async def test_what_a_start_needs_is_asked_for_again_while_the_database_is_away() -> None:
    work = Work(DatabaseUnavailableError("away"), DatabaseUnavailableError("away"))

    await while_away(work)

    assert work.done == 1


async def test_patience_ends() -> None:
    with pytest.raises(DatabaseUnavailableError):
        await while_away(Work(DatabaseUnavailableError("away")), patience=timedelta(seconds=-1))


async def test_other_failures_are_told_at_once() -> None:
    work = Work(InternalError("a bug"), DatabaseUnavailableError("away"))

    with pytest.raises(InternalError):
        await while_away(work)

    assert len(work.failures) == 1
