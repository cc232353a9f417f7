"""Finds sandboxes: one, a page of them, or all with every change."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sandboxd.manager.access import require_visible
from sandboxd.manager.changes import Changes
from sandboxd.manager.ports import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    SandboxFilter,
    SandboxOrder,
    UnitsOfWork,
)
from sandboxd.model.caller import Caller
from sandboxd.model.errors import SandboxNotFoundError
from sandboxd.model.ids import FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Sandbox, SandboxState

RESCAN_SECONDS: Final = 30.0
"""How often a watcher looks at everything by itself, in case a hint was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of its sandboxes a caller wants to see."""

    freelancer: FreelancerId | None = None
    states: frozenset[SandboxState] = frozenset()
    """Any of these; empty for all but TERMINATED."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def seen_by(self, caller: Caller) -> SandboxFilter | None:
        """Narrow it to what the caller may see; None where that is nothing."""
        own = caller.freelancer
        if own is not None and self.freelancer not in (None, own):
            return None
        return SandboxFilter(
            client=caller.client, freelancer=own or self.freelancer, states=self.states, labels=self.labels
        )


class ChangeKind(enum.Enum):
    """What happened to a watched sandbox."""

    PRESENT = "present"
    UPDATED = "updated"
    REMOVED = "removed"
    """It no longer matches."""
    SYNCED = "synced"
    """The present set is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxChange:
    """One message to a watcher."""

    kind: ChangeKind
    sandbox: Sandbox | None = None
    """None for SYNCED."""


class Reading:
    """Gets, lists and watches sandboxes."""

    def __init__(self, *, units: UnitsOfWork, changes: Changes, rescan_seconds: float = RESCAN_SECONDS) -> None:
        self._units = units
        self._changes = changes
        self._rescan_seconds = rescan_seconds

    async def get(self, caller: Caller, sandbox: SandboxId) -> Sandbox:
        """One sandbox.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
        """
        async with self._units.begin() as work:
            return require_visible(await work.sandboxes.get(sandbox), caller)

    async def list(
        self,
        caller: Caller,
        selection: Selection,
        *,
        order: SandboxOrder = SandboxOrder.CREATE_TIME,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Sandbox]:
        """One page; `page_size` 0 takes the default, and a larger one than the greatest takes that.

        Raises:
            InvalidRequestError: The token is not one of a list with this selection and order.
        """
        where = selection.seen_by(caller)
        if where is None:
            return Page(items=())
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        async with self._units.begin() as work:
            return await work.sandboxes.list(where, order=order, page_size=size, page_token=page_token)

    async def watch(self, caller: Caller, selection: Selection) -> AsyncIterator[SandboxChange]:
        """The present sandboxes, SYNCED, and then every change until the caller stops; changes in between coalesce."""
        where = selection.seen_by(caller)
        known: dict[SandboxId, Sandbox] = {}
        with self._changes.feed() as feed:  # before the first look, so that nothing falls between
            for sandbox in [] if where is None else await self._all(where):
                known[sandbox.id] = sandbox
                yield SandboxChange(kind=ChangeKind.PRESENT, sandbox=sandbox)
            yield SandboxChange(kind=ChangeKind.SYNCED)
            while True:
                changed = await feed.take(timeout=self._rescan_seconds)
                if where is None:
                    continue
                present = await (self._all(where) if changed is None else self._some(where, changed))
                gone = {*known} if changed is None else changed & known.keys()
                for sandbox in present:
                    gone = gone - {sandbox.id}
                    before = known.get(sandbox.id)
                    if before is None or _shown(before) != _shown(sandbox):
                        known[sandbox.id] = sandbox
                        yield SandboxChange(kind=ChangeKind.UPDATED, sandbox=sandbox)
                for sandbox_id in sorted(gone):
                    last = known.pop(sandbox_id)
                    yield SandboxChange(kind=ChangeKind.REMOVED, sandbox=await self._latest(last))

    async def _all(self, where: SandboxFilter) -> Sequence[Sandbox]:
        found: list[Sandbox] = []
        token = ""
        while True:
            async with self._units.begin() as work:
                page = await work.sandboxes.list(
                    where, order=SandboxOrder.CREATE_TIME, page_size=MAX_PAGE_SIZE, page_token=token
                )
            found.extend(page.items)
            token = page.next_token
            if not token:
                return found

    async def _some(self, where: SandboxFilter, changed: frozenset[SandboxId]) -> Sequence[Sandbox]:
        found: list[Sandbox] = []
        async with self._units.begin() as work:
            for sandbox_id in sorted(changed):
                try:
                    sandbox = await work.sandboxes.get(sandbox_id)
                except SandboxNotFoundError:
                    continue
                if where.matches(sandbox):
                    found.append(sandbox)
        return found

    async def _latest(self, last: Sandbox) -> Sandbox:
        try:
            async with self._units.begin() as work:
                return await work.sandboxes.get(last.id)
        except SandboxNotFoundError:
            return last


def _shown(sandbox: Sandbox) -> tuple[object, ...]:
    """What tells a watched sandbox from itself as it was: its version does not grow with what is unsaved of it."""
    return sandbox.version, sandbox.dirty_since, sandbox.unsaved_packages
