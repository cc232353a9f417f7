"""Makes a freelancer's packages again on another base, and captures what came of it: the build of an upgrade.

It happens in a *build sandbox*: a sandbox of the backend without a row, so nobody can enter it, without a token, and
with empty volumes of its own; it is destroyed when its image is built. Its id is that of the commit in other letters,
so whoever takes a commit over, or finds one left, knows what it was for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import structlog

from sandboxd.images.baseline_file import read_records
from sandboxd.images.ports import Baseline, BuildOrder, BuiltImage, ImageReference
from sandboxd.manager.backend_port import Backend, SandboxSpec
from sandboxd.manager.base_plans import BasePlan, BasePlans, read_kept, some_paths
from sandboxd.manager.commit_rules import RESTING
from sandboxd.manager.commit_steps import ASK_TIMEOUT, ImageTools, ProgressNote
from sandboxd.manager.cut_short import unless_cut_short
from sandboxd.manager.image_ports import ImageNotFoundError
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.replaying import NotInstalled, PackageReplay, Replayed
from sandboxd.manager.tools import ManagerTools
from sandboxd.model.commit_errors import (
    BaseCurrentError,
    CommitOvertakenError,
    ReplayIncompleteError,
    SandboxNotRestingError,
)
from sandboxd.model.errors import InternalError, SandboxdError, SandboxNotFoundError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import IncarnationId, RequestId, SandboxId
from sandboxd.model.image import (
    LISTED,
    CommitPhase,
    CommitProgress,
    CommitTrigger,
    Generation,
    GenerationId,
    LeftOutPaths,
    build_sandbox,
)
from sandboxd.model.packages import Package
from sandboxd.model.replay import ReplayAction, ReplayPolicy, is_missed
from sandboxd.model.rootfs import BaselineRecord, EntryKind
from sandboxd.model.sandbox import TIER_RESOURCES, Sandbox
from sandboxd.model.sources import Clock, IdSource

START_TIMEOUT: Final = timedelta(minutes=5)
"""Of the build sandbox; a base that no node has yet is pulled in it."""
CLEAR_TIMEOUT: Final = timedelta(minutes=1)
WATCH_SECONDS: Final = 5.0
"""How often is looked whether the sandbox still rests."""
_SHOWN_FAILURES: Final = 5


log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What came of a build on another base."""

    base: ImageReference
    order: BuildOrder | None = None
    """What was built; None where nothing had to be installed: then the base itself is what is started from."""
    built: BuiltImage | None = None
    left_out: Sequence[LeftOutPaths] = ()
    """What was not made again."""
    packages: Sequence[Package] = ()
    """What is installed in it, as its databases say."""
    complete: bool = True
    """False where one of them could not be read."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Beside the builder's own."""


@dataclass(slots=True, kw_only=True)
class BaseBuilding:
    """Carries out the build of upgrades."""

    units: UnitsOfWork
    images: ImageTools
    plans: BasePlans
    replay: PackageReplay
    backend: Backend
    clock: Clock
    ids: IdSource
    watch_seconds: float = WATCH_SECONDS

    @classmethod
    def of(cls, tools: ManagerTools, images: ImageTools) -> BaseBuilding:
        """Make it of what the manager works with."""
        return cls(
            units=tools.units,
            images=images,
            plans=BasePlans(units=tools.units, running=images.running, baselines=images.baselines),
            replay=PackageReplay(connector=tools.connector, source=tools.packages, clock=tools.clock),
            backend=tools.backend,
            clock=tools.clock,
            ids=tools.ids,
        )

    async def rebuild(self, generation: Generation, note: ProgressNote) -> Rebuilt:
        """Make the packages of a sandbox's image again on the present base, and push what came of it.

        The build sandbox is gone when this returns or fails. A sandbox that is started meanwhile ends it: nothing that
        runs is replaced, and its own commits must not wait.

        Raises:
            BaseCurrentError: The image is on the present base by now.
            CommitOvertakenError: The sandbox was started, or got another image.
            ReplayIncompleteError: Something cannot be made again, and the policy is to fail.
            SandboxdError: As planning, starting, installing and building do.
        """
        note.take(CommitProgress(phase=CommitPhase.REPLAY))
        sandbox = await self._resting(generation)
        plan = await self.plans.plan(sandbox, timeout=self.images.build_timeout)
        if not plan.needed or plan.image is None or plan.image.id != generation.parent:
            raise BaseCurrentError(f"The image of sandbox {sandbox.id} is on the present base.", sandbox=sandbox.id)
        strict = generation.replay_policy is not ReplayPolicy.SKIP
        if strict and plan.lost:
            raise _incomplete(sandbox.id, plan.lost, known_before=True)
        if not plan.replayed:
            return Rebuilt(base=plan.new_base, left_out=_beside(plan))
        return await unless_cut_short(
            self._in_build_sandbox(sandbox, generation, plan, note),
            self._watch(generation),
            name=f"upgrade-{generation.id}",
        )

    async def clear(self, generation: Generation) -> None:
        """Destroy the build sandbox of a commit, whatever is left of it; what fails is tried again by `sweep`."""
        build = build_sandbox(generation.id)
        try:
            await self.backend.erase(build, timeout=CLEAR_TIMEOUT)
        except SandboxdError as error:
            log.warning("upgrade.build_sandbox_left", sandbox=build, image=generation.tag, error=error.message)

    async def sweep(self) -> int:
        """Destroy build sandboxes that no commit works in any more; answers how many were found."""
        found = [one.sandbox for one in await self.backend.list() if one.present or one.running]
        cleared = 0
        async with self.units.begin() as work:
            unknown = sorted({*found} - {*(await work.sandboxes.find(found))})
            left = list[Generation]()
            for sandbox in unknown:
                try:
                    generation = await work.generations.get(_generation_of(sandbox))
                except ImageNotFoundError:
                    continue
                if generation.trigger is CommitTrigger.UPGRADE and not generation.status.in_flight:
                    left.append(generation)
        for generation in left:
            log.info("upgrade.build_sandbox_found", sandbox=build_sandbox(generation.id), image=generation.tag)
            await self.clear(generation)
            cleared += 1
        return cleared

    async def _in_build_sandbox(
        self, sandbox: Sandbox, generation: Generation, plan: BasePlan, note: ProgressNote
    ) -> Rebuilt:
        build, life = build_sandbox(generation.id), IncarnationId(self.ids.new("inc"))
        spec = SandboxSpec(
            sandbox=build,
            client=sandbox.client,
            freelancer=sandbox.freelancer,
            resources=TIER_RESOURCES[sandbox.tier],
            tier=sandbox.tier,
        )
        began = self.clock.monotonic()
        await self.clear(generation)  # of an attempt that broke off
        try:
            endpoint = await self.backend.start(spec, life, timeout=START_TIMEOUT)
            failpoint("upgrade.after_start")
            base = await self.images.running.image(build, life, timeout=ASK_TIMEOUT)
            if base.digest != plan.new_base.digest:
                raise CommitOvertakenError(
                    f"While sandbox {sandbox.id} was upgraded its template got another image again. Upgrade again.",
                    sandbox=sandbox.id,
                )
            wanted = [one.package for one in plan.replayed]
            replayed = await self.replay.replay(
                endpoint,
                wanted,
                timeout=self.images.build_timeout,
                done=lambda tried: note.take(CommitProgress(phase=CommitPhase.REPLAY, entries=tried)),
            )
            failpoint("upgrade.after_replay")
            if replayed.failed and generation.replay_policy is not ReplayPolicy.SKIP:
                raise _incomplete(sandbox.id, [_why(one) for one in replayed.failed], known_before=False)
            took = self.clock.monotonic() - began
            order = self._order(sandbox, generation, build, life, base)
            built = await self.images.builder.build(order, timeout=self.images.build_timeout, progress=note.built)
        finally:
            await asyncio.shield(self.clear(generation))
        return Rebuilt(
            base=base,
            order=order,
            built=built,
            left_out=[*_beside(plan), *_of(replayed), *await self._missed(plan, built)],
            packages=replayed.found.packages,
            complete=replayed.found.complete,
            seconds={CommitPhase.REPLAY.value: round(took, 6)},
        )

    def _order(
        self, sandbox: Sandbox, generation: Generation, build: SandboxId, life: IncarnationId, base: ImageReference
    ) -> BuildOrder:
        return BuildOrder(
            sandbox=build,
            incarnation=life,
            base=base,
            repository=generation.repository,
            generation=generation.number,
            commit=generation.id,
            limits=self.images.limits[sandbox.tier],
            labels={
                "dev.sandboxd.client": sandbox.client,
                "dev.sandboxd.freelancer": sandbox.freelancer,
                "dev.sandboxd.sandbox": sandbox.id,
            },
            secrets=self.images.secrets,
        )

    async def _missed(self, plan: BasePlan, built: BuiltImage) -> list[LeftOutPaths]:
        """Compare the old image's own files with the new image."""
        if plan.image is None or plan.old_base is None:
            raise InternalError("An upgrade without an image was built.")
        baselines, timeout = self.images.baselines, self.images.build_timeout
        old_image, old_base, new_base = ImageReference.parse(plan.image.reference), plan.old_base, plan.new_base
        before = await read_kept(lambda: baselines.layer(old_image, base=old_base, timeout=timeout), _files)
        after = await read_kept(lambda: baselines.baseline(new_base, timeout=timeout), _files)
        image = built.image
        if image is not None and image != new_base:
            after |= await read_kept(lambda: baselines.layer(image, base=new_base, timeout=timeout), _files)
        missed = [
            path
            for path, content in before.items()
            if is_missed(path, there=path in after, same=after.get(path) == content)
        ]
        return [some_paths("not_replayed", missed)] if missed else []

    async def _resting(self, generation: Generation) -> Sandbox:
        async with self.units.begin() as work:
            found = await work.sandboxes.get(generation.sandbox)
        present = None if found.image is None else found.image.generation
        resting = found.state in RESTING and (found.incarnation or "") == generation.incarnation
        if not resting or present != generation.parent:
            raise CommitOvertakenError(
                f"While sandbox {found.id} was upgraded as {generation.tag} it was started, or got another image. What "
                "is active stays. Upgrade again when it rests.",
                sandbox=found.id,
                image=generation.tag,
            )
        return found

    async def _watch(self, generation: Generation) -> CommitOvertakenError | SandboxNotFoundError:
        """Look until the sandbox is started, or is another one."""
        while True:
            await asyncio.sleep(self.watch_seconds)
            try:
                await self._resting(generation)
            except (CommitOvertakenError, SandboxNotFoundError) as error:
                return error
            except SandboxdError as error:
                log.info("upgrade.not_looked", sandbox=generation.sandbox, error=error.message)


def _generation_of(sandbox: SandboxId) -> GenerationId:
    return GenerationId(f"gen{sandbox.removeprefix('sbx')}")


def _files(entries: Baseline) -> dict[bytes, tuple[str, bytes]]:
    """Content by path, of everything but directories."""
    return {
        record.entry.path: _content(record)
        for record in read_records(entries.file)
        if record.entry.kind is not EntryKind.DIRECTORY
    }


def _content(record: BaselineRecord) -> tuple[str, bytes]:
    return record.entry.kind.value, record.sha256 or record.entry.link


def _beside(plan: BasePlan) -> list[LeftOutPaths]:
    """What was known before not to be made again."""
    impossible = [one.package for one in plan.packages if one.action is ReplayAction.IMPOSSIBLE]
    return [*plan.left_out, *_named("package_failed", impossible)]


def _of(replayed: Replayed) -> list[LeftOutPaths]:
    newer = [f"{_name(one)}, now {version}" for one, version in replayed.otherwise]
    said = [LeftOutPaths(reason="package_version", count=len(newer), paths=tuple(newer[:LISTED]))] if newer else []
    return [*_named("package_failed", [one.package for one in replayed.failed]), *said]


def _named(reason: str, packages: Sequence[Package]) -> list[LeftOutPaths]:
    names = tuple(map(_name, packages[:LISTED]))
    return [LeftOutPaths(reason=reason, count=len(packages), paths=names)] if packages else []


def _name(package: Package) -> str:
    return f"{package.key.manager.value} {package.key.name} {package.version}"


def _why(one: NotInstalled) -> str:
    return f"{_name(one.package)} ({one.why})"


def _incomplete(sandbox: SandboxId, lost: Sequence[str], *, known_before: bool) -> ReplayIncompleteError:
    shown = "; ".join(lost[:_SHOWN_FAILURES])
    more = f" and {len(lost) - _SHOWN_FAILURES} more" if len(lost) > _SHOWN_FAILURES else ""
    what = "cannot be made again on the new base" if known_before else "could not be installed on the new base"
    return ReplayIncompleteError(
        f"Of the image of sandbox {sandbox} this {what}: {shown}{more}. The image stays as it is. Upgrade with the "
        "policy to skip it, or see to it in the sandbox first.",
        sandbox=sandbox,
        lost=str(len(lost)),
    )


def upgrade_of(
    sandbox: Sandbox,
    active: Generation | None,
    *,
    name: GenerationId,
    base: ImageReference,
    policy: ReplayPolicy,
    at: datetime,
    request_id: RequestId | None = None,
) -> Generation:
    """Return the row of an upgrade that begins; its number is still to be given.

    Raises:
        SandboxNotRestingError: The sandbox has compute, or is on its way.
        BaseCurrentError: It starts from this base already.
    """
    if sandbox.state not in RESTING:
        raise SandboxNotRestingError(
            f"Sandbox {sandbox.id} is {sandbox.state.value}: its base is upgraded while it is PAUSED or STOPPED, so "
            "that nothing is lost that runs. Pause it first.",
            sandbox=sandbox.id,
            state=sandbox.state.value,
        )
    if active is None or active.base.endswith(f"@{base.digest}"):
        what = "the base" if active is None else f"{active.tag}, which lies on the base"
        raise BaseCurrentError(
            f"Sandbox {sandbox.id} starts from {what} that sandboxes are made from now.", sandbox=sandbox.id
        )
    return Generation(
        id=name,
        sandbox=sandbox.id,
        client=sandbox.client,
        freelancer=sandbox.freelancer,
        number=1,
        incarnation=sandbox.incarnation or IncarnationId(""),
        trigger=CommitTrigger.UPGRADE,
        replay_policy=policy,
        request_id=request_id,
        repository=active.repository,
        base=str(base),
        parent=active.id,
        progress=CommitProgress(phase=CommitPhase.REPLAY),
        create_time=at,
        update_time=at,
    )
