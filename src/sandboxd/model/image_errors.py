"""What can go wrong while a sandbox's root file system is kept as an image."""

from __future__ import annotations

from sandboxd.model.errors import ErrorKind, ExhaustedError, SandboxdError


class ImageTooLargeError(ExhaustedError):
    """A limit of what a commit may be was exceeded; the message names the limit and the largest paths."""

    reason = "IMAGE_TOO_LARGE"


class ImageBrokenError(SandboxdError):
    """A candidate does not boot; it never becomes active."""

    kind = ErrorKind.WRONG_STATE
    reason = "IMAGE_BROKEN"
