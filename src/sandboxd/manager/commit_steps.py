"""The steps of one commit: build, probe, activate, tell. Each is safe to repeat, and durable before the next begins.

Nothing is released and nothing becomes active before the one after it is proven: a candidate is in the registry byte
for byte, then it was booted, and only then the sandbox's row names it. What a crash leaves says its status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from sandboxd.images.ports import (
    Baselines,
    BuildOrder,
    BuildProgress,
    BuiltImage,
    ImageBuilder,
    ImageLimits,
    ImageProbe,
    ImageReference,
    RunningImages,
    SecretPolicy,
)
from sandboxd.images.projects import ImageProjects
from sandboxd.images.registry import Registry
from sandboxd.images.signing import ImageSignatures, SignaturePolicy
from sandboxd.manager.captured_lives import CapturedLives
from sandboxd.manager.changes import Changes
from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.manager.commit_rules import (
    PHASES,
    as_begun,
    base_of,
    content_of,
    overtaken,
    seconds_of,
    started_from,
)
from sandboxd.manager.image_ports import QUIET
from sandboxd.manager.image_trust import sign_proven
from sandboxd.manager.leased_tasks import Lease
from sandboxd.manager.losses import Losses
from sandboxd.manager.package_keeping import PackageKeeping
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.manager.push_gate import FREE, PushGate
from sandboxd.model.commit_errors import CommitOvertakenError
from sandboxd.model.errors import InternalError, StaleOwnerError, UnavailableError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.image import (
    LISTED,
    CommitPhase,
    CommitProgress,
    CommitTrigger,
    Generation,
    GenerationStatus,
    ImageContent,
)
from sandboxd.model.image_errors import CaptureRunningError
from sandboxd.model.image_sbom import ImageSbom, in_image
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.model.sources import Clock
from sandboxd.model.trace import NO_TRACES, Tracer

if TYPE_CHECKING:  # which works with the tools of this module
    from sandboxd.manager.base_building import BaseBuilding

CAPTURE_ATTEMPTS: Final = 10
ASK_TIMEOUT: Final = timedelta(seconds=15)
PROJECT_TIMEOUT: Final = timedelta(seconds=60)
"""For all that a client's project on the registry needs."""
_G = GenerationStatus

log = structlog.get_logger(__name__)


STORAGE_LIMITS: Final[Mapping[Tier, ImageLimits]] = {
    tier: ImageLimits(raw_bytes=of.storage_bytes, compressed_bytes=of.storage_bytes)
    for tier, of in TIER_RESOURCES.items()
}
"""As much as a root file system may change before its pod is evicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTools:
    """What commits work with."""

    builder: ImageBuilder
    probe: ImageProbe
    running: RunningImages
    registry: Registry
    """Where images are pushed."""
    baselines: Baselines
    """What images have."""
    repository_of: Callable[[ClientId, FreelancerId], str]
    """Where a freelancer's images lie there."""
    pushes: PushGate = FREE
    """What lets commits push; `registry` passes it, too."""
    projects: ImageProjects | None = None
    """What keeps clients apart there; None where the registry has nothing of that."""
    limits: Mapping[Tier, ImageLimits] = field(default_factory=lambda: STORAGE_LIMITS)
    """How large the layer of a sandbox may be."""
    secrets: SecretPolicy = SecretPolicy.STRIP
    signatures: ImageSignatures | None = None
    """What signs images and verifies that; None where neither is done."""
    signature_policy: SignaturePolicy = SignaturePolicy.NEVER
    """What a start, and a commit, demands of them."""
    build_timeout: timedelta = timedelta(minutes=30)
    probe_timeout: timedelta = timedelta(minutes=2)
    capture_pause: timedelta = timedelta(seconds=3)
    """Between attempts at a capture while the agent still reads for another one."""
    install_quiet: timedelta | None = QUIET
    """How long nothing was installed, and nobody has used the sandbox, before what was installed is committed; None is
    never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A generation, and the lease under which this process works on it."""

    generation: Generation
    lease: Lease


@dataclass(slots=True, kw_only=True)
class ProgressNote:
    """How far a commit is, from the one who works to the one who writes it down."""

    progress: CommitProgress = field(default_factory=CommitProgress)
    fresh: bool = False

    def take(self, progress: CommitProgress) -> None:
        """Note progress."""
        self.progress, self.fresh = progress, True

    def built(self, said: BuildProgress) -> None:
        """Note what a builder says."""
        phase = PHASES.get(said.phase, CommitPhase.CAPTURE)
        self.take(CommitProgress(phase=phase, entries=said.entries, bytes=said.bytes, total_bytes=said.total_bytes))


def lease_key(generation: Generation) -> SandboxId:
    """Say under which key the work on a generation is leased: sandboxes' own leases are for their states."""
    return SandboxId(generation.id)


class CommitSteps:
    """Carries a commit out from wherever it stands."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        images: ImageTools,
        changes: Changes,
        losses: Losses,
        metrics: CommitMetrics,
        packages: PackageKeeping | None = None,
        bases: BaseBuilding | None = None,
        clock: Clock,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._lives = CapturedLives(units=units, losses=losses, pause=images.capture_pause)
        self._packages = packages
        self._bases = bases
        self._units = units
        self._images = images
        self._changes = changes
        self._metrics = metrics
        self._clock = clock
        self._tracer = tracer

    async def carry_out(self, held: Held, note: ProgressNote) -> Generation:
        """Go on from the generation's status until its commit has ended; what could not be told is left to recovery.

        Raises:
            SandboxdError: It failed; the row does not say so yet.
        """
        if held.generation.status is _G.BUILDING:
            failpoint("commit.after_commit")
            if self._images.projects is not None and not held.generation.dry_run:
                await self._images.projects.prepare(held.generation.client, timeout=PROJECT_TIMEOUT)
            upgrade = held.generation.trigger is CommitTrigger.UPGRADE
            held = await (self._rebuild(held, note) if upgrade else self._build(held, note))
        if held.generation.status is _G.PUSHED:
            failpoint("commit.after_push")
            held = await self._probe(held, note)
        if held.generation.status is _G.VERIFIED:
            failpoint("commit.after_verify")
            images = self._images
            await sign_proven(images.signatures, held.generation, policy=images.signature_policy, metrics=self._metrics)
            held = await self._activate(held, note)
        return held.generation

    async def _build(self, held: Held, note: ProgressNote) -> Held:
        try:
            held, order, sbom = await self._order(held)
            with self._tracer.step("commit.build"):
                built = await self._built(order, note)
        except UnavailableError as error:
            await self._lives.require(held.generation, error)
            raise
        failpoint("commit.after_build")
        generation = held.generation
        done = replace(
            generation,
            registry=order.base.registry,
            content=content_of(built, order),
            unchanged=built.unchanged,
            seconds=seconds_of(built),
        )
        if not generation.dry_run and not built.unchanged and built.image is not None:
            return await self._save(held, done.enter(_G.PUSHED, at=self._clock.now()), sbom=sbom)
        discarded = done.enter(_G.DISCARDED, at=self._clock.now())
        return await self._save(held, discarded, saved=built.unchanged and not generation.dry_run)

    async def _rebuild(self, held: Held, note: ProgressNote) -> Held:
        """Make the image's packages again on the present base; where nothing had to be, that is what is started."""
        if self._bases is None:
            raise InternalError("Nothing upgrades bases here.")
        with self._tracer.step("commit.rebuild"):
            rebuilt = await self._bases.rebuild(held.generation, note)
        failpoint("commit.after_build")
        built, content = rebuilt.built, ImageContent(digest="")
        if built is not None and rebuilt.order is not None:
            content = content_of(built, rebuilt.order)
        done = replace(
            held.generation,
            registry=rebuilt.base.registry,
            base=str(rebuilt.base),
            content=replace(content, left_out=(*rebuilt.left_out, *content.left_out)[: 2 * LISTED]),
            seconds={**rebuilt.seconds, **({} if built is None else seconds_of(built))},
        )
        if built is None or built.unchanged:
            return await self._to_base(held, replace(done, unchanged=True))
        sbom = ImageSbom(
            generation=done.id,
            packages=in_image(rebuilt.packages),
            complete=rebuilt.complete,
            next_time=self._clock.now(),
        )
        return await self._save(held, done.enter(_G.PUSHED, at=self._clock.now()), sbom=sbom)

    async def _to_base(self, held: Held, done: Generation) -> Held:
        """Let the sandbox start from the base itself, if its row is still what the upgrade began with."""
        async with self._units.begin() as work:
            sandbox = await work.sandboxes.get(done.sandbox, for_update=True)
            generation = await self._still(work, held)
            now = self._clock.now()
            if sandbox.image is None or not as_begun(sandbox, generation):
                raise CommitOvertakenError(overtaken(generation).message, sandbox=sandbox.id, image=generation.tag)
            former = await work.generations.get(sandbox.image.generation, for_update=True)
            await work.generations.save(former.enter(_G.SUPERSEDED, at=now))
            discarded = done.enter(_G.DISCARDED, at=now)
            await work.generations.save(discarded)
            await work.sandboxes.save(started_from(sandbox, discarded, image=None, at=now))
            await work.commit()
        await self._changes.announce(discarded.sandbox)
        return replace(held, generation=discarded)

    async def _built(self, order: BuildOrder, note: ProgressNote) -> BuiltImage:
        """Build, and wait a little where the agent still reads for somebody who has gone: a replica that died."""
        for _ in range(CAPTURE_ATTEMPTS - 1):
            try:
                return await self._images.builder.build(order, timeout=self._images.build_timeout, progress=note.built)
            except CaptureRunningError as error:
                log.info("commit.capture_running", sandbox=order.sandbox, error=error.message)
            await asyncio.sleep(self._images.capture_pause.total_seconds())
        return await self._images.builder.build(order, timeout=self._images.build_timeout, progress=note.built)

    async def _order(self, held: Held) -> tuple[Held, BuildOrder, ImageSbom | None]:
        """Say what is to be built and which packages it has, and note on what base, for what, and from when on."""
        generation = held.generation
        async with self._units.begin() as work:
            sandbox = await work.sandboxes.get(generation.sandbox)
            life = await work.incarnations.current(generation.sandbox)
            active = None if sandbox.image is None else await work.generations.get(sandbox.image.generation)
        if life is None or life.id != generation.incarnation:
            raise CommitOvertakenError(
                f"The life of sandbox {sandbox.id} that was to be committed has ended.", sandbox=sandbox.id
            )
        running = await self._images.running.image(sandbox.id, life.id, timeout=ASK_TIMEOUT)
        base = base_of(sandbox, active, generation, running)
        if self._packages is not None:  # or what was installed seconds ago would seem unsaved after this
            await self._packages.catch_up(life)
        sbom = await self._known_packages(generation)
        at = self._clock.now()
        noted = replace(
            generation,
            base=str(base),
            parent=None if active is None else active.id,
            capture_time=at,
            update_time=at,
            version=generation.version + 1,
        )
        order = BuildOrder(
            sandbox=sandbox.id,
            incarnation=life.id,
            base=base,
            repository=generation.repository,
            generation=generation.number,
            commit=generation.id,
            limits=self._images.limits[sandbox.tier],
            labels={
                "dev.sandboxd.client": sandbox.client,
                "dev.sandboxd.freelancer": sandbox.freelancer,
                "dev.sandboxd.sandbox": sandbox.id,
            },
            previous=None if active is None else ImageReference.parse(active.reference),
            dry_run=generation.dry_run,
            secrets=self._images.secrets,
        )
        return await self._save(held, noted), order, sbom

    async def _known_packages(self, generation: Generation) -> ImageSbom | None:
        """Which packages the image will have, as far as is known; None where nobody has looked in this life."""
        async with self._units.begin() as work:
            record = await work.packages.get(generation.sandbox)
        if record is None or record.incarnation != generation.incarnation or not record.looked:
            return None
        return ImageSbom(
            generation=generation.id,
            packages=in_image(one.package for one in record.known.values()),
            complete=record.complete,
            next_time=self._clock.now(),
        )

    async def _probe(self, held: Held, note: ProgressNote) -> Held:
        note.take(CommitProgress(phase=CommitPhase.PROBE))
        generation, began = held.generation, self._clock.monotonic()
        image = ImageReference.parse(generation.reference)
        with self._tracer.step("commit.probe"):
            await self._images.probe.probe(generation.sandbox, image, timeout=self._images.probe_timeout)
        failpoint("commit.after_probe")
        timed = self._timed(generation, CommitPhase.PROBE, since=began)
        return await self._save(held, timed.enter(_G.VERIFIED, at=self._clock.now()))

    async def _activate(self, held: Held, note: ProgressNote) -> Held:
        """Let the sandbox's row name it, if the row is still what the commit began with; else it is SUPERSEDED."""
        note.take(CommitProgress(phase=CommitPhase.ACTIVATE))
        began = self._clock.monotonic()
        async with self._units.begin() as work:
            sandbox = await work.sandboxes.get(held.generation.sandbox, for_update=True)
            generation = await self._still(work, held)
            now = self._clock.now()
            present = None if sandbox.image is None else sandbox.image.generation
            if not as_begun(sandbox, generation):
                activated = replace(generation.enter(_G.SUPERSEDED, at=now), failure=overtaken(generation))
            else:
                if present is not None:
                    former = await work.generations.get(present, for_update=True)
                    await work.generations.save(former.enter(_G.SUPERSEDED, at=now))
                timed = self._timed(generation, CommitPhase.ACTIVATE, since=began)
                activated = timed.enter(_G.ACTIVE, at=now)
                await work.sandboxes.save(started_from(sandbox, activated, image=activated.image, at=now))
                if activated.trigger is not CommitTrigger.UPGRADE:  # which keeps another root file system
                    await self._mark_saved(work, activated)
            await work.generations.save(activated)
            await work.commit()
        failpoint("commit.after_activate")
        await self._changes.announce(activated.sandbox)
        return replace(held, generation=activated)

    def _timed(self, generation: Generation, phase: CommitPhase, *, since: float) -> Generation:
        seconds = {**generation.seconds, phase.value: round(self._clock.monotonic() - since, 6)}
        return replace(generation, seconds=seconds)

    async def _save(
        self, held: Held, changed: Generation, *, saved: bool = False, sbom: ImageSbom | None = None
    ) -> Held:
        async with self._units.begin() as work:
            await self._still(work, held)
            await work.generations.save(changed)
            if sbom is not None:
                await work.sboms.add(sbom)
            if saved:
                await self._mark_saved(work, changed)
            await work.commit()
        await self._changes.announce(changed.sandbox)
        return replace(held, generation=changed)

    async def _mark_saved(self, work: UnitOfWork, generation: Generation) -> None:
        """Note with the image what of the packages is in it."""
        if self._packages is not None and generation.capture_time is not None:
            await self._packages.mark_saved_in(
                work, generation.sandbox, generation.incarnation, captured_at=generation.capture_time
            )

    async def _still(self, work: UnitOfWork, held: Held) -> Generation:
        """The row, locked, and still ours to work on."""
        found = await work.generations.get(held.generation.id, for_update=True)
        holds = await work.operations.holds(held.lease.key, held.lease.operation)
        if not holds or not found.status.in_flight:
            raise StaleOwnerError(f"Another replica has taken over the commit {found.tag}.", image=found.tag)
        return found
