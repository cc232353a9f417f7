"""What the CLI says went wrong, as an `Error` event with a constant reason. Pure.

The CLI passes the model API's errors on as a status and a message that is plain text or, once or twice over, a JSON
string; a missing model comes as 500, a broken stream as the parser's complaint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sandboxd.model.events import Error
from sandboxd.stream.cutting import shorten
from sandboxd.stream.decoding import decode_line
from sandboxd.stream.limits import MAX_MESSAGE_BYTES
from sandboxd.stream.reading import number, obj, objects, text
from sandboxd.stream.redaction import redact

CLI_ERROR = "CLI_ERROR"
CLI_EXITED = "CLI_EXITED"
CLI_AUTH_REQUIRED = "CLI_AUTH_REQUIRED"
CLI_SESSION_LOST = "CLI_SESSION_LOST"
SESSION_LOAD_FAILED = "SESSION_LOAD_FAILED"
MODE_NOT_AVAILABLE = "MODE_NOT_AVAILABLE"
MODEL_NOT_AVAILABLE = "MODEL_NOT_AVAILABLE"

_MISSING_MODEL = re.compile(
    r"models?/\S+ is not found|is not found for API version|model .{1,100} not found", re.IGNORECASE
)
_BROKEN_STREAM = re.compile(
    r"\bterminated\b|in JSON at position|Unexpected end of JSON|Unexpected token|Incomplete JSON|socket hang up"
    r"|ECONNRESET"
    r"|other side closed|premature close|stream ended without",
    re.IGNORECASE,
)
_UNREACHABLE = re.compile(
    r"ECONNREFUSED|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|fetch failed|HeadersTimeout|BodyTimeout", re.IGNORECASE
)
_DAILY = re.compile(r"PerDay|daily quota|quota for today", re.IGNORECASE)
_BAD_KEY = re.compile(r"API_KEY_INVALID|API key not valid|API key expired|API_KEY_EXPIRED", re.IGNORECASE)
_BUDGET = re.compile(r"budget for this (day|month) is spent", re.IGNORECASE)
"""Of `model/budget.py`, as the gateway says it."""
_NO_PRICE = re.compile(r"has no price in it", re.IGNORECASE)
_NO_SESSION = re.compile(r"Session not found", re.IGNORECASE)
_API_ERROR = re.compile(r"\A\s*\[API Error: (?P<inner>.*?)\](?P<rest>\s.*)?\Z", re.DOTALL)
_MAX_UNFOLD = 4


def failure_from_rpc(error: Mapping[str, Any]) -> Error:
    """Read a JSON-RPC error of the agent."""
    code = number(error, "code")
    message = text(error, "message")
    details = text(obj(error, "data"), "details")
    if code > 0:
        return failure_from_api(code, message)
    if code == -32000:  # ACP: authentication required
        return _error(CLI_AUTH_REQUIRED, message or "The CLI asks for authentication.")
    if code == -32602 and _NO_SESSION.search(message):  # JSON-RPC: invalid params
        return _error(CLI_SESSION_LOST, message, retryable=True)
    said = f"{message}: {details}" if details and details not in message else message
    return _error(CLI_ERROR, said or "The CLI reported an error without a message.")


def failure_from_api(status: int | None, message: str) -> Error:
    """Read an error of the model API that the CLI passes on; the message's own status wins where it has one."""
    inner = _API_ERROR.match(message)
    plain, found, whole = _unfold(inner["inner"] if inner else message)
    status = found or status
    reason, retryable = _reason(status, f"{plain}\n{whole}")
    return _error(reason, plain or f"The model API answered with status {status}.", status=status, retryable=retryable)


def _reason(status: int | None, said: str) -> tuple[str, bool]:  # a table, first match wins
    if _BAD_KEY.search(said):
        return "MODEL_KEY_INVALID", False
    if status in (None, 404, 500) and _MISSING_MODEL.search(said):
        return "MODEL_NOT_FOUND", False
    if status == 429 or (status is None and _DAILY.search(said)):
        return ("MODEL_QUOTA_SPENT", False) if _DAILY.search(said) else ("MODEL_RATE_LIMITED", True)
    if status == 403 and _BUDGET.search(said):
        return "BUDGET_SPENT", False
    if status == 403 and _NO_PRICE.search(said):
        return "PRICE_UNKNOWN", False
    named = _BY_STATUS.get(status or 0)
    if named is not None:
        return named, False
    if _BROKEN_STREAM.search(said):
        return "MODEL_STREAM_BROKEN", True
    if (status is not None and 500 <= status < 600) or _UNREACHABLE.search(said):
        return "MODEL_UNAVAILABLE", True
    if status is not None and 400 <= status < 500:
        return "MODEL_REQUEST_INVALID", False
    return CLI_ERROR, False


_BY_STATUS = {
    400: "MODEL_REQUEST_INVALID",
    401: "MODEL_UNAUTHENTICATED",
    402: "BUDGET_SPENT",
    403: "MODEL_FORBIDDEN",
    404: "MODEL_NOT_FOUND",
}


def _unfold(message: str) -> tuple[str, int | None, str]:
    """Follow a message that is JSON around a message; answers the plain text, its status, and the last JSON text."""
    status: int | None = None
    whole = message
    for _ in range(_MAX_UNFOLD):
        value = _parsed(message)
        if value is None:
            break
        whole = message
        error = obj(value, "error") or value
        code = number(error, "code") or number(error, "status")
        status = code if 100 <= code < 600 else status
        said = text(error, "message")
        if not said:
            break
        message = said
    return message, status, whole


def _parsed(message: str) -> dict[str, Any] | None:
    stripped = message.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        value = decode_line(f'{{"list":{stripped}}}'.encode("utf-8", "replace"))
        members = objects(value, "list") if isinstance(value, dict) else []
        return members[0] if members else None
    if not stripped.startswith("{"):
        return None
    value = decode_line(stripped.encode("utf-8", "replace"))
    return value if isinstance(value, dict) else None


def cli_exited(*, exit_code: int | None, signal: int | None, stderr_tail: str = "") -> Error:
    """The process ended by itself, or was killed."""
    how = f"signal {signal}" if signal else f"exit code {exit_code}" if exit_code is not None else "no status"
    lines = [line.strip() for line in stderr_tail.splitlines() if line.strip()]
    said = f" Its last words: {lines[-1]}" if lines else ""
    return _error(CLI_EXITED, f"The CLI ended ({how}).{said} Send the next prompt to start it again.", retryable=True)


def named_failure(reason: str, message: str, *, request_id: str = "", retryable: bool = False) -> Error:
    """An error of ours, cleaned like the others."""
    return _error(reason, message, request_id=request_id, retryable=retryable)


def _error(
    reason: str, message: str, *, status: int | None = None, retryable: bool = False, request_id: str = ""
) -> Error:
    return Error(
        reason=reason,
        message=shorten(redact(message), MAX_MESSAGE_BYTES),
        http_status=status,
        retryable=retryable,
        request_id=request_id,
    )
