"""Which images of one repository are kept, and why; which may go. Pure: what names an image is asked elsewhere."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.ids import SandboxId
from sandboxd.model.image import Generation, GenerationId, GenerationStatus

_G = GenerationStatus
HOLDING: Final = frozenset(_G) - {_G.DISCARDED, _G.DELETED}
"""Statuses in which a generation may have a manifest of its own in the registry."""
LOST: Final = "IMAGE_LOST"
"""Reason of the failure of a generation that the registry had, and has no more."""


class Stay(enum.Enum):
    """Why an image is kept."""

    ACTIVE = "active"
    """The sandbox's next start takes it."""
    IN_FLIGHT = "in_flight"
    """A commit works on it."""
    NAMED = "named"
    """Something names it; `by` says what."""
    PREVIOUS = "previous"
    """It is one of the last that can be rolled back to."""
    GRACE = "grace"
    """It is not needed any more, and was until a moment ago."""
    SHARED = "shared"
    """Its digest is also that of an image that is kept: a registry deletes by digest, with every tag."""
    COMMITTING = "committing"
    """A commit is in flight in its repository, which may come to the same digest."""
    ELSEWHERE = "elsewhere"
    """It lies on another registry, or below another prefix, than are in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingPolicy:
    """What is kept beside what is needed."""

    previous: int = 2
    """Of each sandbox, how many images that booted once and are not active any more."""
    grace: timedelta = timedelta(hours=24)
    """How long an image stays after it was needed last; also what the registry has and no row knows of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingFacts:
    """What is known around the generations of one repository."""

    registry: str
    """Host and port of the registry that is in use."""
    repository: str
    """The repository there, as it is called now."""
    names: Mapping[str, str]
    """Digest to what names it, for people: a pod, a StatefulSet, a backup set, a sandbox's row."""
    last_use: Mapping[str, datetime]
    """Digest to when something named it last, as far as that was seen."""
    ended: frozenset[SandboxId]
    """Sandboxes that are over: nobody rolls them back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one image."""

    generation: Generation
    stay: Stay | None
    """None: it goes."""
    by: str = ""
    """What names it, where that is why it stays."""


def judge(
    generations: Sequence[Generation], facts: KeepingFacts, *, policy: KeepingPolicy, now: datetime
) -> Sequence[Verdict]:
    """Say of each generation of one repository whether its image stays and why, by number.

    Generations that have no image of their own (discarded, deleted, failed before a push) get no verdict.
    """
    held = sorted((one for one in generations if has_image(one)), key=lambda one: one.number)
    previous = _previous(held, facts, policy)
    committing = any(one.status.in_flight for one in generations)
    verdicts = {}
    for one in held:
        stay = _by_itself(one, facts, previous=previous, policy=policy, now=now)
        if stay is None and committing:
            stay = Stay.COMMITTING
        by = facts.names.get(digest_of(one), "") if stay is Stay.NAMED else ""
        verdicts[one.id] = Verdict(generation=one, stay=stay, by=by)
    staying = {(one.registry, digest_of(one)) for one in held if verdicts[one.id].stay is not None}
    for one in held:
        if verdicts[one.id].stay is None and (one.registry, digest_of(one)) in staying:
            verdicts[one.id] = Verdict(generation=one, stay=Stay.SHARED)
    return [verdicts[one.id] for one in held]


def digest_of(generation: Generation) -> str:
    """Return the digest of a generation's manifest, empty while it has none."""
    return "" if generation.content is None else generation.content.digest


def has_image(generation: Generation) -> bool:
    """Tell whether the registry has, or may get, a manifest of this generation's own."""
    if generation.status.in_flight:
        return True
    return generation.status in HOLDING and bool(digest_of(generation)) and generation.push_time is not None


def _by_itself(
    one: Generation,
    facts: KeepingFacts,
    *,
    previous: frozenset[GenerationId],
    policy: KeepingPolicy,
    now: datetime,
) -> Stay | None:
    """Why a generation stays whatever becomes of the others; None where nothing of its own keeps it."""
    if one.status.in_flight:
        return Stay.IN_FLIGHT
    if one.status is _G.ACTIVE:
        return Stay.ACTIVE
    if (one.registry, one.repository) != (facts.registry, facts.repository):
        return Stay.ELSEWHERE
    digest = digest_of(one)
    if digest in facts.names:
        return Stay.NAMED
    if one.status is _G.DELETING:
        return None
    if one.id in previous:
        return Stay.PREVIOUS
    needed = max(one.update_time, facts.last_use.get(digest, one.update_time))
    return Stay.GRACE if now - needed < policy.grace else None


def _previous(held: Sequence[Generation], facts: KeepingFacts, policy: KeepingPolicy) -> frozenset[GenerationId]:
    """Find the newest of each sandbox that can be rolled back to; of several with one digest the newest counts."""
    by_sandbox: defaultdict[SandboxId, list[Generation]] = defaultdict(list)
    active = {digest_of(one) for one in held if one.status is _G.ACTIVE}
    for one in held:
        if one.status is _G.SUPERSEDED and one.bootable and one.sandbox not in facts.ended:
            by_sandbox[one.sandbox].append(one)
    kept = set[GenerationId]()
    for ones in by_sandbox.values():
        digests = set(active)
        for one in sorted(ones, key=lambda one: (one.activate_time or one.update_time, one.number), reverse=True):
            digest = digest_of(one)
            if digest not in digests and len(digests - active) < policy.previous:
                kept.add(one.id)
                digests.add(digest)
    return frozenset(kept)
