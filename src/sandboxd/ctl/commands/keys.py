"""`sandboxctl keys`. A key is read from a file or from stdin, and is shown nowhere."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from rich.text import Text

from sandboxd.ctl.commands.accounts import client_name
from sandboxd.ctl.connection import new_request_id
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.prompting import confirmed
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables_accounts import key_table
from sandboxd.v1 import key_pb2 as pb
from sandboxd.v1 import key_pb2_grpc


def stub(shell: Shell) -> key_pb2_grpc.KeyServiceAsyncStub:
    """Return the service on this shell's channel."""
    return key_pb2_grpc.KeyServiceStub(shell.client.connection.channel)


async def set_key(shell: Shell, client: str, key: str) -> Exit:
    """Give a client its key."""
    request = pb.SetKeyRequest(request_id=new_request_id(), name=key_name(client), key=key)
    return _told(shell, (await shell.client.connection.call(stub(shell).SetKey, request)).key, "is set")


async def rotate_key(shell: Shell, client: str, key: str, *, grace_minutes: int) -> Exit:
    """Replace a client's key."""
    grace = Duration(seconds=60 * grace_minutes)
    request = pb.RotateKeyRequest(request_id=new_request_id(), name=key_name(client), key=key, grace=grace)
    return _told(shell, (await shell.client.connection.call(stub(shell).RotateKey, request)).key, "is replaced")


async def revoke_key(shell: Shell, client: str, *, yes: bool) -> Exit:
    """Drop a client's key."""
    name = key_name(client)
    if not yes and not await confirmed(shell, f"Revoke {name}? Calls with it end within seconds. [y/N] "):
        shell.err.print(Text(f"{name} stays.", style="yellow"))
        return Exit.OK
    request = pb.RevokeKeyRequest(request_id=new_request_id(), name=name)
    return _told(shell, (await shell.client.connection.call(stub(shell).RevokeKey, request)).key, "is revoked")


async def list_keys(shell: Shell, client: str) -> Exit:
    """Show what is known of a client's keys."""
    request = pb.ListKeysRequest(parent=client_name(client))
    found = (await shell.client.connection.call(stub(shell).ListKeys, request)).keys
    if shell.json:
        for each in found:
            shell.emit(each)
    elif found:
        shell.out.print(key_table(found, shell.out))
    else:
        shell.err.print(Text("There is no key here. Set one with: sandboxctl keys set", style="dim"))
    return Exit.OK


def key_name(client: str) -> str:
    """Return the resource name of a client's key."""
    return f"{client_name(client)}/keys/gemini"


def _told(shell: Shell, key: pb.ApiKey, what: str) -> Exit:
    if shell.json:
        shell.emit(key)
    else:
        shell.say(f"✓ {key.name} {what}; fingerprint {key.fingerprint or '-'}", "green")
    return Exit.OK
