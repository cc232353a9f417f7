"""Which paths of a volume can be brought back."""

from __future__ import annotations

import os

from sandboxd.model.errors import FieldViolation, InvalidRequestError
from sandboxd.volumes.ports import STAGING


def check_path(path: bytes) -> None:
    """Look at a path that is to come back, before anything is done for it.

    Raises:
        InvalidRequestError: It is none below the root of a volume, or names what restores put together.
    """
    if not path or b"\0" in path or any(part in {b"", b".", b".."} for part in path.split(b"/")):
        raise _refused(path, "is no path below the root of a volume.")
    if path.startswith(os.fsencode(STAGING)):
        raise _refused(path, "was left by a restore, and is not brought back.")


def _refused(path: bytes, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{os.fsdecode(path)!r} {why}",
        violations=[FieldViolation(field="paths", description="relative, of parts that are not empty, . or ..")],
    )
