"""Where freelancers' images lie in a registry: `<client>/gemini-cli-user-<freelancer>`, below whatever prefix there is.

A repository is a client's by its path, so that whoever starts an image can see whose it is.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from sandboxd.model.ids import ClientId, FreelancerId

IMAGE_PREFIX: Final = "gemini-cli-user-"
"""Begins the last part of a repository's path; the freelancer follows."""

_PART: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
"""One part of a path: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests."""
_PROJECT: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
"""A name that Harbor takes for a project: never two of those marks beside each other."""
_HASHED: Final = re.compile(r".*-x[0-9a-f]{12}")
_BY_DIGEST: Final = re.compile(
    r"(?P<registry>[a-zA-Z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](?::[0-9]{1,5})?)"
    rf"/(?P<repository>{_PART.pattern}(?:/{_PART.pattern})*)"
    r"@(?P<digest>sha256:[0-9a-f]{64})"
)
LONGEST: Final = 512
"""Characters of an image's name; the schema of the `Sandbox` resource has the same."""


def split_image(text: str) -> tuple[str, str, str]:
    """Split `registry/repository@sha256:…` into registry, repository and digest.

    Raises:
        ValueError: It is no image by digest in a named registry: a tag can be moved, so it names no image.
    """
    found = _BY_DIGEST.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        raise ValueError(f"{text[:LONGEST]!r} is no image by digest (registry/repository@sha256:…)")
    return found["registry"], found["repository"], found["digest"]


def user_repository(client: ClientId, freelancer: FreelancerId, *, prefix: str = "") -> str:
    """Return the repository of a freelancer's images at a client, below a prefix of the registry such as `sandboxd`.

    No two pairs share one: a name that no path can hold ends in `-x` and twelve digits of its hash, and a name that
    ends so by itself is changed, too.
    """
    path = f"{_part(client)}/{IMAGE_PREFIX}{_part(freelancer)}"
    return f"{prefix.strip('/')}/{path}" if prefix else path


def user_project(client: ClientId, *, prefix: str = "") -> str:
    """Return the project of a client's images on a registry that has such; its name begins with the prefix and `-`.

    No two clients share one, for the same reason as above.
    """
    name = _part(client)
    if not _PROJECT.fullmatch(name):
        name = _hashed(client)
    return f"{prefix}-{name}" if prefix else name


def belongs_to(repository: str, client: ClientId) -> bool:
    """Tell whether a repository holds images of the client's freelancers."""
    *_, owner, name = ("", *repository.split("/"))
    return owner == _part(client) and name.startswith(IMAGE_PREFIX)


def _part(name: str) -> str:
    if _PART.fullmatch(name) and not _HASHED.fullmatch(name):
        return name
    return _hashed(name)


def _hashed(name: str) -> str:
    kept = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{kept or 'n'}-x{hashlib.sha256(name.encode()).hexdigest()[:12]}"
