"""What a commit decides from what it knows: on what its layer lies, whether it still fits, what is said of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from sandboxd.images.ports import BuildOrder, BuiltImage, ImageReference
from sandboxd.model.commit_errors import CommitOvertakenError, ImageNotRunningError
from sandboxd.model.errors import UnavailableError
from sandboxd.model.image import (
    LISTED,
    CommitPhase,
    CommitTrigger,
    Failure,
    Generation,
    ImageContent,
    LeftOutPaths,
    SandboxImage,
)
from sandboxd.model.sandbox import Sandbox, SandboxState

PHASES: Final = {phase.value: phase for phase in CommitPhase}
RESTING: Final = frozenset({SandboxState.STOPPED, SandboxState.PAUSED})
"""States in which a sandbox has no compute and nothing that is not in its image."""
LOST_IN_UPGRADES: Final = frozenset({"by_hand", "package_failed", "not_replayed"})
"""Reasons for what an upgrade of a base has left out."""


def as_begun(sandbox: Sandbox, generation: Generation) -> bool:
    """Tell whether a sandbox has the image and the life that a commit began with; under an upgrade it rests, too."""
    if generation.trigger is CommitTrigger.UPGRADE and sandbox.state not in RESTING:
        return False
    present = None if sandbox.image is None else sandbox.image.generation
    return (present, sandbox.incarnation or "") == (generation.parent, generation.incarnation)


def started_from(sandbox: Sandbox, generation: Generation, *, image: SandboxImage | None, at: datetime) -> Sandbox:
    """Return a sandbox that starts from an image from now on; what an upgrade did is said on it."""
    reason = sandbox.state_reason
    if generation.trigger is CommitTrigger.UPGRADE:
        left_out = () if generation.content is None else generation.content.left_out
        lost = sum(one.count for one in left_out if one.reason in LOST_IN_UPGRADES)
        text = f"Its base was upgraded ({generation.tag})" + (f"; {lost} things were left out." if lost else ".")
        reason = f"{reason} {text}" if reason else text
    return replace(sandbox, image=image, state_reason=reason, update_time=at, version=sandbox.version + 1)


def base_of(
    sandbox: Sandbox, active: Generation | None, generation: Generation, running: ImageReference
) -> ImageReference:
    """Say on what the layer lies.

    Raises:
        ImageNotRunningError: What runs is neither the base nor what its next start takes, and not what that was made
            from: a commit would bring back what was rolled back.
        UnavailableError: What runs is an image of the freelancer's, and the row knows of none.
    """
    if active is None:
        if running.repository == generation.repository:
            raise ImageNotRunningError(
                f"Sandbox {sandbox.id} runs from {running.digest}, and its next start takes the base. "
                "Pause and Resume it first.",
                sandbox=sandbox.id,
                running=running.digest,
            )
        return running
    follows = active.incarnation == generation.incarnation or running.digest == _digest(active)
    if active.given_up == generation.incarnation or not follows:
        raise ImageNotRunningError(
            f"Sandbox {sandbox.id} does not run from {active.tag}, which its next start takes since a rollback: "
            "what runs is not kept. Pause and Resume it, or roll forward.",
            sandbox=sandbox.id,
            image=active.tag,
            running=running.digest,
        )
    try:
        return ImageReference.parse(active.base)
    except ValueError as error:
        raise UnavailableError(f"The base of {active.tag} is not known.", image=active.tag) from error


def _digest(generation: Generation) -> str:
    return "" if generation.content is None else generation.content.digest


def overtaken(generation: Generation) -> Failure:
    """Say that something else was faster."""
    error = CommitOvertakenError(
        f"While {generation.tag} was made, sandbox {generation.sandbox} began another life or got another image. "
        "What is active stays. Commit again.",
        sandbox=generation.sandbox,
        image=generation.tag,
    )
    return Failure(kind=error.kind, reason=error.reason, message=error.message, metadata=error.metadata)


def seconds_of(built: BuiltImage) -> Mapping[str, float]:
    """By our phases: what else a builder does comes before, and belongs to, the capture."""
    seconds: dict[str, float] = {}
    for name, took in built.seconds.items():
        phase = PHASES.get(name, CommitPhase.CAPTURE).value
        seconds[phase] = round(seconds.get(phase, 0.0) + took, 6)
    return seconds


def content_of(built: BuiltImage, order: BuildOrder) -> ImageContent:
    """Say what was built."""
    own = (
        built.image is not None and built.image != order.base
    )  # the base has all of it already, and is no image of ours
    return ImageContent(
        digest=built.image.digest if own and built.image is not None else "",
        layer_digest=built.layer_digest,
        diff_id=built.diff_id,
        raw_bytes=built.raw_bytes,
        compressed_bytes=built.compressed_bytes,
        image_bytes=built.image_bytes,
        layers=built.layers,
        entries=built.entries,
        largest=tuple(built.largest[:LISTED]),
        left_out=tuple(
            LeftOutPaths(reason=one.reason, count=one.count, paths=tuple(one.paths[:LISTED]))
            for one in built.left_out[: 2 * LISTED]
        ),
    )
