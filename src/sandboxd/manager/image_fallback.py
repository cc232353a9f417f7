"""What is started instead of an image that does not boot: the one before it, once; then the base. It is always told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import structlog

from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.ports import UnitOfWork
from sandboxd.model.failpoints import failpoint
from sandboxd.model.image import Failure, Generation, GenerationStatus
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import Clock

ACTION: Final = "Image/FallBack"
"""Name of the deed in the audit."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class ImageFallback:
    """Gives a sandbox on its way up another image. The broken one is FAILED: nothing starts from it again."""

    intents: Intents
    metrics: CommitMetrics
    clock: Clock
    deeds: OwnDeeds = UNRECORDED

    async def take(self, intent: Intent, error: ImageBrokenError, *, to_base: bool) -> Intent:
        """Write what is started instead, and why; the caller starts it.

        Args:
            intent: The start that failed.
            error: Why.
            to_base: Take the base, whatever else there is: this is the second fallback of one start.

        Raises:
            ImageBrokenError: It was the base that did not boot.
            StaleOwnerError: Somebody else has taken the sandbox over.
        """
        sandbox = intent.sandbox
        if sandbox.image is None:
            raise error
        async with self.deeds.recorded(ACTION, client=sandbox.client, sandbox=sandbox.id):
            fallen = await self.intents.advance(
                intent, lambda work, found: self._other(work, found, error, to_base=to_base)
            )
        failpoint("start.after_fallback")
        target = fallen.sandbox.image
        self.metrics.fell_back("base" if target is None else "previous")
        log.warning(
            "image.fell_back",
            sandbox=sandbox.id,
            broken=sandbox.image.number,
            taken=0 if target is None else target.number,
            error=error.message,
        )
        return fallen

    async def _other(self, work: UnitOfWork, sandbox: Sandbox, error: ImageBrokenError, *, to_base: bool) -> Sandbox:
        now = self.clock.now()
        if sandbox.image is None:
            raise error
        broken = await work.generations.get(sandbox.image.generation, for_update=True)
        failure = Failure(kind=error.kind, reason=error.reason, message=error.message, metadata=dict(error.metadata))
        if broken.status is GenerationStatus.ACTIVE:
            await work.generations.save(broken.fail(failure, at=now))
        taken: Generation | None = None if to_base else await work.generations.fallback(sandbox.id)
        if taken is not None:
            taken = taken.enter(GenerationStatus.ACTIVE, at=now)
            await work.generations.save(taken)
        instead = "the base: what was installed is not there" if taken is None else taken.tag
        earlier = f"{sandbox.state_reason} " if sandbox.state_reason else ""
        return replace(
            sandbox,
            image=None if taken is None else taken.image,
            state_reason=f"{earlier}Image {broken.tag} does not boot; it was started from {instead}.",
            update_time=now,
            version=sandbox.version + 1,
        )
