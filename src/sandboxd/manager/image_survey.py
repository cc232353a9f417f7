"""Looks at every repository of ours: what stays and why, what may go, what nobody knows of, and what is missing.

It deletes nothing. What it writes down is only when images were seen in use, and since when something is an orphan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sandboxd.images.referrers import subject_of_tag, tag_of_subject
from sandboxd.images.registry import Registry
from sandboxd.images.signatures import SIGNATURE_TAG
from sandboxd.manager.image_care_ports import ImageSightings
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.errors import NotFoundError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.image import LATEST, Generation, GenerationStatus, number_of
from sandboxd.model.image_keeping import (
    KeepingFacts,
    KeepingPolicy,
    Stay,
    Verdict,
    digest_of,
    has_image,
    judge,
)
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock

PAGE: Final = 200
LISTED: Final = 1000
"""Images that stay, of which a survey tells at most."""
ASK_TIMEOUT: Final = timedelta(seconds=20)
"""For one question to the registry."""
_G = GenerationStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A manifest with our tags that no row knows of."""

    client: ClientId
    freelancer: FreelancerId
    repository: str
    digest: str
    tags: Sequence[str]
    stay: Stay | None
    """None: it goes."""
    by: str = ""


@dataclass(slots=True, kw_only=True)
class ImageFindings:
    """What a survey found."""

    going: list[Verdict] = field(default_factory=list)
    """At most as many as were wanted."""
    staying: list[Verdict] = field(default_factory=list)
    """At most `LISTED`."""
    orphans: list[Orphan] = field(default_factory=list)
    """Those that go are at most as many as were wanted, those that stay at most `LISTED`."""
    lost: list[Generation] = field(default_factory=list)
    """Started from or rolled back to, and the registry has them no more."""
    untagged: list[Generation] = field(default_factory=list)
    """The registry has them without their tag: its garbage collection would take them."""
    unsigned: list[Generation] = field(default_factory=list)
    """Images that stay and were booted, and that nobody has signed; as many as wanted."""
    left_over: list[tuple[str, str]] = field(default_factory=list)
    """Repository and digest of images that are gone, and to which something is still attached; as many as wanted."""
    checked: int = 0
    """Images that the registry must have."""
    kept: int = 0
    """Images that stay."""
    waiting: int = 0
    """Images and orphans that go, beyond those that were wanted."""


class ImageSurvey:
    """Looks, one repository after the other: never more than one of them is in memory."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        registry: Registry,
        registry_name: str,
        repository_of: Callable[[ClientId, FreelancerId], str],
        sightings: ImageSightings,
        policy: KeepingPolicy,
        clock: Clock,
    ) -> None:
        self._units = units
        self._registry = registry
        self._registry_name = registry_name
        self._repository_of = repository_of
        self._sightings = sightings
        self._policy = policy
        self._clock = clock

    async def look(self, names: Mapping[str, str], *, limit: int) -> ImageFindings:
        """Look at every repository that a freelancer has, or had.

        Args:
            names: Digest to what names it, outside the rows.
            limit: How many that go are wanted.

        Raises:
            UnavailableError, DeadlineError: The registry does not answer.
        """
        found = ImageFindings()
        after: tuple[ClientId, FreelancerId] | None = None
        while True:
            async with self._units.begin() as work:
                owners = await work.generations.owners(limit=PAGE, after=after)
            for client, freelancer in owners:
                await self._repository(client, freelancer, names, found, limit=limit)
            if len(owners) < PAGE:
                return found
            after = owners[-1]

    async def _repository(
        self, client: ClientId, freelancer: FreelancerId, names: Mapping[str, str], found: ImageFindings, *, limit: int
    ) -> None:
        repository = self._repository_of(client, freelancer)
        # Tags first: a commit has its row before it pushes, so what has a tag by now and no row is in nobody's hands.
        tags = await self._registry.tags(repository, timeout=ASK_TIMEOUT)
        numbers = [number for tag in tags if (number := number_of(tag)) is not None]
        async with self._units.begin() as work:
            rows = await work.generations.of_owner(client, freelancer, numbers=numbers)
            sandboxes = [await work.sandboxes.get(one) for one in sorted({row.sandbox for row in rows})]
        if not rows and not tags:
            return
        names = {**_named_by_rows(sandboxes), **names}
        now = self._clock.now()
        used = [digest for row in rows if (digest := digest_of(row)) and digest in names]
        await self._sightings.note_used(repository, used, at=now)
        facts = KeepingFacts(
            registry=self._registry_name,
            repository=repository,
            names=names,
            last_use=await self._sightings.last_used(repository),
            ended=frozenset(one.id for one in sandboxes if one.state is SandboxState.TERMINATED),
        )
        verdicts = judge(rows, facts, policy=self._policy, now=now)
        for verdict in verdicts:
            if verdict.stay is None and len(found.going) < limit:
                found.going.append(verdict)
            elif verdict.stay is None:
                found.waiting += 1
            else:
                found.kept += 1
                if len(found.staying) < LISTED:
                    found.staying.append(verdict)
        _note_unsigned(verdicts, frozenset(tags), found, limit=limit)
        await self._missing(repository, verdicts, tags, found)
        held = {subject for row in rows if has_image(row) and (subject := digest_of(row))}
        others = [tag for tag in tags if subject_of_tag(tag) not in held]
        await self._left_over(repository, others, found, limit=limit)
        for orphan in await self._orphans((client, freelancer), repository, rows, tags, names):
            same = sum((one.stay is None) is (orphan.stay is None) for one in found.orphans)
            if same < (limit if orphan.stay is None else LISTED):
                found.orphans.append(orphan)
            else:
                found.waiting += orphan.stay is None

    async def _missing(
        self, repository: str, verdicts: Sequence[Verdict], tags: Sequence[str], found: ImageFindings
    ) -> None:
        """Find those that a start or a rollback would not find. Active ones are asked for; a tag vouches for others."""
        there = frozenset(tags)
        for verdict in verdicts:
            one = verdict.generation
            needed = one.status is _G.ACTIVE or (one.status is _G.SUPERSEDED and one.bootable)
            if not needed or verdict.stay in (None, Stay.ELSEWHERE):
                continue
            if (one.registry, one.repository) != (self._registry_name, repository):
                continue
            found.checked += 1
            if one.status is not _G.ACTIVE and one.tag in there:
                continue
            if not await self._has(repository, digest_of(one)):
                found.lost.append(one)
            elif one.tag not in there:
                found.untagged.append(one)

    async def _left_over(self, repository: str, tags: Sequence[str], found: ImageFindings, *, limit: int) -> None:
        """Find what is attached to images that the registry has no more: an image is there before anything of it."""
        for subject in sorted({subject for tag in tags if (subject := subject_of_tag(tag)) is not None}):
            if len(found.left_over) >= limit:
                return
            if not await self._has(repository, subject):
                found.left_over.append((repository, subject))

    async def _has(self, repository: str, digest: str) -> bool:
        try:
            await self._registry.manifest(repository, digest, timeout=ASK_TIMEOUT)
        except NotFoundError:
            return False
        return True

    async def _orphans(
        self,
        owner: tuple[ClientId, FreelancerId],
        repository: str,
        rows: Sequence[Generation],
        tags: Sequence[str],
        names: Mapping[str, str],
    ) -> Sequence[Orphan]:
        """What has a tag of ours and no row that has an image; `latest` is one only where there is no image at all."""
        known = {row.number for row in rows if has_image(row)}
        held = {digest_of(row) for row in rows if has_image(row)}
        tagged: defaultdict[str, list[str]] = defaultdict(list)
        for tag in tags:
            number = number_of(tag)
            if number in known or (number is None and (tag != LATEST or known)):
                continue
            try:
                digest = (await self._registry.manifest(repository, tag, timeout=ASK_TIMEOUT)).digest
            except NotFoundError:
                continue
            if digest not in held:
                tagged[digest].append(tag)
        now = self._clock.now()
        since = await self._sightings.note_orphans(repository, [*tagged], at=now)
        committing = any(row.status.in_flight for row in rows)
        found = []
        for digest, its_tags in sorted(tagged.items()):
            stay = None
            if digest in names:
                stay = Stay.NAMED
            elif committing:
                stay = Stay.COMMITTING
            elif now - since[digest] < self._policy.grace:
                stay = Stay.GRACE
            found.append(
                Orphan(
                    client=owner[0],
                    freelancer=owner[1],
                    repository=repository,
                    digest=digest,
                    tags=sorted(its_tags),
                    stay=stay,
                    by=names.get(digest, "") if stay is Stay.NAMED else "",
                )
            )
        return found


def _named_by_rows(sandboxes: Sequence[Sandbox]) -> Mapping[str, str]:
    named = {}
    for sandbox in sandboxes:
        if sandbox.image is not None:
            named[sandbox.image.reference.rpartition("@")[2]] = f"sandbox {sandbox.id}"
    return named


def _note_unsigned(verdicts: Sequence[Verdict], tags: frozenset[str], found: ImageFindings, *, limit: int) -> None:
    for verdict in verdicts:
        one = verdict.generation
        stays = verdict.stay not in (None, Stay.ELSEWHERE) and one.bootable and one.tag in tags
        if stays and tag_of_subject(digest_of(one), SIGNATURE_TAG) not in tags and len(found.unsigned) < limit:
            found.unsigned.append(one)
