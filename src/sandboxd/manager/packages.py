"""Tells callers what is installed in their sandboxes, and what was. Looking is no use: it wakes and starts nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sandboxd.manager.access import require_visible
from sandboxd.manager.package_ports import ChangeSelection, PackageSource
from sandboxd.manager.ports import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, UnitsOfWork
from sandboxd.model.caller import Caller
from sandboxd.model.errors import FieldViolation, InvalidRequestError, WrongStateError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.package_history import KeptChange, PackageRecord
from sandboxd.model.packages import Package, PackageKey, PackageManager
from sandboxd.model.sandbox import SandboxState

LOOK_TIMEOUT: Final = timedelta(seconds=20)
"""How long a look may take, an installation that is going on included."""
_RUNNING: Final = frozenset({SandboxState.ACTIVE, SandboxState.HIBERNATING, SandboxState.HIBERNATED})


class SandboxNotRunningError(WrongStateError):
    """What was asked can be seen only in a sandbox that runs, or was looked into while it did."""

    reason = "SANDBOX_NOT_RUNNING"

    def __init__(self, sandbox: SandboxId, *, state: SandboxState) -> None:
        super().__init__(
            f"Sandbox {sandbox} is {state.value}, and what is installed there was not noted while it ran.",
            sandbox=sandbox,
            state=state.value,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSelection:
    """Which packages are wanted."""

    manager: PackageManager | None = None
    """Of this one; None is all."""
    unsaved: bool = False
    """Only what would be gone with the sandbox's compute."""

    def takes(self, listed: ListedPackage) -> bool:
        """Tell whether a package is wanted."""
        return self.manager in (None, listed.package.key.manager) and (listed.unsaved or not self.unsaved)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPackage:
    """An installed package."""

    package: Package
    unsaved: bool
    """True when neither the image of this life nor a commit since has it, and it is not on the home volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePage:
    """Some of what is installed, in the order of the keys."""

    packages: list[ListedPackage]
    next_token: str
    """Empty on the last page."""
    complete: bool
    root_change_time: datetime | None
    record_time: datetime | None = None
    """When it became known, of a sandbox that does not run; None for one that was looked into now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePage:
    """Some of a history."""

    changes: Sequence[KeptChange]
    next_token: str
    """Empty on the last page."""
    last_number: int
    missed: int


class Packages:
    """What is installed where."""

    def __init__(self, *, units: UnitsOfWork, source: PackageSource) -> None:
        self._units = units
        self._source = source

    async def list(
        self,
        caller: Caller,
        sandbox: SandboxId,
        selection: PackageSelection,
        *,
        page_size: int = 0,
        page_token: str = "",
        timeout: timedelta = LOOK_TIMEOUT,
    ) -> PackagePage:
        """Look into the sandbox now, and answer one page; each page looks anew, and goes on after the last key.

        Of a sandbox that does not run, what was known last.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            SandboxNotRunningError: It does not run, and nothing is known.
            InvalidRequestError: The token is none.
            NotImplementedYetError: Its agent is older than this.
        """
        after = _key(page_token) if page_token else None
        async with self._units.begin() as work:
            found = require_visible(await work.sandboxes.get(sandbox), caller)
            incarnation = await work.incarnations.current(sandbox)
            record = await work.packages.get(sandbox)
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        endpoint = incarnation.endpoint if incarnation is not None else None
        if found.state not in _RUNNING or endpoint is None or incarnation is None:
            if record is None or record.look_time is None:
                raise SandboxNotRunningError(sandbox, state=found.state)
            known = [
                ListedPackage(package=one.package, unsaved=one.unsaved_time is not None)
                for one in record.known.values()
            ]
            return _page(known, selection, after, size, record.complete, record.root_change_time, record.look_time)
        installed = await self._source.list(endpoint, timeout=min(timeout, LOOK_TIMEOUT))
        saved = _saved(record, incarnation.id)
        listed = [
            ListedPackage(package=one, unsaved=one.unsaved and saved.get(one.key) != one.version)
            for one in installed.packages
        ]
        return _page(listed, selection, after, size, installed.complete, installed.root_change_time)

    async def changes(
        self,
        caller: Caller,
        sandbox: SandboxId,
        selection: ChangeSelection,
        *,
        newest_first: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> ChangePage:
        """One page of a sandbox's history.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            InvalidRequestError: The token is none of this order.
        """
        order = "falling" if newest_first else "rising"
        number = _number(page_token, order) if page_token else 0
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        async with self._units.begin() as work:
            require_visible(await work.sandboxes.get(sandbox), caller)
            record = await work.packages.get(sandbox)
            found = await work.packages.changes(
                sandbox, selection, limit=size + 1, falling=newest_first, from_number=number
            )
        return ChangePage(
            changes=found[:size],
            next_token=_encode([order, found[size - 1].number]) if len(found) > size else "",
            last_number=0 if record is None else record.number,
            missed=0 if record is None else record.missed,
        )


def _page(
    listed: Iterable[ListedPackage],
    selection: PackageSelection,
    after: PackageKey | None,
    size: int,
    complete: bool,
    root_change_time: datetime | None,
    record_time: datetime | None = None,
) -> PackagePage:
    wanted = sorted(
        (one for one in listed if selection.takes(one) and (after is None or one.package.key > after)),
        key=lambda one: one.package.key,
    )
    return PackagePage(
        packages=wanted[:size],
        next_token=_token(wanted[size - 1].package.key) if len(wanted) > size else "",
        complete=complete,
        root_change_time=root_change_time,
        record_time=record_time,
    )


def _saved(record: PackageRecord | None, incarnation: IncarnationId) -> Mapping[PackageKey, str]:
    """Versions that need no commit any more, as far as was noticed; what was noticed by nobody yet is not in it."""
    if record is None or record.incarnation != incarnation or not record.looked:
        return {}
    return {key: one.package.version for key, one in record.known.items() if one.unsaved_time is None}


def _token(key: PackageKey) -> str:
    return _encode([key.manager, key.name, key.directory])


def _encode(place: Sequence[str | int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode("ascii")


def _number(token: str, order: str) -> int:
    try:
        said, number = json.loads(base64.urlsafe_b64decode(token))
        if said != order or not isinstance(number, int) or not 0 < number < 1 << 63:
            raise ValueError(token)
    except (ValueError, TypeError, RecursionError) as error:
        raise _foreign_token() from error
    return number


def _key(token: str) -> PackageKey:
    try:
        manager, name, directory = map(str, json.loads(base64.urlsafe_b64decode(token)))
        return PackageKey(manager=PackageManager(manager), name=name, directory=directory)
    except (ValueError, TypeError, RecursionError) as error:
        raise _foreign_token() from error


def _foreign_token() -> InvalidRequestError:
    return InvalidRequestError(
        "The page token is none of this list.",
        violations=[FieldViolation(field="page_token", description="must be a next_page_token of the same list")],
    )
