"""Tells callers what is installed in their sandboxes. Looking is no use of a sandbox: it wakes and starts nothing."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sandboxd.manager.access import require_visible
from sandboxd.manager.package_ports import PackageSource
from sandboxd.manager.ports import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, UnitsOfWork
from sandboxd.model.caller import Caller
from sandboxd.model.errors import FieldViolation, InvalidRequestError, WrongStateError
from sandboxd.model.ids import SandboxId
from sandboxd.model.packages import Package, PackageKey, PackageManager
from sandboxd.model.sandbox import SandboxState

LOOK_TIMEOUT: Final = timedelta(seconds=20)
"""How long a look may take, an installation that is going on included."""
_RUNNING: Final = frozenset({SandboxState.ACTIVE, SandboxState.HIBERNATING, SandboxState.HIBERNATED})


class SandboxNotRunningError(WrongStateError):
    """What was asked can be seen only in a sandbox that runs."""

    reason = "SANDBOX_NOT_RUNNING"

    def __init__(self, sandbox: SandboxId, *, state: SandboxState) -> None:
        super().__init__(
            f"Sandbox {sandbox} is {state.value}; what is installed can be seen only while it runs.",
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

    def takes(self, package: Package) -> bool:
        """Tell whether a package is wanted."""
        return self.manager in (None, package.key.manager) and (package.unsaved or not self.unsaved)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePage:
    """Some of what is installed, in the order of the keys."""

    packages: list[Package]
    next_token: str
    """Empty on the last page."""
    complete: bool
    root_change_time: datetime | None


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

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            SandboxNotRunningError: It does not run.
            InvalidRequestError: The token is none.
            NotImplementedYetError: Its agent is older than this.
        """
        after = _key(page_token) if page_token else None
        async with self._units.begin() as work:
            found = require_visible(await work.sandboxes.get(sandbox), caller)
            incarnation = await work.incarnations.current(sandbox)
        endpoint = incarnation.endpoint if incarnation is not None else None
        if found.state not in _RUNNING or endpoint is None:
            raise SandboxNotRunningError(sandbox, state=found.state)
        installed = await self._source.list(endpoint, timeout=min(timeout, LOOK_TIMEOUT))
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        wanted = sorted(
            (one for one in installed.packages if selection.takes(one) and (after is None or one.key > after)),
            key=lambda one: one.key,
        )
        return PackagePage(
            packages=wanted[:size],
            next_token=_token(wanted[size - 1].key) if len(wanted) > size else "",
            complete=installed.complete,
            root_change_time=installed.root_change_time,
        )


def _token(key: PackageKey) -> str:
    return base64.urlsafe_b64encode(json.dumps([key.manager, key.name, key.directory]).encode()).decode("ascii")


def _key(token: str) -> PackageKey:
    try:
        manager, name, directory = map(str, json.loads(base64.urlsafe_b64decode(token)))
        return PackageKey(manager=PackageManager(manager), name=name, directory=directory)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequestError(
            "The page token is none of this list.",
            violations=[FieldViolation(field="page_token", description="must be a next_page_token")],
        ) from error
