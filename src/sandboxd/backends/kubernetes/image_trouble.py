"""Whether a sandbox that does not come up has a broken image of its own, or something that no other image would help.

A registry that is away says nothing of an image: the start fails, and the image stays what it is. What the agent's own
image, a node or a quota lacks is no fault of the sandbox's image either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster_status import ConditionType, PlacedState, Reason
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.legible import legible

OWN_PATIENCE: Final[Mapping[Reason, timedelta]] = {
    Reason.IMAGE_MISSING: timedelta(seconds=2),
    Reason.IMAGE_BROKEN: timedelta(seconds=2),
    Reason.CONTAINER_FAILED: timedelta(seconds=5),
}
"""How long each may stay of an image of one's own: the registry has said no, or the runtime, and says it again."""
LISTEN_PATIENCE: Final = timedelta(seconds=30)
"""From the container's start until the kubelet must have found the agent's port open; it takes 0.3 s, and a crowded
node ten times as long."""
MESSAGE_CHARACTERS: Final = 600
WORDS: Final[Mapping[BootStep, str]] = {
    BootStep.PULL: "its registry does not have it",
    BootStep.UNPACK: "what its registry has cannot be unpacked",
    BootStep.CONTAINER: "the node cannot make a container of it",
    BootStep.AGENT: "the agent does not run in it",
    BootStep.USER: "its user gemini is not as it must be",
    BootStep.MOUNTS: "a mount point in it is no directory",
    BootStep.SHELL: "its shell does not run",
    BootStep.PACKAGES: "its packages are not installed whole",
    BootStep.CLI: "Gemini CLI does not start in it",
    BootStep.SUDO: "sudo does not work in it",
}
_OTHERS_FAULT: Final = re.compile(
    r"^(CreateContainerConfigError|ErrImage|ImagePull|ImageInspectError)|deadline exceeded|failed to reserve"
)
"""Words of a kubelet that tell of something beside the image: a Secret that is not there yet, a node without time."""
_AGENTS_WORD: Final = re.compile(r"exit code (2|3)\b")
"""An agent that cannot use its configuration, or was started a second time, says so: no image would help."""


def broken_at(placed: Placed) -> BootStep | None:
    """Say at which step the sandbox's own image fails; None where it is the base's, or where it is not the image."""
    if not placed.spec.image:
        return None
    status = placed.status
    # Of several images that a pod has, the message names the one that it is about.
    named = placed.spec.image.rpartition("@")[2] in status.message
    match status.reason:
        case Reason.IMAGE_MISSING if named:
            return BootStep.PULL
        case Reason.IMAGE_BROKEN if named:
            return BootStep.UNPACK
        case Reason.CONTAINER_FAILED if not never_mind(status.message):
            return BootStep.CONTAINER
        case Reason.CONTAINER_RESTARTED | Reason.POD_FAILED if status.state is PlacedState.FAILED:
            return None if _AGENTS_WORD.search(status.message) else BootStep.AGENT
        case _:
            return None


def never_mind(message: str) -> bool:
    """Tell whether a container that cannot be made is no fault of its image, by what the kubelet says."""
    return _OTHERS_FAULT.search(message) is not None


def listens(placed: Placed) -> bool:
    """Tell whether the kubelet finds the agent's port open: then it is the way to it that is closed to us."""
    condition = placed.status.find(ConditionType.READY)
    return condition is not None and condition.status is True


def image_broken(sandbox: str, image: str, step: BootStep, message: str) -> ImageBrokenError:
    """The error of an image that does not boot."""
    told = legible(message, limit=MESSAGE_CHARACTERS)
    return ImageBrokenError(
        f"Image {image} of sandbox {sandbox} does not boot: {WORDS[step]} (step {step.value})."
        + (f" {told}" if told else ""),
        sandbox=sandbox,
        image=image,
        step=step.value,
    )
