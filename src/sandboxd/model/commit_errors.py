"""What can go wrong with commits and images beside what is in them (`image_errors.py`)."""

from __future__ import annotations

from sandboxd.model.errors import ErrorKind, SandboxdError, UnavailableError, WrongStateError


class CommitsOffError(WrongStateError):
    """This installation has no registry to keep images in; `SANDBOXD_IMAGES_REGISTRY` names one."""

    reason = "COMMITS_OFF"


class CommitCancelledError(SandboxdError):
    """Somebody ended the commit before it was done; what was active stays."""

    kind = ErrorKind.CONFLICT
    reason = "COMMIT_CANCELLED"


class CommitOvertakenError(SandboxdError):
    """While it was committed the sandbox began another life, or got another image; what is active stays."""

    kind = ErrorKind.CONFLICT
    reason = "COMMIT_OVERTAKEN"


class CommitAbandonedError(UnavailableError):
    """The commit was begun again after crashes, and broke off every time; try again."""

    reason = "COMMIT_ABANDONED"


class ImageNotRunningError(WrongStateError):
    """The sandbox runs from another image than the one that its next start takes: it was rolled back, or fell back."""

    reason = "IMAGE_NOT_RUNNING"


class ImageUnusableError(WrongStateError):
    """Nothing can be started from this image: it was never booted, it failed, or it is being removed."""

    reason = "IMAGE_UNUSABLE"


class CommitEndedError(WrongStateError):
    """The commit has ended already; there is nothing to cancel."""

    reason = "COMMIT_ENDED"


class RootNotSavedError(WrongStateError):
    """What was installed could not be kept, and the compute is not released without it; `force` gives it up."""

    reason = "ROOT_NOT_SAVED"


class PackagesUnknownError(WrongStateError):
    """It is not known what is installed in an image, so nothing of it can be made again on another base."""

    reason = "PACKAGES_UNKNOWN"


class BaseCurrentError(WrongStateError):
    """The sandbox starts from the present base already, or from an image on it: there is nothing to upgrade."""

    reason = "BASE_CURRENT"


class SandboxNotRestingError(WrongStateError):
    """The sandbox has compute: what runs would not be in the upgraded image. Pause it first."""

    reason = "SANDBOX_NOT_RESTING"


class ReplayIncompleteError(WrongStateError):
    """Something of the image cannot be made again on the new base, and was not to be left out; the message names it."""

    reason = "REPLAY_INCOMPLETE"


class ImageUntrustedError(WrongStateError):
    """No trusted key has signed the image, and policy demands that; nothing was started, and nothing else is taken."""

    reason = "IMAGE_UNTRUSTED"
