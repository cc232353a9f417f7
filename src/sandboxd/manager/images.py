"""What callers can do with images: commit a sandbox, follow and cancel that, list what there is, roll back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.access import require_visible
from sandboxd.manager.base_building import upgrade_of
from sandboxd.manager.base_plans import BasePlan, BasePlans
from sandboxd.manager.changes import Changes
from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.manager.commit_steps import STORAGE_LIMITS
from sandboxd.manager.commits import Commits
from sandboxd.manager.image_ports import CommitInProgressError
from sandboxd.manager.image_views import ShownImage, raise_failure, show
from sandboxd.manager.ports import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    RequestOutcome,
    RequestRecord,
    UnitOfWork,
    UnitsOfWork,
)
from sandboxd.manager.requests import Requests
from sandboxd.manager.rollbacks import roll_to
from sandboxd.model.caller import Caller, Request
from sandboxd.model.commit_errors import CommitEndedError, CommitsOffError
from sandboxd.model.errors import InternalError, RequestIdReusedError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId
from sandboxd.model.image_errors import CaptureUnsupportedError
from sandboxd.model.image_sbom import ImageSbom, SbomPendingError, SbomUnknownError
from sandboxd.model.paging import Page
from sandboxd.model.replay import ReplayPolicy
from sandboxd.model.sandbox import Tier
from sandboxd.model.sources import Clock, IdSource

WATCH_SECONDS: Final = 1.0
"""How often a commit that is followed is looked at."""
SBOM_TIMEOUT: Final = timedelta(seconds=60)
"""For reading one list of packages from the registry: 5 MB at most."""
SBOM_RETRY: Final = timedelta(seconds=5)

log = structlog.get_logger(__name__)


class Images:
    """The use cases of images. Without `commits` they answer that there are none, and why."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        commits: Commits | None,
        keeps_root: bool,
        requests: Requests,
        changes: Changes,
        metrics: CommitMetrics,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._units = units
        self._requests = requests
        self._commits = commits
        self._keeps_root = keeps_root
        self._changes = changes
        self._metrics = metrics
        self._clock = clock
        self._ids = ids

    async def commit(
        self,
        request: Request,
        sandbox: SandboxId,
        *,
        dry_run: bool = False,
        wait: bool = True,
        timeout: timedelta,
    ) -> ShownImage:
        """Keep a sandbox's root file system as an image, and answer when it is active, or nothing had changed.

        Args:
            request: Who asks; the same id is answered with the same commit, whatever it came to.
            sandbox: Which.
            dry_run: Capture and count only.
            wait: Else the answer comes when it has begun.
            timeout: How long the caller waits.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            SandboxNotRunningError: It has no root file system now.
            CommitInProgressError: Another commit of it is in flight.
            CaptureUnsupportedError, CommitsOffError: Nothing is committed in this installation.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It has not ended in time; it goes on.
            SandboxdError: What it failed with.
        """
        async with self._units.begin() as work:
            tier = require_visible(await work.sandboxes.get(sandbox), request.caller).tier
        commits = self._required(sandbox)
        begun = await self._begin(commits, request, sandbox, dry_run=dry_run)
        if not wait:
            return self._show(begun, tier)
        return self._show(raise_failure(await commits.wait(begun.id, timeout=timeout)), tier)

    async def _begin(self, commits: Commits, request: Request, sandbox: SandboxId, *, dry_run: bool) -> Generation:
        name = GenerationId(self._ids.new("gen"))
        claim = self._claim(request, "Commit", sandbox, about=name)
        failpoint("commit.before_commit")
        async with self._units.begin() as work:
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                return await self._earlier(work, earlier, claim)
            held = await commits.insert(
                work,
                sandbox,
                name=name,
                trigger=CommitTrigger.REQUEST,
                dry_run=dry_run,
                request_id=request.request_id,
            )
            await work.commit()
        await self._changes.announce(sandbox)
        commits.start(held)
        return held.generation

    async def _earlier(self, work: UnitOfWork, earlier: RequestRecord, mine: RequestRecord) -> Generation:
        if (earlier.method, earlier.subject, earlier.body_hash) != (mine.method, mine.subject, mine.body_hash):
            raise RequestIdReusedError(mine.request_id)
        if earlier.outcome is None or earlier.outcome.response is None:
            raise InternalError(f"The request {mine.request_id} has no commit.")
        return await work.generations.get(GenerationId(earlier.outcome.response.decode()))

    async def get(self, caller: Caller, sandbox: SandboxId, number: int) -> ShownImage:
        """One generation, in whatever status.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            ImageNotFoundError: It has no such image.
        """
        async with self._units.begin() as work:
            tier = require_visible(await work.sandboxes.get(sandbox), caller).tier
            return self._show(await work.generations.numbered(sandbox, number), tier)

    async def list(
        self, caller: Caller, sandbox: SandboxId, *, everything: bool, page_size: int, page_token: str
    ) -> Page[ShownImage]:
        """One page of a sandbox's generations, the newest first.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            InvalidRequestError: The page token is none.
        """
        async with self._units.begin() as work:
            tier = require_visible(await work.sandboxes.get(sandbox), caller).tier
            page = await work.generations.list(
                sandbox,
                everything=everything,
                page_size=min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE),
                page_token=page_token,
            )
        return Page(items=[self._show(one, tier) for one in page.items], next_token=page.next_token)

    async def sbom(
        self, caller: Caller, sandbox: SandboxId, number: int
    ) -> tuple[ImageSbom, AsyncGenerator[bytes, None]]:
        """The list of an image's packages as the registry has it: what it is, and its bytes.

        Raises:
            SandboxNotFoundError, ImageNotFoundError: The caller has no such sandbox, or that no such image.
            SbomUnknownError: There is none, and there will be none.
            SbomPendingError: The registry does not have it yet; the message says why, where it was tried.
        """
        async with self._units.begin() as work:
            require_visible(await work.sandboxes.get(sandbox), caller)
            image = await work.generations.numbered(sandbox, number)
            found = await work.sboms.get(image.id)
        commits = self._required(sandbox)
        if found is None or not image.bootable:
            raise SbomUnknownError(
                f"There is no list of the packages of {image.tag}: "
                f"{'they were not known when it was made' if image.bootable else f'it is {image.status.value}'}.",
                sandbox=sandbox,
                image=image.tag,
            )
        if found.attached is None:
            why = f" The last attempt failed: {found.failure}" if found.failure else ""
            raise SbomPendingError(
                f"The list of the packages of {image.tag} is not in the registry yet.{why}",
                sandbox=sandbox,
                image=image.tag,
                retry_after=SBOM_RETRY,
            )
        content = commits.images.registry.blob(
            image.repository, found.attached.document, size=found.attached.size, timeout=SBOM_TIMEOUT
        )
        return found, content

    async def watch(self, caller: Caller, sandbox: SandboxId, number: int) -> AsyncIterator[ShownImage]:
        """Follow a commit: as it is now, then each change and its progress, until it has ended. Raises as `get`."""
        seen = await self.get(caller, sandbox, number)
        yield seen
        while seen.generation.status.in_flight:
            await self._changes.wait(sandbox, timeout=WATCH_SECONDS)
            found = await self.get(caller, sandbox, number)
            if found != seen:
                seen = found
                yield seen

    async def cancel(self, request: Request, sandbox: SandboxId, number: int, *, timeout: timedelta) -> ShownImage:
        """End a commit; answers it FAILED, or as it is where its end was faster.

        Raises:
            SandboxNotFoundError, ImageNotFoundError: The caller has no such sandbox, or that no such image.
            CommitEndedError: It had ended otherwise before.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It has not ended in time; the wish stands.
        """
        async with self._units.begin() as work:
            tier = require_visible(await work.sandboxes.get(sandbox), request.caller).tier
            wanted = await work.generations.numbered(sandbox, number)
            claim = self._claim(request, "CancelCommit", sandbox, about=wanted.id)
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                wanted = await self._earlier(work, earlier, claim)
            else:
                _require_unended(wanted)
                await work.generations.cancel(wanted.id)
            await work.commit()
        # Whoever works on it, here or elsewhere, sees the wish with its next report.
        ended = wanted if self._commits is None else await self._commits.wait(wanted.id, timeout=timeout)
        return self._show(ended, tier)

    async def plan_upgrade(self, caller: Caller, sandbox: SandboxId, *, timeout: timedelta) -> BasePlan:
        """Say what moving a sandbox's image to the template's present base would do; see `BasePlans.plan`.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            CaptureUnsupportedError, CommitsOffError: Nothing is committed in this installation.
        """
        async with self._units.begin() as work:
            found = require_visible(await work.sandboxes.get(sandbox), caller)
        tools = self._required(sandbox).images
        plans = BasePlans(units=self._units, running=tools.running, baselines=tools.baselines)
        return await plans.plan(found, timeout=timeout)

    async def upgrade(
        self,
        request: Request,
        sandbox: SandboxId,
        policy: ReplayPolicy,
        *,
        wait: bool = True,
        timeout: timedelta,
    ) -> ShownImage:
        """Make what is installed in a resting sandbox again on the present base; answer when its next start takes it.

        Args:
            request: Who asks; the same id is answered with the same upgrade, whatever it came to.
            sandbox: Which.
            policy: What happens where something cannot be made again.
            wait: Else the answer comes when it has begun.
            timeout: How long the caller waits.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            SandboxNotRestingError: It has compute.
            BaseCurrentError: It starts from the present base already.
            CommitInProgressError: A commit of it is in flight.
            CaptureUnsupportedError, CommitsOffError: Nothing is committed in this installation.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It has not ended in time; it goes on.
            SandboxdError: What it failed with.
        """
        async with self._units.begin() as work:
            tier = require_visible(await work.sandboxes.get(sandbox), request.caller).tier
        commits = self._required(sandbox)
        begun = await self._begin_upgrade(commits, request, sandbox, policy)
        if not wait:
            return self._show(begun, tier)
        return self._show(raise_failure(await commits.wait(begun.id, timeout=timeout)), tier)

    async def _begin_upgrade(
        self, commits: Commits, request: Request, sandbox: SandboxId, policy: ReplayPolicy
    ) -> Generation:
        name = GenerationId(self._ids.new("gen"))
        claim = self._claim(request, "UpgradeImage", sandbox, about=name)
        failpoint("upgrade.before_commit")
        async with self._units.begin() as work:
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                return await self._earlier(work, earlier, claim)
            found = await work.sandboxes.get(sandbox, for_update=True)
            active = None if found.image is None else await work.generations.get(found.image.generation)
            base, now = await commits.images.running.base(), self._clock.now()
            wanted = upgrade_of(
                found, active, name=name, base=base, policy=policy, at=now, request_id=request.request_id
            )
            held = await commits.hold(work, wanted)
            await work.commit()
        await self._changes.announce(sandbox)
        commits.start(held)
        return held.generation

    async def rollback(self, request: Request, sandbox: SandboxId, number: int) -> ShownImage:
        """Let every next start of a sandbox take another generation; what runs goes on, and is not kept.

        Who rolls forward to what that goes on from has it kept again.

        Raises:
            SandboxNotFoundError, ImageNotFoundError: The caller has no such sandbox, or that no such image.
            ImageUnusableError: Nothing can be started from it.
            CommitInProgressError: A commit is in flight; it would take the place of what is rolled back to.
            RequestIdReusedError: The request id was used with another body.
        """
        failpoint("rollback.before_commit")
        async with self._units.begin() as work:
            found = require_visible(await work.sandboxes.get(sandbox, for_update=True), request.caller)
            wanted = await work.generations.numbered(sandbox, number)
            commits = self._required(sandbox)
            claim = self._claim(request, "RollbackImage", sandbox, about=wanted.id)
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                return self._show(await self._earlier(work, earlier, claim), found.tier)
            flying = await work.generations.in_flight(sandbox)
            if flying is not None:
                raise CommitInProgressError(sandbox, number=flying.number)
            active = await roll_to(work, found, wanted, at=self._clock.now())
            await work.commit()
        failpoint("rollback.after_commit")
        self._metrics.rolled_back()
        log.info("image.rolled_back", sandbox=sandbox, image=active.tag)
        await self._changes.announce(sandbox)
        await commits.telling.tell_untold()
        return self._show(active, found.tier)

    def _show(self, generation: Generation, tier: Tier) -> ShownImage:
        limits = STORAGE_LIMITS if self._commits is None else self._commits.images.limits
        return show(generation, limits=limits[tier])

    def _claim(self, request: Request, method: str, sandbox: SandboxId, *, about: GenerationId) -> RequestRecord:
        """Build the row of a request whose outcome is a generation: it has one from the beginning."""
        return self._requests.record(request, method, sandbox, outcome=RequestOutcome(response=about.encode()))

    def _required(self, sandbox: SandboxId) -> Commits:
        if self._commits is not None:
            return self._commits
        if self._keeps_root:
            raise CaptureUnsupportedError(
                f"Sandbox {sandbox} has no root file system of its own: the local backend's is the machine's, and "
                "what is installed there stays.",
                sandbox=sandbox,
            )
        raise CommitsOffError(
            "This installation keeps no images: it has no registry, which SANDBOXD_IMAGES_REGISTRY names. What is "
            "installed outside home and workspace is gone with a sandbox's compute.",
            sandbox=sandbox,
            setting="SANDBOXD_IMAGES_REGISTRY",
        )


def _require_unended(generation: Generation) -> None:
    if not generation.status.in_flight:
        raise CommitEndedError(
            f"The commit {generation.tag} of sandbox {generation.sandbox} has ended: it is {generation.status.value}.",
            sandbox=generation.sandbox,
            image=generation.tag,
            status=generation.status.value,
        )
