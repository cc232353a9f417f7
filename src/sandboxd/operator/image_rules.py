"""Whose an image is, and what a kubelet's words say of one that it could not pull. Pure."""

from __future__ import annotations

import re
from typing import Final

from sandboxd.model.cluster import PlacedSpec
from sandboxd.model.cluster_status import Reason
from sandboxd.model.image_names import belongs_to, split_image

# Words of containerd, CRI-O and Go's net and net/http that the kubelet passes on; the first kind that is found counts.
_NO_ANSWER: Final = re.compile(
    r"dial tcp|connection (refused|reset)|no such host|server misbehaving|no route to host|network is unreachable"
    r"|time[d ]?-?out|deadline exceeded|context canceled|tls:|x509:|certificate|unauthorized|unauthenticated|forbidden"
    r"|authoriz|authenticat|access denied|insufficient_scope|too many requests|toomanyrequests"
    r"|\b(401|403|408|429|5\d\d) |no space left|disk quota|server gave http response",
    re.IGNORECASE,
)
_MISSING: Final = re.compile(
    r"not found|(manifest|name|blob|repository) unknown|repository name not known", re.IGNORECASE
)
_BROKEN: Final = re.compile(
    r"failed to extract|failed to unpack|apply layer|wrong diff ?id|unexpected (commit )?digest|failed size validation"
    r"|unexpected media type|unsupported media ?type|no match for platform|invalid (tar|checksum|reference)|mismatch",
    re.IGNORECASE,
)
_NAMES: Final = re.compile(r'"[^"]*"|https?://\S+|\S+@sha256:\S+')
"""Names of images and addresses: a client may be called `timeout`."""


def is_foreign(spec: PlacedSpec) -> str:
    """Say why a sandbox may not have its image; empty where it may.

    Its own repository is its client's: what one client's people have installed runs for nobody else.
    """
    if not spec.image:
        return ""
    try:
        _, repository, _ = split_image(spec.image)
    except ValueError as error:
        return f"The image is refused: {error}."
    if belongs_to(repository, spec.client):
        return ""
    return f"The image {spec.image} is refused: its repository is not one of client {spec.client}."


def pull_reason(why: str, message: str, *, before: Reason) -> Reason:
    """Say what it means that an image cannot be pulled.

    Args:
        why: The kubelet's reason, such as `ErrImagePull`.
        message: Its words, with those of the node's runtime.
        before: What was said of the same pod last: while a kubelet of an older version backs off, it gives no cause.
    """
    if why == "InvalidImageName":
        return Reason.IMAGE_MISSING
    text = _NAMES.sub("", message)
    if _NO_ANSWER.search(text) or why == "RegistryUnavailable":
        return Reason.REGISTRY_UNAVAILABLE
    if _BROKEN.search(text):
        return Reason.IMAGE_BROKEN
    if _MISSING.search(text):
        return Reason.IMAGE_MISSING
    if why == "ImagePullBackOff" and before in (Reason.IMAGE_MISSING, Reason.IMAGE_BROKEN):
        return before
    return Reason.REGISTRY_UNAVAILABLE
