"""What is attached to an image, on a registry: listed by its API where it has one, else under a tag that stands for it.

docker-registry 2.8 has no such API: there the list is an index under the tag `sha256-…`, which whoever attaches
something has to write (OCI distribution specification 1.1, "Referrers Tag Schema").
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

from sandboxd.backends.registry.transport import Answer
from sandboxd.images.referrers import Referrer, describe, make_index, read_index, subject_of_tag, tag_of_subject
from sandboxd.images.registry import ATTACHED, MANIFEST_BYTES, Manifest, Registry
from sandboxd.model.errors import NotFoundError, UnavailableError

SUBJECT_HEADER: Final = "OCI-Subject"
"""Sent with the answer to a push by a registry that lists what is attached by itself."""

Lister = Callable[[str, str], Awaitable[Answer]]
"""Asks a repository's API for what is attached to a digest: the answer is 200, or 404 where there is no such API."""


async def enlist(registry: Registry, repository: str, manifest: Manifest, *, timeout: timedelta) -> None:
    """Write a manifest into the list under its subject's tag.

    Raises:
        UnavailableError: The list is none, or is full.
    """
    subject, described = describe(manifest)
    listed = await _tagged(registry, repository, subject, timeout=timeout)
    if any(one.digest == described.digest for one in listed):
        return
    index = make_index([*listed, described])
    if len(index.content) > MANIFEST_BYTES:
        raise UnavailableError(f"The list of what is attached to {subject} is full.", digest=subject)
    await registry.push(repository, tag_of_subject(subject), index, timeout=timeout)


async def find(
    registry: Registry, repository: str, subject: str, *, ask: Lister, timeout: timedelta
) -> Sequence[Manifest]:
    """Return what is attached, by either way or by a tag: at most `ATTACHED`, in the order of their digests."""
    found = dict[str, Manifest]()
    for tag in await _tags_of(registry, repository, subject, timeout=timeout):
        if tag != tag_of_subject(subject) and (one := await _get(registry, repository, tag, timeout=timeout)):
            found[one.digest] = one
    answer = await ask(repository, subject)
    by_api = read_index(answer.content) if answer.status == 200 else []
    for listed in (*by_api, *await _tagged(registry, repository, subject, timeout=timeout)):
        if listed.digest in found or len(found) >= ATTACHED:
            continue
        one = await _get(registry, repository, listed.digest, timeout=timeout)
        # Lists can be written by whoever may push: only what says itself that it belongs to the image does.
        if one is not None and _belongs(one, subject):
            found[one.digest] = one
    return [found[digest] for digest in sorted(found)]


async def remove(registry: Registry, repository: str, subject: str, *, ask: Lister, timeout: timedelta) -> int:
    """Delete what is attached, and the list last: what a crash leaves is found again by it."""
    attached = await find(registry, repository, subject, ask=ask, timeout=timeout)
    for one in attached:
        if one.digest != subject:
            await registry.delete(repository, one.digest, timeout=timeout)
    index = await _get(registry, repository, tag_of_subject(subject), timeout=timeout)
    if index is not None and index.digest != subject:
        await registry.delete(repository, index.digest, timeout=timeout)
    return len(attached)


async def _tags_of(registry: Registry, repository: str, subject: str, *, timeout: timedelta) -> Sequence[str]:
    return [tag for tag in await registry.tags(repository, timeout=timeout) if subject_of_tag(tag) == subject]


async def _tagged(registry: Registry, repository: str, subject: str, *, timeout: timedelta) -> Sequence[Referrer]:
    index = await _get(registry, repository, tag_of_subject(subject), timeout=timeout)
    return [] if index is None else read_index(index.content)


async def _get(registry: Registry, repository: str, reference: str, *, timeout: timedelta) -> Manifest | None:
    try:
        return await registry.manifest(repository, reference, timeout=timeout)
    except NotFoundError:
        return None


def _belongs(manifest: Manifest, subject: str) -> bool:
    try:
        return describe(manifest)[0] == subject
    except ValueError:
        return False
