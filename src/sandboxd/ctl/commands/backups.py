"""`sandboxctl backups create`, `follow`, `cancel`, `ls`, `show`, `rm`, and `restore`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from rich.status import Status
from rich.text import Text

from sandboxd.ctl import following
from sandboxd.ctl.client import ApiError
from sandboxd.ctl.commands.lifecycle import parse_span
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.figures import amount
from sandboxd.ctl.names import absent, bare, find_sandbox
from sandboxd.ctl.prompting import confirmed
from sandboxd.ctl.sanitize import WHY_CHARACTERS, clean_line
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.tables import when
from sandboxd.ctl.tables_backups import backup_table, consistency_of, kept_line, policy_line
from sandboxd.model.ids import is_id
from sandboxd.v1 import backup_pb2 as pb
from sandboxd.v1.sandbox_pb2 import Sandbox

LOOK_AGAIN: Final = 0.3
"""Seconds until a restore that was asked for is looked for again, until it has begun."""
_DOING: Final[Mapping[pb.RestoreStep.ValueType, str]] = {
    pb.RESTORE_STEP_PREPARING: "backing up what it has now:",
    pb.RESTORE_STEP_VOLUMES: "restoring",
    pb.RESTORE_STEP_STARTING: "starting, with",
}


async def create(
    shell: Shell, said: str, *, request_id: str, freeze: bool = False, or_running: bool = False, freeze_for: str = ""
) -> Exit:
    """Back a sandbox up and follow it to its end."""
    wish, longest = pb.BACKUP_FREEZE_UNSPECIFIED, parse_span(freeze_for) if freeze_for else None
    if freeze:
        wish = pb.BACKUP_FREEZE_IF_POSSIBLE if or_running else pb.BACKUP_FREEZE_REQUIRED
    elif or_running or freeze_for:
        raise UsageError("--or-running and --freeze-for say more of --freeze: give that, too.")
    name = await find_sandbox(shell.client, said, ended=True)
    begun = await shell.client.backups.begin(name, request_id=request_id, freeze=wish, freeze_at_most=longest)
    return _show(shell, await _followed(shell, begun))


async def follow(shell: Shell, said: str) -> Exit:
    """Follow the backup of a sandbox that is being made."""
    return _show(shell, await _followed(shell, await _in_the_making(shell, said)))


async def cancel(shell: Shell, said: str) -> Exit:
    """End the backup of a sandbox that is being made."""
    backup = await shell.client.backups.cancel((await _in_the_making(shell, said)).name)
    ended = _show(shell, backup)
    return Exit.OK if backup.failure.reason == "BACKUP_CANCELLED" else ended


async def _in_the_making(shell: Shell, said: str) -> pb.Backup:
    name = await find_sandbox(shell.client, said, ended=True)
    async for each in shell.client.backups.list(name):
        if each.status == pb.BACKUP_STATUS_CREATING:
            return each
    raise absent(f"No backup of {bare(name)} is being made.", "BACKUP_NOT_FOUND", sandbox=bare(name))


def _show(shell: Shell, backup: pb.Backup) -> Exit:
    """Tell what a backup came to, also by the exit."""
    if shell.json:
        shell.emit(backup)
    else:
        _tell(shell, backup)
    if backup.status == pb.BACKUP_STATUS_FAILED:
        return Exit.INTERRUPTED if backup.failure.reason == "BACKUP_CANCELLED" else Exit.FAILED
    return Exit.OK


async def ls(shell: Shell, said: str, *, everything: bool) -> Exit:
    """List backups."""
    name = await find_sandbox(shell.client, said, ended=True)
    found = shell.client.backups.list(name, deleted=everything)
    if shell.json:
        async for each in found:
            shell.emit(each)
        return Exit.OK
    rows = [each async for each in found]
    if rows:
        shell.out.print(backup_table(rows, shell.out))
        policy = await shell.client.backups.policy(name)
        if policy is not None:
            shell.err.print(Text(policy_line(policy), "dim"))
    else:
        shell.err.print(Text(f"There are no backups. Make one with: sandboxctl backups create {bare(name)}", "dim"))
    return Exit.OK


async def show(shell: Shell, said: str, wanted: str) -> Exit:
    """Show one backup."""
    answer = await shell.client.backups.look(await find_backup(shell, said, wanted))
    if shell.json:
        shell.emit(answer.backup)
        return Exit.OK
    _tell(shell, answer.backup)
    if answer.HasField("policy"):
        shell.say(f"  {policy_line(answer.policy)}", "dim")
    return Exit.OK


async def rm(shell: Shell, said: str, wanted: str, *, yes: bool, give_up: bool = False) -> Exit:
    """Delete a backup, after a question unless told otherwise."""
    name = await find_backup(shell, said, wanted)
    if not yes and not await confirmed(shell, f"Delete {bare(name)} for good? [y/N] "):
        shell.err.print(Text(f"{bare(name)} stays.", style="yellow"))
        return Exit.OK
    backup = await shell.client.backups.delete(name, give_up=give_up)
    if shell.json:
        shell.emit(backup)
        return Exit.OK
    shell.say(f"✓ {bare(backup.name)} is gone: a fresh listing of the repository has none of it", "green")
    for snapshot in backup.deletion.snapshots:
        shell.say(f"  {clean_line(snapshot)}", "dim")
    return Exit.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What is restored, and into what."""

    backup: str = ""
    """Its id or the end of it; empty: what a terminated sandbox ended with, and for another sandbox the newest."""
    paths: Sequence[str] = ()
    into: str = ""
    """Another sandbox, or the name of a new one; empty: the sandbox itself."""
    workspace_only: bool = False
    timeout: float = 600.0


async def restore(shell: Shell, said: str, options: RestoreOptions) -> Exit:
    """Bring a sandbox back to what a backup has, or another one, or a new one."""
    name = await find_sandbox(shell.client, said, ended=True)
    some = [_volume_path(each) for each in options.paths]
    if options.backup:
        backup = await find_backup(shell, name, options.backup)
    else:
        backup = await _newest(shell, name) if options.into else ""
    target = await _named(shell, options.into) if options.into else name
    if target:
        sandbox = await following.followed(
            shell,
            "restore",
            doing="restoring …",
            follow=lambda status: _restored(shell, target, backup, some, options, status),
            cancel=lambda: shell.client.backups.cancel_restore(target),
        )
    elif some:
        raise UsageError(f"There is no sandbox {options.into!r}: into a new one all comes, or the workspace alone.")
    else:
        sandbox = await shell.client.create(
            display_name=options.into,
            from_backup=backup,
            workspace_only=options.workspace_only,
            timeout=options.timeout,
        )
    if shell.json:
        shell.emit(sandbox)
    else:
        made = "is back" if target == name else "has what was wanted" if target else "is made"
        shell.say(f"✓ {bare(sandbox.name)} {made}{f' from {bare(backup)}' if backup else ''}, and runs", "green")
    return Exit.OK


async def cancel_restore(shell: Shell, said: str) -> Exit:
    """End the restore of a sandbox."""
    name = await find_sandbox(shell.client, said, ended=True)
    told = await shell.client.backups.cancel_restore(name)
    if shell.json:
        shell.emit(await shell.client.get(name))
    else:
        shell.say(f"✓ {bare(name)} is as it was: {clean_line(told, limit=WHY_CHARACTERS)}", "green")
    return Exit.OK


async def _restored(
    shell: Shell,
    target: str,
    backup: str,
    paths: Sequence[tuple[str, bytes]],
    options: RestoreOptions,
    status: Status | None,
) -> Sandbox:
    """Restore, and show how far it is meanwhile."""
    showing = None if status is None else asyncio.create_task(_show_restore(shell, target, status), name="show-restore")
    try:
        return await shell.client.restore(
            target, backup=backup, paths=paths, workspace_only=options.workspace_only, timeout=options.timeout
        )
    finally:
        if showing is not None:
            showing.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await showing


async def _show_restore(shell: Shell, target: str, status: Status) -> None:
    while True:
        try:
            async for each in shell.client.backups.follow_restore(target):
                far = _far(each.progress) if each.HasField("progress") else ""
                status.update(Text(f"{bare(target)}: {_DOING.get(each.step, 'restoring')} {far}…"))
        except ApiError as error:
            if error.reason != "RESTORE_NOT_RUNNING":  # of one that begins now
                raise
        await asyncio.sleep(LOOK_AGAIN)


async def find_source(shell: Shell, said: str) -> str:
    """Return the name of the backup that `SANDBOX` or `SANDBOX/BACKUP` means: of a sandbox its newest one.

    Raises:
        ApiError: There is no such sandbox.
        UsageError: It has no such backup, or several may be meant.
    """
    place, _, wanted = said.removeprefix("sandboxes/").partition("/")
    name = await find_sandbox(shell.client, place, ended=True)
    return await find_backup(shell, name, wanted) if wanted else await _newest(shell, name)


async def _newest(shell: Shell, name: str) -> str:
    async for each in shell.client.backups.list(name):
        if each.status == pb.BACKUP_STATUS_COMPLETE:
            return each.name
    raise UsageError(f"{bare(name)} has no backup. Make one with: sandboxctl backups create {bare(name)}")


async def _named(shell: Shell, said: str) -> str:
    """Return the sandbox that is called exactly so; empty where a new one is meant.

    Raises:
        UsageError: Several are called so.
    """
    if said.startswith("sandboxes/") or is_id(said, "sbx"):
        return await find_sandbox(shell.client, said)
    found = [each.name async for each in shell.client.sandboxes() if each.display_name == said]
    if len(found) > 1:
        raise UsageError(f"{len(found)} sandboxes are called {said!r}: say the id of one.")
    return found[0] if found else ""


def _volume_path(said: str) -> tuple[str, bytes]:
    volume, colon, path = said.partition(":")
    if volume not in {"home", "workspace"} or not colon or not path.strip("/"):
        raise UsageError(f"{said!r} is no path in a volume: say home:PATH or workspace:PATH.")
    return volume, os.fsencode(path.strip("/"))


async def find_backup(shell: Shell, said: str, wanted: str) -> str:
    """Return the name of the one backup of a sandbox whose id ends so.

    Raises:
        ApiError: There is none.
        UsageError: There are several.
    """
    name = await find_sandbox(shell.client, said, ended=True)
    wanted = bare(wanted)
    found = [each.name async for each in shell.client.backups.list(name, deleted=True) if each.name.endswith(wanted)]
    if not found:
        raise absent(f"No backup of {bare(name)} ends with {wanted!r}.", "BACKUP_NOT_FOUND", sandbox=bare(name))
    if len(found) > 1:
        shown = ", ".join(bare(each) for each in found[:5])
        raise UsageError(f"{len(found)} backups of {bare(name)} end with {wanted!r}; say more of it: {shown}")
    return found[0]


async def _followed(shell: Shell, backup: pb.Backup) -> pb.Backup:
    """Follow a backup to its end."""
    return await following.followed(
        shell,
        "backup",
        doing="backing up …",
        follow=lambda status: _last(shell, backup, status),
        cancel=lambda: shell.client.backups.cancel(backup.name),
    )


async def _last(shell: Shell, backup: pb.Backup, status: Status | None) -> pb.Backup:
    async for each in shell.client.backups.follow(backup.name):
        backup = each
        if status is not None and each.HasField("progress"):
            status.update(Text(f"{bare(backup.name)}: {_far(each.progress)}…"))
    return backup


def _far(progress: pb.BackupProgress) -> str:
    kind = pb.BackupVolumeKind.Name(progress.kind).removeprefix("BACKUP_VOLUME_KIND_").lower()
    return f"{kind} {amount(progress.bytes)} of {amount(progress.total_bytes)} "


def _tell(shell: Shell, backup: pb.Backup) -> None:
    if backup.failure.reason:
        shell.err.print(
            Text(f"✗ {bare(backup.name)}: {clean_line(backup.failure.message, limit=WHY_CHARACTERS)}", style="red")
        )
        return
    status = pb.BackupStatus.Name(backup.status).removeprefix("BACKUP_STATUS_")
    shell.say(f"{bare(backup.name)} {status} of {when(backup.take_time)}, {consistency_of(backup) or 'not yet whole'}")
    for each in backup.volumes:
        kind = pb.BackupVolumeKind.Name(each.kind).removeprefix("BACKUP_VOLUME_KIND_").lower()
        shell.say(f"  {kind}: {_kept(backup, each)}", "dim")
    if backup.image:
        shell.say(f"  image {clean_line(backup.image)}", "dim")
    if backup.checksum:
        shell.say(f"  checksum {clean_line(backup.checksum)}", "dim")
    if kept := kept_line(backup):
        shell.say(f"  kept as: {kept}", "dim")
    if backup.HasField("lock_time"):
        shell.say(f"  immutable until {when(backup.lock_time)}, whoever asks", "dim")
    if backup.HasField("only_copy_time"):
        shell.say(f"  the volumes were released {when(backup.only_copy_time)}: it is all that is left of the sandbox")
    if backup.HasField("deletion"):
        shell.say(f"  gone since {when(backup.deletion.forget_time)}", "dim")
    for warning in backup.warnings:
        shell.say(f"  {clean_line(warning)}", "yellow")


def _kept(backup: pb.Backup, volume: pb.BackupVolume) -> str:
    """Say what is kept of a volume."""
    if backup.method == pb.BACKUP_METHOD_SNAPSHOTS:
        return f"a snapshot by its storage, restored into {amount(volume.bytes)}"
    gone = f", {volume.vanished:,} vanished" if volume.vanished else ""
    return f"{volume.files:,} files, {amount(volume.bytes)}, {amount(volume.stored_bytes)} stored{gone}"
