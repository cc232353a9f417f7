"""What the service does by itself is on record, too."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.monitor.audit_ports import AuditUnavailableError
from sandboxd.monitor.own_deeds import AuditedDeeds
from tests.fakes.audit import FakeAuditTrail

CLIENT, SANDBOX = ClientId("acme"), SandboxId("sbx-1")


async def do(trail: FakeAuditTrail, error: BaseException | None = None) -> None:
    async with AuditedDeeds(trail).recorded("Recovery/Finish", client=CLIENT, sandbox=SANDBOX):
        assert [what for what, _, _ in trail.said] == ["intend"], "it began before it was on record"
        if error is not None:
            raise error


async def test_work_of_the_service_is_recorded_before_and_after() -> None:
    trail = FakeAuditTrail()

    await do(trail)

    assert [what for what, _, _ in trail.said] == ["intend", "conclude"]
    (_, deed, _), (_, _, outcome) = trail.said
    assert (deed.client, deed.role, deed.actor) == (CLIENT, "system", "sandboxd")
    assert (deed.action, deed.target) == ("Recovery/Finish", "sandboxes/sbx-1")
    assert outcome is not None
    assert outcome.code == "OK"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (DeadlineError("Too slow."), "UNKNOWN", "DEADLINE_EXCEEDED"),
        (asyncio.CancelledError(), "CANCELLED", ""),
        (ZeroDivisionError(), "INTERNAL", ""),
    ],
)
async def test_how_it_failed_is_recorded(error: BaseException, code: str, reason: str) -> None:
    trail = FakeAuditTrail()

    with pytest.raises(type(error)):
        await do(trail, error)

    outcome = trail.said[-1][2]
    assert outcome is not None
    assert (outcome.code, outcome.reason) == (code, reason)


async def test_what_cannot_be_recorded_is_not_begun() -> None:
    trail = FakeAuditTrail(down=True)

    with pytest.raises(AuditUnavailableError):
        await do(trail)

    assert trail.said == []
