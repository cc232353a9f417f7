"""`sandboxctl commit`, `images`, `sbom`, `rollback`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from sandboxd.ctl import following
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.figures import amount, count, span
from sandboxd.ctl.images import IN_FLIGHT
from sandboxd.ctl.names import absent, bare, find_sandbox
from sandboxd.ctl.sanitize import WHY_CHARACTERS, clean_line
from sandboxd.ctl.shell import Shell, UsageError, write_line
from sandboxd.ctl.tables import filled, when
from sandboxd.model.image import number_of, tag_of
from sandboxd.v1 import image_pb2 as pb

_DOES = {
    pb.COMMIT_PHASE_HELD: "waiting: pushes to the registry are held",
    pb.COMMIT_PHASE_REPLAY: "installing packages on the new base",
    pb.COMMIT_PHASE_CAPTURE: "capturing",
    pb.COMMIT_PHASE_PUSH: "pushing",
    pb.COMMIT_PHASE_VERIFY: "asking the registry for it",
    pb.COMMIT_PHASE_PROBE: "booting it once",
    pb.COMMIT_PHASE_ACTIVATE: "making it the next start's",
}


async def commit(shell: Shell, said: str, *, dry_run: bool, request_id: str) -> Exit:
    """Commit a sandbox and follow it to its end."""
    name = await find_sandbox(shell.client, said)
    image = await shell.client.images.begin(name, dry_run=dry_run, request_id=request_id)
    image = await followed(shell, image)
    _show(shell, image)
    return exit_of(image)


async def follow(shell: Shell, said: str) -> Exit:
    """Follow the commit or upgrade that works on a sandbox now."""
    image = await followed(shell, await _in_flight(shell, said))
    _show(shell, image)
    return exit_of(image)


async def cancel(shell: Shell, said: str) -> Exit:
    """End the commit or upgrade that works on a sandbox now."""
    image = await shell.client.images.cancel((await _in_flight(shell, said)).name)
    _show(shell, image)
    return Exit.OK if image.failure.reason == "COMMIT_CANCELLED" else exit_of(image)


async def _in_flight(shell: Shell, said: str) -> pb.Image:
    name = await find_sandbox(shell.client, said)
    async for each in shell.client.images.list(name, everything=True):
        if each.status in IN_FLIGHT:
            return each
    raise absent(f"Nothing commits {bare(name)} now.", "IMAGE_NOT_FOUND", sandbox=bare(name))


def _show(shell: Shell, image: pb.Image) -> None:
    if shell.json:
        shell.emit(image)
    else:
        tell(shell, image)


def exit_of(image: pb.Image) -> Exit:
    """Say by the exit what a commit came to."""
    if image.status == pb.IMAGE_STATUS_FAILED or (image.status == pb.IMAGE_STATUS_SUPERSEDED and image.failure.reason):
        return Exit.INTERRUPTED if image.failure.reason == "COMMIT_CANCELLED" else Exit.FAILED
    return Exit.OK


async def ls(shell: Shell, said: str, *, everything: bool) -> Exit:
    """List images."""
    name = await find_sandbox(shell.client, said, ended=True)
    found = shell.client.images.list(name, everything=everything)
    if shell.json:
        async for each in found:
            shell.emit(each)
        return Exit.OK
    rows = [each async for each in found]
    if rows:
        shell.out.print(image_table(rows, shell.out, everything=everything))
    else:
        every = "" if everything else f"; what became of commits says: sandboxctl images {bare(name)} --all"
        shell.err.print(Text(f"There are no images. Make one with: sandboxctl commit {bare(name)}{every}", style="dim"))
    return Exit.OK


async def sbom(shell: Shell, said: str, wanted: str) -> Exit:
    """Print the list of an image's packages, as it is in the registry."""
    name = await find_sandbox(shell.client, said, ended=True)
    image = _image_name(name, wanted) if wanted else await _active(shell, name)
    if not image:
        shell.err.print(Text(f"No image of it is active. Make one with: sandboxctl commit {bare(name)}", style="dim"))
        return Exit.NOT_FOUND
    told, document = await shell.client.images.sbom(image)
    write_line(document.decode())
    incomplete = "" if told.complete else "; a package database could not be read"
    if shell.err.is_terminal:
        shell.err.print(Text(f"{bare(image)}: {told.packages:,} packages, {told.digest}{incomplete}", style="dim"))
    return Exit.OK


async def _active(shell: Shell, sandbox: str) -> str:
    async for each in shell.client.images.list(sandbox):
        if each.status == pb.IMAGE_STATUS_ACTIVE:
            return each.name
    return ""


def _image_name(sandbox: str, wanted: str) -> str:
    """Name an image by its tag or number.

    Raises:
        UsageError: It is neither.
    """
    number = int(wanted) if wanted.isascii() and wanted.isdigit() and 0 < int(wanted) < 10**6 else number_of(wanted)
    if number is None:
        raise UsageError(f"{wanted!r} is no image: say its tag, as g000003, or its number.")
    return f"{sandbox}/images/{tag_of(number)}"


async def rollback(shell: Shell, said: str, wanted: str) -> Exit:
    """Go back to an older image."""
    name = await find_sandbox(shell.client, said)
    image = await shell.client.images.rollback(_image_name(name, wanted))
    if shell.json:
        shell.emit(image)
        return Exit.OK
    shell.say(f"✓ the next start of {bare(name)} takes {bare(image.name)}", "green")
    shell.say(f"  Now: sandboxctl pause {bare(name)} && sandboxctl resume {bare(name)}", "dim")
    return Exit.OK


def image_table(images: Iterable[pb.Image], console: Console, *, everything: bool = False) -> Table:
    """Make the table of `images`."""
    columns = ("IMAGE", "STATUS", "LAYER", "ON NODES", "COMMITTED", "BY", *(("WHY",) if everything else ()))
    rows = [
        (
            bare(each.name),
            _status(each),
            amount(each.compressed_bytes) if each.compressed_bytes else "-",
            amount(each.raw_bytes) if each.raw_bytes else "-",
            when(each.create_time),
            pb.CommitTrigger.Name(each.trigger).removeprefix("COMMIT_TRIGGER_").lower(),
            *((clean_line(each.failure.reason or ("unchanged" if each.unchanged else "")),) if everything else ()),
        )
        for each in images
    ]
    return filled(console, columns, rows, spare=("ON NODES", "BY"))


async def followed(shell: Shell, image: pb.Image) -> pb.Image:
    """Follow a commit to its end."""
    return await following.followed(
        shell,
        "commit",
        doing="committing …",
        follow=lambda status: _last(shell, image, status),
        cancel=lambda: shell.client.images.cancel(image.name),
    )


async def _last(shell: Shell, image: pb.Image, status: Status | None) -> pb.Image:
    told = set[str]()
    async for each in shell.client.images.follow(image.name):
        image = each
        if not each.HasField("progress"):
            continue
        words = _DOES.get(each.progress.phase, "committing")
        if status is not None:
            status.update(Text(f"{bare(image.name)}: {words} {_far(each.progress)}".rstrip() + " …"))
        elif words not in told and not shell.json:  # some of it is done side by side, and each is told once
            shell.err.print(Text(f"{bare(image.name)}: {words} …", style="dim"))
        told.add(words)
    return image


def _far(progress: pb.CommitProgress) -> str:
    if progress.phase == pb.COMMIT_PHASE_REPLAY:
        return count(progress.entries, "package") if progress.entries else ""
    if progress.total_bytes:
        return f"{amount(progress.bytes)} of {amount(progress.total_bytes)}"
    if progress.entries:
        return f"{progress.entries:,} paths, {amount(progress.bytes)}"
    return ""


def tell(shell: Shell, image: pb.Image) -> None:
    """Tell what a commit came to."""
    if image.failure.reason:
        shell.err.print(
            Text(f"✗ {bare(image.name)}: {clean_line(image.failure.message, limit=WHY_CHARACTERS)}", style="red")
        )
        return
    if image.unchanged and image.trigger == pb.COMMIT_TRIGGER_UPGRADE:
        shell.say("✓ nothing had to be installed: the next start takes the base", "green")
    elif image.unchanged:
        shell.say("✓ nothing has changed: there is no new image", "green")
    elif image.dry_run:
        shell.say("✓ this would be kept; nothing was pushed", "green")
    else:
        shell.say(f"✓ the next start takes {bare(image.name)}", "green")
        shell.say(f"  {image.reference}", "dim")
    took = ", ".join(
        f"{pb.CommitPhase.Name(each.phase).removeprefix('COMMIT_PHASE_').lower()} "
        f"{span(each.duration.ToTimedelta().total_seconds())}"
        for each in image.phases
    )
    shell.say(
        f"  layer {amount(image.compressed_bytes)}, {amount(image.raw_bytes)} on nodes, {image.entries:,} entries; "
        f"image {amount(image.image_bytes)} in {image.layers} layers",
        "dim",
    )
    if took:
        shell.say(f"  took {took}", "dim")
    for each in image.left_out:
        paths = ", ".join(clean_line(path) for path in each.paths[:3])
        shell.say(f"  left out, {clean_line(each.reason)}: {each.count:,}{f' ({paths})' if paths else ''}", "dim")
    for warning in image.warnings:
        shell.say(f"  {clean_line(warning)}", "yellow")


def _status(image: pb.Image) -> str:
    return pb.ImageStatus.Name(image.status).removeprefix("IMAGE_STATUS_")
