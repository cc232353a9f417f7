"""Finds the sandbox or session that a person means: full names, bare ids, unique display names, unique beginnings."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from sandboxd.ctl.client import ApiError, Client
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import UsageError
from sandboxd.model.ids import is_id
from sandboxd.v1 import sandbox_pb2, session_pb2

NEWEST = "last"
"""Stands for the newest session of a sandbox."""
EVERY_STATE = [name.removeprefix("SANDBOX_STATE_") for name in sandbox_pb2.SandboxState.keys()[1:]]


async def find_sandbox(client: Client, said: str, *, ended: bool = False) -> str:
    """Return the resource name of the sandbox that is meant.

    Args:
        client: Where to look.
        said: `sandboxes/…`, a bare id, a display name, or the beginning of one of them.
        ended: Look among terminated ones, too.

    Raises:
        ApiError: There is none.
        UsageError: There are several.
    """
    said = said.strip().rstrip("/")
    if said.startswith("sandboxes/") and said.count("/") == 1:
        return said
    if is_id(said, "sbx"):
        return f"sandboxes/{said}"
    if not said or "/" in said:
        raise UsageError(f"{said!r} is not the name of a sandbox.")
    found = [each async for each in client.sandboxes(states=EVERY_STATE if ended else ())]
    exact = [each for each in found if said in (bare(each.name), each.display_name)]
    begun = exact or [
        each
        for each in found
        if bare(each.name).startswith((said, f"sbx-{said}")) or each.display_name.startswith(said)
    ]
    if not begun:
        raise absent(f"There is no sandbox {said!r}.", "SANDBOX_NOT_FOUND", sandbox=said)
    if len(begun) > 1:
        raise _ambiguous(said, (f"{bare(each.name)}  {each.display_name}" for each in begun))
    return begun[0].name


async def find_session(client: Client, said: str, *, sandbox: str = "", ended: bool = True) -> str:
    """Return the resource name of the session that is meant.

    Args:
        client: Where to look.
        said: `sandboxes/…/sessions/…`, a bare id, the beginning of one, a title, or `last`; with `SANDBOX/` in front to
            say where.
        sandbox: Resource name of the sandbox to look in; empty looks in all.
        ended: Look in terminated sandboxes, too.

    Raises:
        ApiError: There is none.
        UsageError: There are several, or `last` came without a sandbox.
    """
    said = said.strip().rstrip("/")
    if said.startswith("sandboxes/"):
        if said.count("/") == 3:
            return said
        sandbox, said = "/".join(said.split("/")[:2]), said.split("/", 2)[-1] if said.count("/") == 2 else NEWEST
    elif "/" in said:
        place, _, said = said.partition("/")
        sandbox = await find_sandbox(client, place, ended=ended)
    if is_id(said, "ses") and sandbox:
        return f"{sandbox}/sessions/{said}"
    if said == NEWEST and not sandbox:
        raise UsageError("`last` needs a sandbox: say SANDBOX/last.")
    places = [sandbox] if sandbox else [each.name async for each in client.sandboxes(states=EVERY_STATE)]
    begun = list[session_pb2.Session]()
    for place in places:
        async for session in client.sessions(place):
            if said == NEWEST:
                return session.name
            if bare(session.name) == said:
                return session.name
            if bare(session.name).startswith((said, f"ses-{said}")) or session.title == said:
                begun.append(session)
    if not begun:
        what = "There is no session yet." if said == NEWEST else f"There is no session {said!r}."
        raise absent(what, "SESSION_NOT_FOUND", session=said)
    if len(begun) > 1:
        raise _ambiguous(said, (f"{bare(each.name)}  {each.title}" for each in begun))
    return begun[0].name


def bare(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rpartition("/")[2]


def sandbox_of(session: str) -> str:
    """Return the resource name of a session's sandbox."""
    return session.partition("/sessions/")[0]


def absent(message: str, reason: str, **facts: str) -> ApiError:
    """Make the error that the service would answer of what is not there."""
    return ApiError(code=grpc.StatusCode.NOT_FOUND, reason=reason, message=message, metadata=facts)


def _ambiguous(said: str, found: Iterable[str]) -> UsageError:
    lines = [f"  {clean_line(each)}" for each in found]
    more = [f"  … and {len(lines) - 10} more"] if len(lines) > 10 else []
    return UsageError("\n".join([f"{said!r} may mean several; say more of it:", *lines[:10], *more]))
