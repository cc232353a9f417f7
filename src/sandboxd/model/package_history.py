"""What the service keeps of a sandbox's packages: the last known set, what of it is unsaved, and its history. Pure.

Moments of the record are the service's own, of when it came to know something: a sandbox's clock decides nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sandboxd.model.ids import IncarnationId, SandboxId, SessionId
from sandboxd.model.packages import (
    InstalledPackages,
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackagePlace,
    difference,
)

MAX_CHANGES: Final = 5000
"""Changes that are kept of one sandbox; the oldest go. A desktop with all that belongs to it is 3,000."""
MAX_IMAGE_CHANGES: Final = 1000
"""Changes between two lives that are kept as such; what is installed is whole in any case."""
MAX_SEQUENCE: Final = 1 << 62
"""A larger number no honest agent gives."""
HISTORY_KEPT_FOR: Final = timedelta(days=400)
"""How long a change is kept: a year, and the month in which somebody looks back at it."""


class Requester(StrEnum):
    """Who changed a package, as far as it can be told."""

    SESSION = "session"
    """The CLI, in a turn of a session."""
    TERMINAL = "terminal"
    """A process at a terminal."""
    IMAGE = "image"
    """Nobody in the sandbox: it began a life from an image that has it otherwise, or lost what no image had."""
    UNKNOWN = "unknown"
    """Several can have done it, or none that we know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asked for a change."""

    requester: Requester = Requester.UNKNOWN
    session: SessionId | None = None
    """Of a SESSION, where only one had a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptChange:
    """A change as it is kept."""

    number: int
    """Position in the sandbox's history, from 1, without gaps."""
    incarnation: IncarnationId
    change: PackageChange
    """As it was told. Its `sequence` is the agent's, and below 0 where the service found it between two lives."""
    kept_time: datetime
    """When the service came to know it."""
    asked: Asked = field(default_factory=Asked)
    saved: bool = False
    """True where it needs no commit (home volume, image), or one has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPackage:
    """A package of the last known set."""

    package: Package
    unsaved_time: datetime | None = None
    """When it was last noticed to have changed on the root file system, unless a commit has it since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRecord:
    """What is known of one sandbox's packages, in its present life or the last one."""

    sandbox: SandboxId
    incarnation: IncarnationId
    owner: str = ""
    """Id of the replica that watches; empty where none does."""
    sequence: int = 0
    """The agent's last number that was kept: each is taken once."""
    number: int = 0
    """Of the last change in the history."""
    known: Mapping[PackageKey, KnownPackage] = field(default_factory=dict)
    """Until the first look in a life: what the life before had."""
    looked: bool = False
    """True once the whole set of this life was seen."""
    complete: bool = False
    """False where a database could not be read."""
    root_change_time: datetime | None = None
    """By the sandbox's clock: latest change seen in the root file system in this life, packages or not."""
    look_time: datetime | None = None
    """When news came last."""
    dirty_since: datetime | None = None
    """First change of the root file system that no commit has; None where none is known."""
    other_unsaved_time: datetime | None = None
    """Latest such change that is no package of `known`: one was removed, or something else was changed."""
    saved_time: datetime | None = None
    """Moment of the last commit's capture in this life."""
    saved_sequence: int = 0
    """Changes up to this number are in it, whenever they become known."""
    saved_root_time: datetime | None = None
    """So are changes of the root up to this moment of the sandbox's clock."""
    missed: int = 0
    """Changes of this life that the agent numbered and nobody told."""

    @property
    def unsaved_packages(self) -> int:
        """How many packages would be gone, or back at another version, with the compute."""
        return sum(one.unsaved_time is not None for one in self.known.values())

    def has(self, installed: InstalledPackages) -> bool:
        """Tell whether everything that an agent says is in it."""
        return self.sequence >= installed.sequence and _covers(self.root_change_time, installed.root_change_time)

    def living(self, incarnation: IncarnationId) -> PackageRecord:
        """Return the record of a life: this one, or a new one in which nothing is unsaved."""
        if incarnation == self.incarnation:
            return self
        return PackageRecord(
            sandbox=self.sandbox,
            incarnation=incarnation,
            owner=self.owner,
            number=self.number,
            known={key: KnownPackage(package=one.package) for key, one in self.known.items()},
            # The difference to a set that was not whole would be no difference.
            complete=self.looked and self.complete,
        )

    def changed(
        self,
        changes: Sequence[PackageChange],
        *,
        at: datetime,
        asked: Callable[[PackageChange], Asked] = lambda _: Asked(),
    ) -> tuple[PackageRecord, list[KeptChange]]:
        """Take changes that an agent told: those that were not taken before, in their order."""
        kept: list[KeptChange] = []
        known, record = dict(self.known), self
        for change in changes:
            if not record.sequence < change.sequence <= MAX_SEQUENCE:
                continue
            key, removed = change.package.key, change.kind is PackageChangeKind.REMOVED
            at_risk = change.package.place is PackagePlace.ROOT
            saved = not at_risk or change.sequence <= record.saved_sequence
            record = replace(
                record,
                sequence=change.sequence,
                number=record.number + 1,
                missed=record.missed + change.sequence - record.sequence - 1,
                dirty_since=record.dirty_since if saved else record.dirty_since or at,
                other_unsaved_time=at if removed and not saved else record.other_unsaved_time,
            )
            if removed:
                known.pop(key, None)
            else:
                known[key] = KnownPackage(package=change.package, unsaved_time=None if saved else at)
            kept.append(
                KeptChange(
                    number=record.number,
                    incarnation=record.incarnation,
                    change=change,
                    kept_time=at,
                    asked=asked(change),
                    saved=saved,
                )
            )
        return replace(record, known=known, look_time=at), kept

    def seen(self, installed: InstalledPackages, *, at: datetime) -> tuple[PackageRecord, list[KeptChange]]:
        """Take what an agent says is installed; answers what was otherwise when the life before ended, at its first."""
        if installed.sequence < self.sequence:
            return self, []  # from before changes that were taken
        between = [] if self.looked else self._between_lives(installed, at=at)
        known = {one.key: self._known(one, installed, at=at) for one in installed.packages}
        root_time = _later(self.root_change_time, installed.root_change_time)
        root_changed = root_time != self.root_change_time and not _covers(self.saved_root_time, root_time)
        unsaved = [at] if root_changed else []
        unsaved.extend(one.unsaved_time for one in known.values() if one.unsaved_time is not None)
        sequence = min(installed.sequence, MAX_SEQUENCE)
        return (
            replace(
                self,
                sequence=sequence,
                number=self.number + len(between),
                known=known,
                looked=True,
                complete=installed.complete,
                root_change_time=root_time,
                look_time=at,
                dirty_since=self.dirty_since or min(unsaved, default=None),
                other_unsaved_time=at if root_changed else self.other_unsaved_time,
                missed=self.missed + sequence - self.sequence,
            ),
            between,
        )

    def saved(self, *, captured_at: datetime, seen: InstalledPackages | None = None) -> PackageRecord:
        """Take that a commit has what was there at a moment; what was noticed after it stays unsaved.

        Args:
            captured_at: When the capture was asked for, by the service's clock.
            seen: What the agent said before that, if it was asked: that is in the commit, too, also where the news of
                it come later.
        """
        captured = {} if seen is None else {one.key: one.version for one in seen.packages}
        known = {
            key: replace(one, unsaved_time=None)
            if one.unsaved_time is not None
            and (one.unsaved_time <= captured_at or captured.get(key) == one.package.version)
            else one
            for key, one in self.known.items()
        }
        other = self.other_unsaved_time
        all_seen = seen is not None and self.sequence <= seen.sequence
        if other is not None and (
            other <= captured_at
            or (all_seen and seen is not None and _covers(seen.root_change_time, self.root_change_time))
        ):
            other = None
        left = [one.unsaved_time for one in known.values() if one.unsaved_time is not None]
        return replace(
            self,
            known=known,
            other_unsaved_time=other,
            dirty_since=min(left if other is None else [*left, other], default=None),
            saved_time=max(captured_at, self.saved_time or captured_at),
            saved_sequence=max(self.saved_sequence, 0 if seen is None else seen.sequence),
            saved_root_time=_later(self.saved_root_time, None if seen is None else seen.root_change_time),
        )

    def _known(self, package: Package, installed: InstalledPackages, *, at: datetime) -> KnownPackage:
        if not package.unsaved:
            return KnownPackage(package=package)
        before = self.known.get(package.key)
        same = before is not None and before.package.version == package.version
        if before is not None and same and (self.looked or before.unsaved_time is not None):
            return KnownPackage(package=package, unsaved_time=before.unsaved_time)
        saved = 0 < installed.sequence <= self.saved_sequence
        return KnownPackage(package=package, unsaved_time=None if saved else at)

    def _between_lives(self, installed: InstalledPackages, *, at: datetime) -> list[KeptChange]:
        if not (self.complete and installed.complete and self.known):
            return []
        before = {key: one.package for key, one in self.known.items()}
        after = {one.key: one for one in installed.packages}
        # What came in this life has a number of its own, and is told or missed by that.
        found = [
            (kind, package, old)
            for kind, package, old in difference(before, after)
            if kind is PackageChangeKind.REMOVED or package.initial
        ][:MAX_IMAGE_CHANGES]
        return [
            KeptChange(
                number=self.number + position,
                incarnation=self.incarnation,
                change=PackageChange(sequence=-position, kind=kind, package=package, old_version=old, time=at),
                kept_time=at,
                asked=Asked(
                    requester=Requester.IMAGE if package.place is PackagePlace.ROOT else Requester.UNKNOWN,
                ),
                saved=True,
            )
            for position, (kind, package, old) in enumerate(found, start=1)
        ]


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((moment for moment in (one, other) if moment is not None), default=None)


def _covers(saved: datetime | None, changed: datetime | None) -> bool:
    return changed is None or (saved is not None and changed <= saved)
