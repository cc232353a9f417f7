"""`sandboxctl update` and `sandboxctl clients rests`: what a sandbox is called, and when sandboxes rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from sandboxd.ctl.commands.accounts import change_client, tell_changed
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import bare, find_sandbox
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.tables import sandbox_facts
from sandboxd.v1 import client_pb2, sandbox_pb2

_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
_NEVER: Final = "never"
_DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestOptions:
    """When something shall rest; empty leaves things as they are."""

    hibernate_after: str = ""
    stop_after: str = ""
    terminate_after: str = ""
    terminate_paused_after: str = ""
    discard_root: str = ""

    @property
    def said(self) -> bool:
        """Whether anything shall change."""
        return self != RestOptions()

    def apply(self, before: sandbox_pb2.Lifecycle) -> sandbox_pb2.Lifecycle:
        """Answer wishes with what was said written into them."""
        changed = sandbox_pb2.Lifecycle()
        changed.CopyFrom(before)
        limits: tuple[tuple[str, sandbox_pb2.LifecycleLimit, str], ...] = (
            ("hibernate_after", changed.hibernate_after, self.hibernate_after),
            ("stop_after", changed.stop_after, self.stop_after),
            ("terminate_after", changed.terminate_after, self.terminate_after),
            ("terminate_paused_after", changed.terminate_paused_after, self.terminate_paused_after),
        )
        for name, limit, said in limits:
            if said == _DEFAULT:
                changed.ClearField(name)  # type: ignore[arg-type]  # the names are literals above
            elif said:
                limit.CopyFrom(_limit(said))
        if self.discard_root == _DEFAULT:
            changed.ClearField("discard_root_changes")
        elif self.discard_root:
            changed.discard_root_changes = self.discard_root == "yes"
        return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOptions:
    """What shall change of a sandbox; None and empty leave things as they are."""

    name: str | None = None
    model: str | None = None
    mode: str = ""
    tier: str = ""
    rests: RestOptions = RestOptions()
    keep_awake: str = ""
    timeout: float = 180.0


async def update(shell: Shell, said: str, options: UpdateOptions) -> Exit:
    """Change a sandbox: read it, write what was said, and refuse where somebody else was faster."""
    sandbox = await shell.client.get(await find_sandbox(shell.client, said))
    paths = list[str]()
    if options.name is not None:
        sandbox.display_name = options.name
        paths.append("display_name")
    if options.model is not None:
        sandbox.model = options.model
        paths.append("model")
    if options.mode:
        sandbox.approval_mode = options.mode
        paths.append("approval_mode")
    if options.tier:
        sandbox.tier = sandbox_pb2.Tier.Value(f"TIER_{options.tier.upper()}")
        paths.append("tier")
    if options.rests.said:
        sandbox.lifecycle.CopyFrom(options.rests.apply(sandbox.lifecycle))
        paths.append("lifecycle")
    if options.keep_awake:
        sandbox.ClearField("keep_awake_until")
        if options.keep_awake != "no":
            sandbox.keep_awake_until.FromDatetime(datetime.now(UTC) + parse_span(options.keep_awake))
        paths.append("keep_awake_until")
    if not paths:
        raise UsageError("Say what shall change: for example --name or --keep-awake 2h.")
    changed = await shell.client.update(sandbox, paths, timeout=options.timeout)
    if shell.json:
        shell.emit(changed)
        return Exit.OK
    shell.say(f"✓ {bare(changed.name)} is changed", "green")
    shell.out.print(sandbox_facts(changed))
    return Exit.OK


async def client_rests(shell: Shell, said: str, rests: RestOptions) -> Exit:
    """Change when a client's sandboxes rest."""

    def apply(client: client_pb2.Client) -> Sequence[str]:
        if not rests.said:
            return ()
        client.policy.lifecycle.CopyFrom(rests.apply(client.policy.lifecycle))
        return ("policy.lifecycle",)

    return tell_changed(shell, await change_client(shell, said, apply, example="--hibernate-after 30m"))


def parse_span(said: str) -> timedelta:
    """Read a span such as `90s`, `15m`, `2h` or `30d`.

    Raises:
        UsageError: It is none.
    """
    found = _SPAN.fullmatch(said)
    if found is None:
        raise UsageError(f"{said!r} is no span: say for example 90s, 15m, 2h or 30d.")
    try:
        return timedelta(seconds=float(found[1]) * _UNITS[found[2]])
    except OverflowError:
        raise UsageError(f"{said} is too long.") from None


def _limit(said: str) -> sandbox_pb2.LifecycleLimit:
    if said == _NEVER:
        return sandbox_pb2.LifecycleLimit(never=True)
    after = Duration()
    after.FromTimedelta(parse_span(said))
    return sandbox_pb2.LifecycleLimit(after=after)
