"""`sandboxctl upgrade`."""

from __future__ import annotations

from rich.text import Text

from sandboxd.ctl.commands.images import exit_of, followed, tell
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import bare, find_sandbox
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables import filled
from sandboxd.v1 import image_pb2 as pb
from sandboxd.v1 import package_pb2

_BECOMES = {
    pb.REPLAY_ACTION_INSTALL: "installed again",
    pb.REPLAY_ACTION_IN_BASE: "the new base has it",
    pb.REPLAY_ACTION_IMPOSSIBLE: "lost",
}


async def upgrade(shell: Shell, said: str, *, skip: bool, request_id: str) -> Exit:
    """Upgrade the base of a sandbox's image and follow it to its end."""
    name = await find_sandbox(shell.client, said)
    image = await shell.client.images.begin_upgrade(name, skip=skip, request_id=request_id)
    image = await followed(shell, image)
    if shell.json:
        shell.emit(image)
    else:
        tell(shell, image)
    return exit_of(image)


async def plan(shell: Shell, said: str) -> Exit:
    """Show what an upgrade would do."""
    name = await find_sandbox(shell.client, said)
    found = await shell.client.images.plan_upgrade(name)
    if shell.json:
        shell.emit(found)
        return Exit.OK
    if not found.needed:
        shell.say(f"✓ {bare(name)} starts from the present base: there is nothing to upgrade", "green")
        shell.say(f"  {found.new_base}", "dim")
        return Exit.OK
    shell.say(f"{bare(found.image)} would move", "bold")
    shell.say(f"  from {found.old_base}", "dim")
    shell.say(f"  to   {found.new_base}", "dim")
    rows = [
        (
            package_pb2.PackageManager.Name(each.manager).removeprefix("PACKAGE_MANAGER_").lower(),
            clean_line(each.name),
            clean_line(each.version),
            _BECOMES.get(each.action, "-"),
        )
        for each in found.packages
    ]
    if rows:
        shell.out.print(filled(shell.out, ("MANAGER", "PACKAGE", "VERSION", "BECOMES"), rows))
    else:
        shell.err.print(Text("There are no packages to install again.", style="dim"))
    for each in found.left_out:
        paths = ", ".join(clean_line(path) for path in each.paths[:3])
        shell.say(
            f"  would be lost, {clean_line(each.reason)}: {each.count:,}{f' ({paths})' if paths else ''}", "yellow"
        )
    return Exit.OK
