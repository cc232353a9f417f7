"""What keeping images needs of the database: generations, in a unit of work.

Contract suite: `tests/contract/test_generations.py`. What it needs of the world is `images/ports.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from sandboxd.model.errors import ConflictError, NotFoundError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.image import CommitProgress, CommitTrigger, Generation, GenerationId, tag_of
from sandboxd.model.image_sbom import ImageSbom
from sandboxd.model.paging import Page

QUIET: Final = timedelta(minutes=3)
"""How long after an install, and without a use since, what was installed is committed, where nobody says otherwise."""
ATTEMPTS_KEPT_FOR: Final = timedelta(days=30)
"""How long a commit that left no image is remembered."""


class CommitInProgressError(ConflictError):
    """The sandbox has a commit in flight: one at a time."""

    reason = "COMMIT_IN_PROGRESS"

    def __init__(self, sandbox: SandboxId, *, number: int) -> None:
        super().__init__(
            f"Sandbox {sandbox} is being committed as {tag_of(number)}. "
            "Follow that with WatchCommit, end it with CancelCommit, or try again when it has ended.",
            sandbox=sandbox,
            image=tag_of(number),
            retry_after=timedelta(seconds=10),
        )


class ImageNotFoundError(NotFoundError):
    """The sandbox has no such generation."""

    reason = "IMAGE_NOT_FOUND"

    def __init__(self, sandbox: str, image: str) -> None:
        super().__init__(f"Sandbox {sandbox} has no image {image}.", sandbox=sandbox, image=image)


class GenerationRepository(Protocol):
    """The rows of generations."""

    async def begin(self, generation: Generation) -> Generation:
        """Insert one that is BUILDING, and answer it with the next number of its client's freelancer.

        Raises:
            CommitInProgressError: The sandbox has another one in flight.
        """
        ...

    async def get(self, generation: GenerationId, *, for_update: bool = False) -> Generation:
        """One generation; `for_update` locks the row until the end of the unit of work.

        Raises:
            ImageNotFoundError: There is none.
        """
        ...

    async def numbered(self, sandbox: SandboxId, number: int) -> Generation:
        """The sandbox's generation of this number. Raises as `get`."""
        ...

    async def asked_for(self, client: ClientId, request_id: RequestId) -> Generation | None:
        """The one that a Commit with this request id made, or None."""
        ...

    async def save(self, generation: Generation) -> None:
        """Write a changed one over the row before it; how far it is, and a wish for its end, stay.

        Raises:
            ConflictError: The row has another version.
        """
        ...

    async def note_progress(self, generation: GenerationId, progress: CommitProgress, *, at: datetime) -> None:
        """Write how far it is and nothing else; one that is not in flight stays as it is."""
        ...

    async def cancel(self, generation: GenerationId) -> None:
        """Note the wish that it ends; one that is not in flight stays as it is."""
        ...

    async def in_flight(self, sandbox: SandboxId) -> Generation | None:
        """The sandbox's one whose commit has not ended."""
        ...

    async def list(self, sandbox: SandboxId, *, everything: bool, page_size: int, page_token: str) -> Page[Generation]:
        """One page, the newest first; only what is or may become an image, unless `everything` is wanted.

        Raises:
            InvalidRequestError: The token is not one of such a list (violation `page_token`).
        """
        ...

    async def saved_time(self, sandbox: SandboxId, incarnation: IncarnationId) -> datetime | None:
        """Until when this life's root file system is kept.

        That is when the last capture began that became active or found nothing new; None where there was none. An
        upgrade captures another root file system.
        """
        ...

    async def followed(self, sandbox: SandboxId, incarnation: IncarnationId) -> Generation | None:
        """The one that this life's root file system goes on from, of those to which nobody rolled back in that life.

        It is what was active last: what the life was started from, or its newest commit. None where there was none. An
        upgrade, which lies beside a life that is over, is none of these.
        """
        ...

    async def fallback(self, sandbox: SandboxId) -> Generation | None:
        """The one that was active last, before the present one, and can still be started from."""
        ...

    async def newest(self, client: ClientId, freelancer: FreelancerId) -> Generation | None:
        """Of the active ones of a repository, the one that became so last: what `latest` names."""
        ...

    async def unfinished(
        self, *, limit: int, after: GenerationId | None = None, trigger: CommitTrigger | None = None
    ) -> Sequence[Generation]:
        """Those in flight, of all sandboxes, by id, after an id; of one trigger, or of all."""
        ...

    async def untold(self, *, limit: int, after: GenerationId | None = None) -> Sequence[Generation]:
        """Active ones of which the backend and the tag do not know, by id, after an id."""
        ...

    async def forget(self, *, before: datetime, limit: int) -> int:
        """Delete FAILED, DISCARDED and DELETED ones that ended before; answers how many.

        One that was pushed stays until it is DELETED: its row is what knows of the image.
        """
        ...

    async def owners(
        self, *, limit: int, after: tuple[ClientId, FreelancerId] | None = None
    ) -> Sequence[tuple[ClientId, FreelancerId]]:
        """All freelancers of all clients, those that were deleted too: what their repositories are called by.

        By client and freelancer, after a pair.
        """
        ...

    async def of_owner(
        self, client: ClientId, freelancer: FreelancerId, *, numbers: Sequence[int] = ()
    ) -> Sequence[Generation]:
        """Those of one repository that are in flight, or were pushed and are not deleted; and of these numbers all."""
        ...

    async def hold_owner(self, client: ClientId, freelancer: FreelancerId) -> None:
        """Keep commits in this repository from beginning until the end of the unit of work."""
        ...


class SbomRepository(Protocol):
    """What is known of the packages in images. A row goes with its generation's.

    Contract suite: `tests/contract/test_image_sboms.py`.
    """

    async def add(self, sbom: ImageSbom) -> None:
        """Insert what a capture found, in place of what an earlier try of the same commit did."""
        ...

    async def get(self, generation: GenerationId) -> ImageSbom | None:
        """One with its packages, or None where nobody knew them."""
        ...

    async def note(self, sbom: ImageSbom) -> None:
        """Write what became of an attempt; packages stay as they are. One that is gone is no error."""
        ...

    async def claim(self, *, at: datetime, until: datetime, limit: int) -> Sequence[ImageSbom]:
        """Take those whose time has come, of images that were booted and are kept, with one attempt more each.

        Others leave them alone until `until`. They come without their packages.
        """
        ...

    async def pending(self) -> int:
        """How many of images that are kept are not attached."""
        ...
