"""What the gateway answers where it does not forward, in the shape of the model API's errors.

The CLI has to stop cleanly: no plain 429 or 5xx for a condition that will not pass, because it would retry that.

The texts are for the person at the CLI. They never repeat what the request held.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import Final

_RPC: Final = "type.googleapis.com/google.rpc."
_DOMAIN: Final = "sandboxd"


class RefusalReason(enum.Enum):
    """Why a request was not forwarded. Closed: it is a metric's label."""

    HTTP_INVALID = "HTTP_INVALID"
    """Not HTTP; answered by the HTTP library."""
    PATH_UNKNOWN = "PATH_UNKNOWN"
    TOKEN_MISSING = "TOKEN_MISSING"  # noqa: S105 - a word, not a token
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105
    INCARNATION_ENDED = "INCARNATION_ENDED"
    SUSPENDED = "SUSPENDED"
    KEY_MISSING = "KEY_MISSING"
    MODEL_NOT_ALLOWED = "MODEL_NOT_ALLOWED"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    BUDGET_SPENT = "BUDGET_SPENT"
    PRICE_UNKNOWN = "PRICE_UNKNOWN"
    BODY_INVALID = "BODY_INVALID"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    BODY_TOO_SLOW = "BODY_TOO_SLOW"
    SSE_REQUIRED = "SSE_REQUIRED"
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    GATEWAY_BUSY = "GATEWAY_BUSY"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    STOPPING = "STOPPING"
    INTERNAL = "INTERNAL"
    # The call was forwarded, and the API gave nothing that could be passed on:
    UPSTREAM_UNREACHABLE = "UPSTREAM_UNREACHABLE"
    UPSTREAM_TIMEOUT = "UPSTREAM_TIMEOUT"
    UPSTREAM_CUT = "UPSTREAM_CUT"
    UPSTREAM_REDIRECT = "UPSTREAM_REDIRECT"
    RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    code: int
    status: str
    message: str
    retry_after: int | None = None
    """Seconds after which the same may succeed."""


_R = RefusalReason
_SHAPES: Final = {
    _R.HTTP_INVALID: _Shape(code=400, status="INVALID_ARGUMENT", message="The request is not valid HTTP."),
    _R.PATH_UNKNOWN: _Shape(code=404, status="NOT_FOUND", message="This gateway does not serve that address."),
    _R.TOKEN_MISSING: _Shape(code=401, status="UNAUTHENTICATED", message="The sandbox token is missing."),
    _R.TOKEN_INVALID: _Shape(code=401, status="UNAUTHENTICATED", message="The sandbox token is not valid."),
    _R.TOKEN_EXPIRED: _Shape(code=401, status="UNAUTHENTICATED", message="The sandbox token has expired."),
    _R.INCARNATION_ENDED: _Shape(
        code=401, status="UNAUTHENTICATED", message="This sandbox was stopped or its access was revoked."
    ),
    _R.SUSPENDED: _Shape(
        code=403, status="PERMISSION_DENIED", message="This account is suspended. Ask the client's administrator."
    ),
    _R.KEY_MISSING: _Shape(
        code=403, status="PERMISSION_DENIED", message="No API key is set for this client. Ask its administrator."
    ),
    _R.MODEL_NOT_ALLOWED: _Shape(
        code=403, status="PERMISSION_DENIED", message="This model is not allowed for this client. Choose another one."
    ),
    _R.METHOD_NOT_ALLOWED: _Shape(
        code=403, status="PERMISSION_DENIED", message="This method is not allowed for this client."
    ),
    _R.BUDGET_SPENT: _Shape(
        code=403, status="PERMISSION_DENIED", message="The budget is spent. Ask the client's administrator."
    ),
    _R.PRICE_UNKNOWN: _Shape(
        code=403,
        status="PERMISSION_DENIED",
        message="This model has no price, and a budget in money applies. Choose another model.",
    ),
    _R.BODY_INVALID: _Shape(code=400, status="INVALID_ARGUMENT", message="The request's body is not a JSON object."),
    _R.BODY_TOO_LARGE: _Shape(code=400, status="INVALID_ARGUMENT", message="The request is too large."),
    _R.BODY_TOO_SLOW: _Shape(code=408, status="DEADLINE_EXCEEDED", message="The request's body took too long."),
    _R.SSE_REQUIRED: _Shape(
        code=400, status="INVALID_ARGUMENT", message="streamGenerateContent is served with ?alt=sse only."
    ),
    _R.TOO_MANY_CALLS: _Shape(
        code=429, status="RESOURCE_EXHAUSTED", message="This sandbox has too many calls at once.", retry_after=1
    ),
    _R.GATEWAY_BUSY: _Shape(code=503, status="UNAVAILABLE", message="The gateway is busy.", retry_after=1),
    _R.LEDGER_UNAVAILABLE: _Shape(
        code=503, status="UNAVAILABLE", message="The call cannot be recorded now, so it is not made.", retry_after=2
    ),
    _R.CIRCUIT_OPEN: _Shape(
        code=503, status="UNAVAILABLE", message="The model API keeps failing; calls to it rest for a moment."
    ),
    _R.STOPPING: _Shape(code=503, status="UNAVAILABLE", message="The gateway is restarting.", retry_after=1),
    _R.INTERNAL: _Shape(code=500, status="INTERNAL", message="The gateway failed."),
    _R.UPSTREAM_UNREACHABLE: _Shape(
        code=503, status="UNAVAILABLE", message="The model API cannot be reached.", retry_after=2
    ),
    _R.UPSTREAM_TIMEOUT: _Shape(code=504, status="DEADLINE_EXCEEDED", message="The model API did not answer in time."),
    _R.UPSTREAM_CUT: _Shape(code=502, status="UNAVAILABLE", message="The model API closed the connection."),
    # 4xx although the fault is behind us: it will not pass by trying again.
    _R.UPSTREAM_REDIRECT: _Shape(
        code=400, status="FAILED_PRECONDITION", message="The model API answered with a redirect, which is not followed."
    ),
    _R.RESPONSE_TOO_LARGE: _Shape(
        code=400, status="FAILED_PRECONDITION", message="The model API's answer is larger than the gateway passes on."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer of the gateway's own."""

    reason: RefusalReason
    message: str = ""
    """Replaces the standard text; must not repeat what the request held."""
    retry_after: int | None = None
    """Replaces the standard number of seconds."""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> int:
        """HTTP status."""
        return _SHAPES[self.reason].code

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the body."""
        headers = {"content-type": "application/json; charset=UTF-8", "cache-control": "no-store"}
        if (seconds := self._seconds()) is not None:
            headers["retry-after"] = str(seconds)
        return headers

    def body(self) -> bytes:
        """Return the error in the API's shape."""
        shape = _SHAPES[self.reason]
        details: list[dict[str, object]] = [
            {
                "@type": f"{_RPC}ErrorInfo",
                "reason": self.reason.value,
                "domain": _DOMAIN,
                "metadata": self.metadata,
            }
        ]
        if (seconds := self._seconds()) is not None:
            details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": f"{seconds}s"})
        error = {"code": shape.code, "message": self.message or shape.message, "status": shape.status}
        return json.dumps({"error": {**error, "details": details}}).encode()

    def _seconds(self) -> int | None:
        return self.retry_after if self.retry_after is not None else _SHAPES[self.reason].retry_after


class RefusedError(Exception):
    """Ends the handling of a request with a refusal; never leaves the gateway room."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason.value)
        self.refusal = refusal
        self.reason = refusal.reason.value


def refuse(reason: RefusalReason, *, message: str = "", retry_after: int | None = None) -> RefusedError:
    """Make the error that refuses a request."""
    return RefusedError(Refusal(reason=reason, message=message, retry_after=retry_after))
