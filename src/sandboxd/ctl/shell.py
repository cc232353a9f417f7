"""What every command runs in: a client, two consoles, one way to fail.

Commands return their exit code or raise; this module alone turns errors into words on stderr and a process's end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from sandboxd.ctl.advice import advise
from sandboxd.ctl.client import ApiError, Client, connect
from sandboxd.ctl.console import make_console
from sandboxd.ctl.exits import Exit, of_status
from sandboxd.ctl.jsonlines import to_line
from sandboxd.ctl.sanitize import clean, clean_line
from sandboxd.ctl.target import SetupError, TargetOptions, find

if TYPE_CHECKING:
    from google.protobuf.message import Message


class UsageError(Exception):
    """The command line says something that cannot be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """One run of one command."""

    client: Client
    address: str
    json: bool
    """JSON lines instead of text."""
    out: Console
    err: Console

    def emit(self, message: Message) -> None:
        """Write one message as a line of JSON."""
        write_line(to_line(message))

    def say(self, text: str, style: str = "") -> None:
        """Write a line for people; on stderr where stdout is for programs."""
        (self.err if self.json else self.out).print(Text(clean(text), style=style))


def write_line(line: str) -> None:
    """Write a line to stdout at once: who follows a stream must not wait for a buffer to fill."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(options: TargetOptions, work: Callable[[Shell], Awaitable[Exit]], *, as_json: bool) -> NoReturn:
    """Connect, do the work, end the process with its exit code."""
    err = make_console(stderr=True)
    try:
        code = asyncio.run(_run(options, work, as_json=as_json, err=err))
    except SetupError as error:
        code = error.exit_code
        _fail(err, as_json, message=error.message, advice=error.advice, code=code, reason="NOT_SET_UP")
    except ApiError as error:
        code = _tell(error, options, err, as_json)
    except UsageError as error:
        code = Exit.USAGE
        _fail(err, as_json, message=str(error), code=code, reason="USAGE")
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = Exit.INTERRUPTED
        if not as_json:
            err.print(Text("Interrupted.", style="yellow"))
    except BrokenPipeError:
        # Python would complain once more while it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.PIPE
    raise typer.Exit(int(code))


async def _run(
    options: TargetOptions, work: Callable[[Shell], Awaitable[Exit]], *, as_json: bool, err: Console
) -> Exit:
    credentials = find(options)
    credentials.read_token()  # tell now, not in the middle of something
    async with connect(
        credentials.address, token=credentials.read_token, tls=credentials.tls, for_client=credentials.for_client
    ) as client:
        shell = Shell(client=client, address=credentials.address, json=as_json, out=make_console(), err=err)
        return await work(shell)


def _tell(error: ApiError, options: TargetOptions, err: Console, as_json: bool) -> Exit:
    try:
        address = find(options).address
    except SetupError:
        address = ""
    message = error.message
    if error.code.name == "UNAVAILABLE" and not error.reason:
        message = f"The service at {address} does not answer."  # gRPC's own words are about sockets
    code = of_status(error.code.name)
    _fail(
        err,
        as_json,
        message=message,
        advice=advise(error.code.name, error.reason, error.metadata, address=address),
        code=code,
        reason=error.reason,
        error=error,
    )
    return code


def _fail(
    err: Console,
    as_json: bool,
    *,
    message: str,
    code: Exit,
    reason: str,
    advice: str = "",
    error: ApiError | None = None,
) -> None:
    violations = error.violations if error else ()
    if as_json:
        told = {
            "code": error.code.name if error else "",
            "reason": reason,
            "message": message,
            "advice": advice,
            "violations": [{"field": each.field, "description": each.description} for each in violations],
            "metadata": error.metadata if error else {},
            "retry_after_seconds": error.retry_after.total_seconds() if error and error.retry_after else None,
            "exit_code": int(code),
        }
        sys.stderr.write(json.dumps({"error": told}) + "\n")
        return
    err.print(Text.assemble(("✗ ", "bold red"), (clean(message), "red")))
    for each in violations:
        if each.description in message:  # the service tells a single one in its message, too
            continue
        err.print(Text(f"  {clean_line(each.field)}: {clean_line(each.description)}", style="red"))
    for line in advice.splitlines():
        err.print(Text(f"  {clean_line(line)}", style="yellow"))
