"""Tells open streams what policy is about to do with their sandbox, that it will not, and that it has.

What is announced stands in the sweep's looks (`lifecycle_ports.Look`), so any replica can tell it. Hints say when to
look; they may be lost, so everybody who is followed is looked at now and then, in one query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from sandboxd.manager.changes import Changes
from sandboxd.manager.followers import Followers
from sandboxd.manager.lifecycle_ports import Announced, Candidate
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.frozen_reason import FROZEN_FOR
from sandboxd.model.ids import SandboxId
from sandboxd.model.lifecycle import LifecycleStep
from sandboxd.model.next_step import STEPS, idle_since
from sandboxd.model.sandbox import SandboxState

_DONE: Final = {
    SandboxState.HIBERNATED: "The sandbox hibernates. The next prompt wakes it at once.",
    SandboxState.STOPPED: "The sandbox was stopped; its files are kept. The next prompt starts it.",
    SandboxState.TERMINATED: "The sandbox was terminated; its files are kept.",
}
_SOON: Final = {
    LifecycleStep.HIBERNATE: "will hibernate",
    LifecycleStep.STOP: "will be stopped; its files stay",
    LifecycleStep.TERMINATE: "will be terminated; its files are kept",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestNotice:
    """What a stream tells its client."""

    code: str
    """`HIBERNATE_SOON`, `STOP_SOON`, `TERMINATE_SOON`; `REST_CALLED_OFF`; `HIBERNATED`, `STOPPED`, `TERMINATED`; and
    `STATE_REASON` where `Sandbox.state_reason` says something: what was lost, which image did not boot, or for which
    backup it stands still; `THAWED` after that."""
    message: str
    due_time: datetime | None = None
    """When it happens, if it is not used before."""


class Announcements:
    """One a replica; `run` must run beside it."""

    def __init__(self, *, units: UnitsOfWork, changes: Changes) -> None:
        self._units = units
        self._changes = changes
        self._followers = Followers[RestNotice](changes)
        self._told: dict[SandboxId, Announced] = {}
        self._reasons: dict[SandboxId, str] = {}
        """What was told of the states that sandboxes are in."""

    async def follow(self, sandbox: SandboxId) -> AsyncIterator[RestNotice]:
        """Notices about a sandbox from now on, for ever; first what was announced already."""
        try:
            with self._followers.join(sandbox) as queue:
                if reason := self._reasons.get(sandbox):
                    queue.put_nowait(_because(reason))
                told = self._told.get(sandbox)
                if told is None:
                    await self._look({sandbox})
                else:
                    queue.put_nowait(_soon(told))
                while True:
                    yield await queue.get()
        finally:
            if sandbox not in self._followers:
                self._told.pop(sandbox, None)
                self._reasons.pop(sandbox, None)

    async def used(self, sandbox: SandboxId) -> None:
        """A sandbox was used, and that is durable: where a step was announced, look again."""
        if sandbox in self._told:
            await self._changes.announce(sandbox)

    async def run(self) -> None:
        """Look at what changes until cancelled."""
        await self._followers.run(self._look)

    async def _look(self, sandboxes: Collection[SandboxId]) -> None:
        if not sandboxes:
            return
        try:
            async with self._units.begin() as work:
                found = await work.looks.find(sandboxes)
                rows = await work.sandboxes.find([one for one in sandboxes if one in self._told])
        except SandboxdError as error:
            log.info("announcements.not_read", error=error.message)
            return
        for sandbox in list(sandboxes):
            if (candidate := found.get(sandbox)) is not None:
                self._explain(sandbox, candidate.sandbox.state_reason)
            told, stands = self._told.get(sandbox), _standing(found.get(sandbox))
            if stands == told:
                continue
            row = rows.get(sandbox)
            if stands is not None:
                self._told[sandbox] = stands
                self._followers.tell(sandbox, _soon(stands))
            elif row is not None and not row.state.transient:
                del self._told[sandbox]
                self._followers.tell(sandbox, _ended(row.state))

    def _explain(self, sandbox: SandboxId, reason: str) -> None:
        """Tell why a sandbox is in its state, once: what was lost with its life, what was started instead."""
        if reason != self._reasons.get(sandbox, "") and sandbox in self._followers:
            before, self._reasons[sandbox] = self._reasons.get(sandbox, ""), reason
            if reason:
                self._followers.tell(sandbox, _because(reason))
            elif before.startswith(FROZEN_FOR):
                self._followers.tell(sandbox, RestNotice(code="THAWED", message="The sandbox goes on."))


def _standing(candidate: Candidate | None) -> Announced | None:
    """What is announced and not void: nobody has used the sandbox since, and it is not done."""
    if candidate is None or candidate.look.announced is None:
        return None
    announced, sandbox = candidate.look.announced, candidate.sandbox
    fits = announced.since == idle_since(sandbox) and announced.step in STEPS[sandbox.state]
    return announced if fits else None


def _soon(announced: Announced) -> RestNotice:
    moment = announced.time.strftime("%H:%M:%S")
    return RestNotice(
        code=f"{announced.step.value}_SOON",
        message=f"The sandbox {_SOON[announced.step]}: at {moment} UTC, if nobody uses it before.",
        due_time=announced.time,
    )


def _because(reason: str) -> RestNotice:
    return RestNotice(code="STATE_REASON", message=reason)


def _ended(state: SandboxState) -> RestNotice:
    if state in _DONE:
        return RestNotice(code=state.value, message=_DONE[state])
    return RestNotice(code="REST_CALLED_OFF", message="The sandbox is in use: what was announced does not happen.")
