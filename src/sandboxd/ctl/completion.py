"""Completes names: of sandboxes, sessions, images, backups, accounts, and of what is abandoned.

Within a second, or not at all; never a word of error. Imported with every command line, so it imports nothing heavy
before it is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from sandboxd.ctl.client import Client

T = TypeVar("T")
SECONDS = 1.0
MOST = 200
Suggestions = list[tuple[str, str]]


def complete_sandbox(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest ids, and display names where these can stand for themselves."""
    return _ask(context, lambda client: _sandboxes(client, incomplete))


def complete_any_sandbox(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest the same, and terminated ones with them: for what can be done with those, too."""
    return _ask(context, lambda client: _sandboxes(client, incomplete, ended=True))


def complete_session(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest sessions of the sandbox that was named before, or of the one before the slash."""
    place = str(context.params.get("sandbox") or "")
    return _ask(context, lambda client: _sessions(client, place, incomplete))


def complete_abandoned(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest what is abandoned and can be removed, to operators."""
    return _ask(context, lambda client: _abandoned(client, incomplete))


def complete_holder(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest who holds pushes, to operators."""
    return _ask(context, lambda client: _holder(client, incomplete))


def complete_client(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest ids of clients, to who may list them."""
    return _ask(context, lambda client: _clients(client, incomplete))


def complete_freelancer(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest freelancers of the client that was named before."""
    of = str(context.params.get("client") or "")
    return _ask(context, lambda client: _freelancers(client, of, incomplete))


def complete_image(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest images of the sandbox that was named before."""
    of = str(context.params.get("sandbox") or "")
    return _ask(context, lambda client: _images(client, of, incomplete))


def complete_backup(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest backups of the sandbox that was named before."""
    of = str(context.params.get("sandbox") or "")
    return _ask(context, lambda client: _backups(client, of, incomplete))


def complete_backup_of(context: typer.Context, incomplete: str) -> Suggestions:
    """Suggest sandboxes, and after the slash their backups."""
    of, slash, begun = incomplete.partition("/")
    if not slash:
        return complete_any_sandbox(context, incomplete)
    return [(f"{of}/{name}", about) for name, about in _ask(context, lambda client: _backups(client, of, begun))]


async def _backups(client: Client, of: str, incomplete: str) -> Suggestions:
    from sandboxd.ctl.names import bare, find_sandbox
    from sandboxd.v1 import backup_pb2

    found = Suggestions()
    async for each in client.backups.list(await find_sandbox(client, of, ended=True)):
        if each.status == backup_pb2.BACKUP_STATUS_COMPLETE and bare(each.name).startswith(incomplete):
            found.append((bare(each.name), each.take_time.ToDatetime().strftime("%Y-%m-%d %H:%M")))
        if len(found) >= MOST:
            break
    return found


async def _images(client: Client, of: str, incomplete: str) -> Suggestions:
    from sandboxd.ctl.names import bare, find_sandbox

    found = Suggestions()
    async for each in client.images.list(await find_sandbox(client, of, ended=True)):
        if bare(each.name).startswith(incomplete):
            found.append((bare(each.name), each.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M")))
        if len(found) >= MOST:
            break
    return found


async def _clients(client: Client, incomplete: str) -> Suggestions:
    from sandboxd.v1 import client_pb2, client_pb2_grpc

    stub = client_pb2_grpc.ClientServiceStub(client.connection.channel)
    page = await client.connection.call(stub.ListClients, client_pb2.ListClientsRequest(page_size=MOST))
    names = [(each.name.rpartition("/")[2], each.display_name) for each in page.clients]
    return [(name, about) for name, about in names if name.startswith(incomplete)]


async def _freelancers(client: Client, of: str, incomplete: str) -> Suggestions:
    from sandboxd.v1 import client_pb2, client_pb2_grpc

    stub = client_pb2_grpc.ClientServiceStub(client.connection.channel)
    request = client_pb2.ListFreelancersRequest(parent=f"clients/{of}", page_size=MOST)
    page = await client.connection.call(stub.ListFreelancers, request)
    names = [(each.name.rpartition("/")[2], each.display_name) for each in page.freelancers]
    return [(name, about) for name, about in names if name.startswith(incomplete)]


async def _sandboxes(client: Client, incomplete: str, *, ended: bool = False) -> Suggestions:
    from sandboxd.ctl.names import EVERY_STATE

    found = Suggestions()
    async for each in client.sandboxes(states=EVERY_STATE if ended else ()):
        identifier = each.name.rpartition("/")[2]
        names = (identifier, each.display_name if _is_word(each.display_name) else "")
        about = f"{each.display_name} {_state(each.state)}".strip()
        found += [(name, about) for name in names if name and name.startswith(incomplete)]
        if len(found) >= MOST:
            break
    return found


async def _abandoned(client: Client, incomplete: str) -> Suggestions:
    from sandboxd.v1 import admin_pb2

    found = [
        (f"{admin_pb2.AbandonedKind.Name(one.kind).removeprefix('ABANDONED_KIND_').lower()}:{one.name}", one.place)
        for one in (await client.admin.abandoned()).abandoned
        if one.removable
    ]
    return [one for one in found if one[0].startswith(incomplete)][:MOST]


async def _holder(client: Client, incomplete: str) -> Suggestions:
    hold = (await client.admin.status()).push_hold
    return [(hold.holder, "")] if hold.holder and hold.holder.startswith(incomplete) else []


async def _sessions(client: Client, place: str, incomplete: str) -> Suggestions:
    from sandboxd.ctl.names import bare, find_sandbox

    prefix, slash, wanted = incomplete.rpartition("/")
    place = prefix or place
    found = Suggestions()
    sandboxes = [await find_sandbox(client, place)] if place else [each.name async for each in client.sandboxes()]
    for sandbox in sandboxes:
        async for each in client.sessions(sandbox):
            if bare(each.name).startswith(wanted):
                found.append((f"{prefix}{slash}{bare(each.name)}", " ".join(each.title.split())[:60]))
            if len(found) >= MOST:
                return found
    return found


def _ask(context: typer.Context, question: Callable[[Client], Awaitable[Suggestions]]) -> Suggestions:
    """Ask the service, quickly; whatever goes wrong is no completion, and no noise at the person's prompt."""
    try:
        return asyncio.run(_bounded(context, question))
    except Exception:  # noqa: BLE001  # a shell that completes must never print a traceback
        return []


async def _bounded(context: typer.Context, question: Callable[[Client], Awaitable[Suggestions]]) -> Suggestions:
    from sandboxd.ctl.backoff import RetryPolicy
    from sandboxd.ctl.client import connect
    from sandboxd.ctl.target import TargetOptions, TlsOptions, find

    said = context.find_root().params
    options = TargetOptions(
        address=said.get("address") or "",
        token=said.get("token") or "",
        token_file=said.get("token_file"),
        tls=TlsOptions(ca_file=said.get("ca_file"), cert_file=said.get("cert"), cert_key_file=said.get("cert_key")),
        for_client=said.get("for_client") or "",
    )
    credentials = find(options)
    async with asyncio.timeout(SECONDS):
        async with connect(
            credentials.address,
            token=credentials.read_token,
            tls=credentials.tls,
            for_client=credentials.for_client,
            retry=RetryPolicy(),
        ) as client:
            return await question(client)


def _is_word(text: str) -> bool:
    return bool(text) and all(each.isalnum() or each in "-_." for each in text)


def _state(state: int) -> str:
    from sandboxd.v1 import sandbox_pb2

    return sandbox_pb2.SandboxState.Name(sandbox_pb2.SandboxState.ValueType(state)).removeprefix("SANDBOX_STATE_")
