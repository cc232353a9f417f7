"""What the Kubernetes API refuses, by what a caller may do about it."""

from __future__ import annotations


class KubeError(Exception):
    """Root: the API server refused, or did not answer."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        """HTTP status; 0 where there was none."""
        self.reason = reason
        """The API's own word, for example `AlreadyExists`."""


class KubeUnavailableError(KubeError):
    """It does not answer, or is overloaded: the same request may succeed later. It may also have been carried out."""


class KubeNotFoundError(KubeError):
    """The object, its namespace or its kind does not exist."""


class KubeConflictError(KubeError):
    """It exists already, or was changed by somebody else (`AlreadyExists`, `Conflict`)."""


class KubeForbiddenError(KubeError):
    """Not allowed, over quota, or refused by an admission rule; the message says which."""


class KubeGoneError(KubeError):
    """The resource version is too old: list again."""


class KubeInvalidError(KubeError):
    """The object breaks a rule of its kind."""


def error_of(status: int, reason: str, message: str) -> KubeError:
    """Choose the error of a status."""
    if status >= 500 or status in (408, 429) or status == 401:
        kind: type[KubeError] = KubeUnavailableError  # 401: a token that is just being renewed
    else:
        kind = {
            403: KubeForbiddenError,
            404: KubeNotFoundError,
            409: KubeConflictError,
            410: KubeGoneError,
            422: KubeInvalidError,
        }.get(status, KubeError)
    return kind(message, status=status, reason=reason)
