"""What can go wrong while a sandbox's root file system is kept as an image."""

from __future__ import annotations

from sandboxd.model.errors import ErrorKind, ExhaustedError, SandboxdError, UnavailableError, WrongStateError


class ImageTooLargeError(ExhaustedError):
    """A limit of what a commit may be was exceeded; the message names the limit and the largest paths."""

    reason = "IMAGE_TOO_LARGE"


class ImageBrokenError(SandboxdError):
    """A candidate does not boot; it never becomes active."""

    kind = ErrorKind.WRONG_STATE
    reason = "IMAGE_BROKEN"


class ImageUnnamedError(WrongStateError):
    """A sandbox runs from an image that is named by a tag: what the tag meant at its start, nobody knows any more."""

    reason = "IMAGE_UNNAMED"


class CaptureUnsupportedError(WrongStateError):
    """The sandbox has no root file system of its own: what is there is the machine's."""

    reason = "CAPTURE_UNSUPPORTED"


class CaptureRunningError(UnavailableError):
    """Another capture of the same sandbox runs; try again when it has ended."""

    reason = "CAPTURE_RUNNING"


class PackageManagerBusyError(WrongStateError):
    """An installation runs in the sandbox, and its files belong to no moment; commit when it has ended."""

    reason = "PACKAGE_MANAGER_BUSY"


class PackagesInterruptedError(WrongStateError):
    """An installation was killed halfway; `dpkg --configure -a` in the sandbox ends it, then commit."""

    reason = "PACKAGES_INTERRUPTED"


class CaptureInvalidError(SandboxdError):
    """What a sandbox sent is no difference from its base: its agent was replaced, or has a defect."""

    kind = ErrorKind.WRONG_STATE
    reason = "CAPTURE_INVALID"


class SecretsFoundError(WrongStateError):
    """Keys or tokens lie in what would be kept, and the client's policy refuses that; the message names the paths."""

    reason = "SECRETS_FOUND"


class FileTornError(UnavailableError):
    """A file of a program or a package database was written to all the time while it was read; try again."""

    reason = "FILE_TORN"


class BaselineDamagedError(UnavailableError):
    """A base image's entries in the cache are cut or damaged; they are made anew by the next attempt."""

    reason = "BASELINE_DAMAGED"


class LayerWriterFailedError(UnavailableError):
    """The process that writes a layer was killed, or has no room: nothing of the sandbox is wrong; try again."""

    reason = "LAYER_WRITER_FAILED"


class ImageInvalidError(UnavailableError):
    """What the registry has is no image that can be taken apart: damaged, hostile, or of an unknown form."""

    reason = "IMAGE_INVALID"


class SpoolFullError(ExhaustedError):
    """Where layers are written before they are pushed has no room; nothing of the sandbox is wrong."""

    reason = "SPOOL_FULL"


class ImageUsesUnknownError(UnavailableError):
    """Something that may name images cannot be asked now, so none is deleted; try again."""

    reason = "IMAGE_USES_UNKNOWN"


class RegistryKeepsError(WrongStateError):
    """The registry deletes nothing: its storage.delete.enabled is off, or it is being cleaned up and read-only."""

    reason = "REGISTRY_DELETES_NOTHING"


class ManyImagesLostError(UnavailableError):
    """The registry misses most of the images that were asked for: it is another one, or has lost its storage."""

    reason = "IMAGES_MISSING"


class ProjectForeignError(WrongStateError):
    """The registry has a project of the client's name that is public, or holds what is none of its images."""

    reason = "REGISTRY_PROJECT_FOREIGN"
