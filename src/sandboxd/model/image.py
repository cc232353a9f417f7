"""Generations: what a sandbox's root file system was kept as, from the wish for a commit to what became of the image.

A generation is made by one commit. Its number belongs to a client's freelancer, as its repository does; its life to
one sandbox, whose starts take the ACTIVE one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, NewType

from sandboxd.model.errors import ErrorKind, WrongStateError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.replay import ReplayPolicy

GenerationId = NewType("GenerationId", str)

LATEST: Final = "latest"
"""The tag that follows the newest active generation of a repository, for people: nothing is started from it."""
LISTED: Final = 10
"""Paths, and reasons, that are kept of each kind at most."""
MAX_NUMBER: Final = 999_999
"""Largest number of a generation: its tag has six digits."""
_TAG: Final = re.compile(r"g([0-9]{6})")


class GenerationStatus(enum.Enum):
    """Where a generation is in its life."""

    BUILDING = "building"
    """Its commit captures, validates and pushes; nothing of it can be used."""
    PUSHED = "pushed"
    """The registry has it, byte for byte. It was not booted."""
    VERIFIED = "verified"
    """It was booted once. Nothing starts from it."""
    ACTIVE = "active"
    """Its sandbox's next start takes it."""
    SUPERSEDED = "superseded"
    """Another one took its place, or was faster. It can be rolled back to where it was verified."""
    FAILED = "failed"
    """Its commit failed or was cancelled, or it did not boot; nothing starts from it again."""
    DISCARDED = "discarded"
    """Its commit ended well without an image of its own: nothing had changed, or it was a dry run."""
    DELETING = "deleting"
    """It is being removed from the registry."""
    DELETED = "deleted"
    """The registry has it no more."""

    @property
    def in_flight(self) -> bool:
        """True while a commit works on it."""
        return self in IN_FLIGHT


_G = GenerationStatus
IN_FLIGHT: Final = frozenset({_G.BUILDING, _G.PUSHED, _G.VERIFIED})
STATUS_TRANSITIONS: Final[Mapping[GenerationStatus, frozenset[GenerationStatus]]] = {
    _G.BUILDING: frozenset({_G.PUSHED, _G.FAILED, _G.DISCARDED}),
    _G.PUSHED: frozenset({_G.VERIFIED, _G.FAILED, _G.SUPERSEDED}),
    _G.VERIFIED: frozenset({_G.ACTIVE, _G.FAILED, _G.SUPERSEDED}),
    _G.ACTIVE: frozenset({_G.SUPERSEDED, _G.FAILED}),
    _G.SUPERSEDED: frozenset({_G.ACTIVE, _G.FAILED, _G.DELETING}),
    _G.FAILED: frozenset({_G.DELETING}),
    _G.DISCARDED: frozenset(),
    _G.DELETING: frozenset({_G.DELETED}),
    _G.DELETED: frozenset(),
}
"""From each status, those that may follow. ACTIVE to FAILED: it booted once, and does not boot any more."""


class CommitTrigger(enum.Enum):
    """Why there is a commit."""

    REQUEST = "request"
    """Somebody called Commit."""
    STOP = "stop"
    """Policy is about to release the compute."""
    PAUSE = "pause"
    TERMINATE = "terminate"
    INSTALL = "install"
    """Something was installed, and the sandbox has been idle since."""
    UPGRADE = "upgrade"
    """What is installed is made again on the present base, in a sandbox that is there for nothing else."""
    RESTORE = "restore"
    """None was made: another sandbox's image is this one's, too, as it was restored from that one's backup."""


class CommitPhase(enum.Enum):
    """What a commit does, in this order."""

    HELD = "held"
    """Nothing is done before the end of a hold on pushes."""
    REPLAY = "replay"
    """Of an upgrade: packages are installed again on the new base."""
    CAPTURE = "capture"
    """The difference is streamed from the sandbox, validated and written as a layer."""
    PUSH = "push"
    VERIFY = "verify"
    """The registry is asked for what was pushed."""
    PROBE = "probe"
    """The candidate is booted once."""
    ACTIVATE = "activate"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutPaths:
    """What was not kept, by reason."""

    reason: str
    """A constant word, as `secret`, `socket` or `excluded`."""
    count: int
    paths: Sequence[str] = ()
    """Some of them, at most `LISTED`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContent:
    """What was built: sizes in bytes, digests as `sha256:…`."""

    digest: str
    """Of the manifest; empty of a dry run."""
    layer_digest: str = ""
    diff_id: str = ""
    raw_bytes: int = 0
    """Of the user's layer as a tar: what it takes on each node."""
    compressed_bytes: int = 0
    image_bytes: int = 0
    """Of all layers and the configuration, compressed."""
    layers: int = 0
    entries: int = 0
    """Of the user's layer, whiteouts among them."""
    largest: Sequence[tuple[str, int]] = ()
    """The largest paths with their bytes, at most `LISTED`."""
    left_out: Sequence[LeftOutPaths] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitProgress:
    """How far a commit is."""

    phase: CommitPhase = CommitPhase.CAPTURE
    entries: int = 0
    """Paths looked at."""
    bytes: int = 0
    """Of content captured, or of the layer pushed."""
    total_bytes: int = 0
    """Where known, else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a commit came to nothing: an error, as it is raised again."""

    kind: ErrorKind
    reason: str
    """The constant word of the error, as `IMAGE_TOO_LARGE`."""
    message: str
    """For people."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxImage:
    """The generation that a sandbox's next start takes."""

    generation: GenerationId
    number: int
    reference: str
    """`registry/repository@sha256:…`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One commit and the image that it made."""

    id: GenerationId
    sandbox: SandboxId
    client: ClientId
    freelancer: FreelancerId
    number: int
    """Unique in its repository, growing with gaps: 1 to `MAX_NUMBER`."""
    incarnation: IncarnationId
    """Whose root file system it keeps; of an UPGRADE the sandbox's last life when it began, whose packages it has."""
    trigger: CommitTrigger
    replay_policy: ReplayPolicy | None = None
    """Of an UPGRADE: what happens where something cannot be made again."""
    dry_run: bool = False
    request_id: RequestId | None = None
    """Of the Commit that asked for it."""
    registry: str = ""
    """Host and port; empty until the build knows it."""
    repository: str
    base: str = ""
    """The base that it lies on, `registry/repository@sha256:…`."""
    parent: GenerationId | None = None
    """What was active when it began, and what it may take the place of."""
    given_up: IncarnationId | None = None
    """The sandbox's last life when somebody rolled back to this one: what that has is not wanted, and not kept."""
    status: GenerationStatus = GenerationStatus.BUILDING
    progress: CommitProgress = field(default_factory=CommitProgress)
    cancelled: bool = False
    """Somebody wishes its end; who works on it sees to that."""
    content: ImageContent | None = None
    """None until it is built."""
    unchanged: bool = False
    """DISCARDED because the parent, or the base, has all of it already."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each phase took."""
    failure: Failure | None = None
    attempts: int = 1
    """How often its build was begun."""
    create_time: datetime
    update_time: datetime
    capture_time: datetime | None = None
    """When the capture that counts began: what was written before it is kept."""
    push_time: datetime | None = None
    verify_time: datetime | None = None
    activate_time: datetime | None = None
    """When it became active last."""
    told_time: datetime | None = None
    """When the backend and the tag `latest` were told that it is active; None: they have to be."""
    end_time: datetime | None = None
    """When its commit ended, in whatever way."""
    version: int = 1
    """Grows with every write but those of progress."""

    @property
    def tag(self) -> str:
        """Its tag: `g` and six digits."""
        return tag_of(self.number)

    @property
    def in_flight(self) -> bool:
        """True while its commit goes on."""
        return self.status.in_flight

    @property
    def bootable(self) -> bool:
        """True when it was booted once, and is still there: a start may take it."""
        kept = (GenerationStatus.VERIFIED, GenerationStatus.ACTIVE, GenerationStatus.SUPERSEDED)
        return self.status in kept and self.verify_time is not None and self.content is not None

    @property
    def reference(self) -> str:
        """`registry/repository@sha256:…`; empty while there is no image."""
        if self.content is None or not self.content.digest:
            return ""
        return f"{self.registry}/{self.repository}@{self.content.digest}"

    @property
    def image(self) -> SandboxImage:
        """What its sandbox's row says of it when it is active."""
        return SandboxImage(generation=self.id, number=self.number, reference=self.reference)

    def begun_again(self) -> Generation:
        """Return it with its build begun once more; as it is where that was done."""
        if self.status is not GenerationStatus.BUILDING:
            return self
        return replace(self, attempts=self.attempts + 1, version=self.version + 1)

    def enter(self, status: GenerationStatus, *, at: datetime) -> Generation:
        """Return this generation in its next status.

        Raises:
            GenerationStatusError: The table does not allow it.
        """
        if status not in STATUS_TRANSITIONS[self.status]:
            raise GenerationStatusError(self, wanted=status)
        return replace(
            self,
            status=status,
            update_time=at,
            push_time=at if status is GenerationStatus.PUSHED else self.push_time,
            verify_time=at if status is GenerationStatus.VERIFIED else self.verify_time,
            activate_time=at if status is GenerationStatus.ACTIVE else self.activate_time,
            told_time=None if status is GenerationStatus.ACTIVE else self.told_time,
            given_up=None if status is GenerationStatus.ACTIVE else self.given_up,
            failure=None if status is GenerationStatus.ACTIVE else self.failure,
            end_time=at if self.end_time is None and not status.in_flight else self.end_time,
            version=self.version + 1,
        )

    def fail(self, failure: Failure, *, at: datetime) -> Generation:
        """Return it FAILED. Else as `enter`."""
        return replace(self.enter(GenerationStatus.FAILED, at=at), failure=failure)


class GenerationStatusError(WrongStateError):
    """A generation's status does not allow what was wanted."""

    reason = "IMAGE_STATUS_INVALID"

    def __init__(self, generation: Generation, *, wanted: GenerationStatus) -> None:
        super().__init__(
            f"Image {generation.tag} of sandbox {generation.sandbox} is {generation.status.value} "
            f"and cannot become {wanted.value}.",
            sandbox=generation.sandbox,
            image=generation.tag,
            status=generation.status.value,
            wanted=wanted.value,
        )


def tag_of(number: int) -> str:
    """Return the tag of a generation: `g000001`.

    Raises:
        ValueError: The number has no such tag.
    """
    if not 1 <= number <= MAX_NUMBER:
        raise ValueError(f"a generation's number is 1 to {MAX_NUMBER}, not {number}")
    return f"g{number:06}"


def number_of(tag: str) -> int | None:
    """Return the number that a tag names, or None."""
    found = _TAG.fullmatch(tag)
    return int(found[1]) or None if found else None


def build_sandbox(generation: GenerationId) -> SandboxId:
    """Return the id of the sandbox in which an upgrade is built: that of its commit in other letters, and no row's."""
    return SandboxId(f"sbx{generation.removeprefix('gen')}")
