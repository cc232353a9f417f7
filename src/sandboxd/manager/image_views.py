"""Images as people and programs are shown them: with what to look at, and with what a commit failed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sandboxd.images.ports import ImageLimits
from sandboxd.manager.outcome import restore_error
from sandboxd.manager.ports import ErrorRecord
from sandboxd.model.image import Generation, GenerationStatus

NEAR: Final = 0.8
"""From this part of its limit on a layer is called near it."""
_SAID: Final = {
    "secret": "left out because they hold keys or tokens, or usually do",
    "unreadable": "left out because they could not be read",
    "vanished": "left out because they changed whenever they were looked at",
    "too_deep": "left out because their paths are too long or too deep",
    "package_failed": "not there on the new base because they could not be installed",
    "package_version": "there in another version, because the one before could not be had on the new base",
    "by_hand": "not on the new base because no package brings them",
    "whiteout_name": "left out because images cannot hold names that begin with .wh.",
}
"""Reasons for leaving something out that its owner should know of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImage:
    """A generation, and what a person should look at."""

    generation: Generation
    warnings: Sequence[str] = ()


def show(generation: Generation, *, limits: ImageLimits) -> ShownImage:
    """Say what a person should look at, where these are the limits of the sandbox."""
    content = generation.content
    if content is None:
        return ShownImage(generation=generation)
    warnings = [
        f"{one.count} {'package' if one.reason.startswith('package') else 'path'}(s) {_SAID[one.reason]}."
        for one in content.left_out
        if one.reason in _SAID
    ]
    limit = limits.raw_bytes
    if limit and content.raw_bytes >= NEAR * limit:
        part = content.raw_bytes * 100 // limit
        largest = "".join(f"; {path} has {size:,} bytes" for path, size in content.largest[:3])
        warnings.insert(0, f"The layer has {content.raw_bytes:,} of {limit:,} bytes ({part} %){largest}.")
    return ShownImage(generation=generation, warnings=warnings)


def raise_failure(generation: Generation) -> Generation:
    """Answer a generation whose commit ended well.

    Raises:
        SandboxdError: What it failed with.
    """
    failure = generation.failure
    if failure is None or generation.status not in (GenerationStatus.FAILED, GenerationStatus.SUPERSEDED):
        return generation
    raise restore_error(
        ErrorRecord(kind=failure.kind, reason=failure.reason, message=failure.message, metadata=dict(failure.metadata))
    )
