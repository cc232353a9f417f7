"""`sandboxctl clients backups`: how often a client's sandboxes are backed up, and which backups are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from sandboxd.ctl.commands.accounts import change_client, tell_changed
from sandboxd.ctl.commands.lifecycle import parse_span
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.v1 import client_pb2 as pb

_DEFAULT: Final = "default"
_NEVER: Final = "never"
_NO: Final = "no"
_MOST: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """What a client's backups shall be; empty leaves things as they are, `default` takes the installation's."""

    every: str = ""
    keep_last: str = ""
    keep_daily: str = ""
    keep_weekly: str = ""
    immutable_for: str = ""

    def apply(self, policy: pb.ClientPolicy) -> list[str]:
        """Write what was said into a policy, and return the paths that changed.

        Raises:
            UsageError: It is no span, or no number.
        """
        paths = list[str]()
        if self.every:
            policy.ClearField("backup_every")
            if self.every == _NEVER:
                policy.backup_every.seconds = 0
                policy.backup_every.SetInParent()
            elif self.every != _DEFAULT:
                policy.backup_every.FromTimedelta(parse_span(self.every))
            paths.append("policy.backup_every")
        if any((self.keep_last, self.keep_daily, self.keep_weekly, self.immutable_for)):
            self._keep(policy)
            paths.append("policy.backup_retention")
        return paths

    def _keep(self, policy: pb.ClientPolicy) -> None:
        kept = policy.backup_retention
        counts: tuple[tuple[Literal["keep_last", "keep_daily", "keep_weekly"], str], ...] = (
            ("keep_last", self.keep_last),
            ("keep_daily", self.keep_daily),
            ("keep_weekly", self.keep_weekly),
        )
        for name, said in counts:
            if said == _DEFAULT:
                kept.ClearField(name)
            elif said:
                setattr(kept, name, _count(said))
        if self.immutable_for:
            kept.ClearField("immutable_for")
            if self.immutable_for == _NO:
                kept.immutable_for.SetInParent()
            elif self.immutable_for != _DEFAULT:
                kept.immutable_for.FromTimedelta(parse_span(self.immutable_for))
        kept.SetInParent()


async def client_backups(shell: Shell, said: str, options: BackupOptions) -> Exit:
    """Change how often a client's sandboxes are backed up, and what is kept."""
    return tell_changed(
        shell,
        await change_client(
            shell, said, lambda client: options.apply(client.policy), example="--every 12h or --immutable-for 30d"
        ),
    )


def _count(said: str) -> int:
    if not said.isdecimal() or int(said) > _MOST:
        raise UsageError(f"{said!r} is none of 0 to {_MOST}: say how many are kept, or `default`.")
    return int(said)
