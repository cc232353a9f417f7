"""What can happen to a conversation: the inputs that its owner takes, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import IncarnationId, TurnId
from sandboxd.stream.cli_process import CliProcess
from sandboxd.stream.dialect import TurnBill
from sandboxd.stream.reports import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """A change that a caller asks for. It changes everything it changes, or raises and changes nothing."""

    run: Callable[[], Any]
    done: asyncio.Future[Any]
    """Gets the result when it is durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waking:
    """The sandbox is not ready and is being made so."""

    from_state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A process for the CLI was named; it is started when this is durable."""

    incarnation: IncarnationId
    process: str
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The CLI's process runs."""

    cli: CliProcess
    workspace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Headless: the sandbox is ready for runs of the CLI."""

    incarnation: IncarnationId
    workspace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """Headless: the run that was asked for has a process."""

    cli: CliProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    """The CLI could not be started."""

    error: SandboxdError


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """The ledger's answer for a turn that is finishing."""

    turn: TurnId
    bill: TurnBill


Input = Act | Report | Waking | Planned | Started | Prepared | Spawned | StartFailed | Billed
