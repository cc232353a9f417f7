"""Looks at an image's signatures before a sandbox starts from it, as policy says.

A start that is refused is no broken image: nothing is taken instead, for then whoever can remove a signature could have
a sandbox lose what was installed in it, or start an older image with known holes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import structlog

from sandboxd.images.ports import ImageReference
from sandboxd.images.signing import ImageSignatures, SignaturePolicy, Verdict
from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.model.commit_errors import ImageUntrustedError
from sandboxd.model.errors import SandboxdError
from sandboxd.model.image import Generation, tag_of
from sandboxd.model.sandbox import Sandbox

REMEMBERED: Final = 10_000
"""Images whose signature was good; it stays so as long as the keys do, which is as long as this process lives."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class ImageTrust:
    """Asks once for each image in the life of a process."""

    signatures: ImageSignatures
    policy: SignaturePolicy
    metrics: CommitMetrics
    _good: OrderedDict[str, None] = field(default_factory=OrderedDict, init=False)

    async def check(self, sandbox: Sandbox) -> None:
        """Return where a sandbox may start from its image.

        Raises:
            ImageUntrustedError: The policy demands a signature of a trusted key, and there is none.
            UnavailableError, DeadlineError: It demands one, and the registry cannot be asked.
        """
        image = sandbox.image
        if self.policy is SignaturePolicy.NEVER or image is None or image.reference in self._good:
            return
        try:
            verdict = await self.signatures.look(ImageReference.parse(image.reference))
        except SandboxdError as error:
            self.metrics.signature_seen("unknown")
            if self.policy is SignaturePolicy.REQUIRE:
                raise
            log.warning("image.signature_unknown", sandbox=sandbox.id, image=tag_of(image.number), error=error.message)
            return
        self.metrics.signature_seen(verdict.value)
        if verdict is Verdict.GOOD:
            self._good[image.reference] = None
            while len(self._good) > REMEMBERED:
                self._good.popitem(last=False)
            return
        log.warning("image.not_trusted", sandbox=sandbox.id, image=tag_of(image.number), signature=verdict.value)
        if self.policy is SignaturePolicy.REQUIRE:
            raise ImageUntrustedError(
                f"Image {tag_of(image.number)} of sandbox {sandbox.id} {_WORDS[verdict]}, and "
                "SANDBOXD_IMAGES_SIGNATURES demands one. Nothing was started. An operator can have it signed "
                "(sandboxctl admin sweep images), trust its key (SANDBOXD_IMAGES_SIGNING_TRUST_DIR), or roll back.",
                sandbox=sandbox.id,
                image=tag_of(image.number),
                signature=verdict.value,
            )


_WORDS: Final = {
    Verdict.MISSING: "has no signature",
    Verdict.BAD: "has signatures, and none of a trusted key for this image in this repository",
}


async def sign_proven(
    signatures: ImageSignatures | None, generation: Generation, *, policy: SignaturePolicy, metrics: CommitMetrics
) -> None:
    """Sign an image that was booted, before anything starts from it; else the care does, where no start demands it.

    Raises:
        SandboxdError: It could not be signed, and starts would refuse it.
    """
    if signatures is None or signatures.key is None:
        return
    try:
        await signatures.sign(ImageReference.parse(generation.reference))
    except SandboxdError as error:
        metrics.signed("failed")
        if policy is SignaturePolicy.REQUIRE:
            raise
        log.warning("image.not_signed", sandbox=generation.sandbox, image=generation.tag, error=error.message)
    else:
        metrics.signed("signed")
