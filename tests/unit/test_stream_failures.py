"""Errors with constant reasons, and without keys."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.stream.cutting import clean, cut, pieces, shorten
from sandboxd.stream.failures import cli_exited, failure_from_api, failure_from_rpc
from sandboxd.stream.headless.exits import judge_exit
from sandboxd.stream.redaction import REDACTED, redact, redact_bytes
from sandboxd.stream.unparsed import unparsed

KEY = "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"


def google(code: int, message: str, **details: Any) -> str:
    return json.dumps({"error": {"code": code, "message": message, "status": "X", **details}})


BAD_KEY = google(400, "API key not valid.", details=[{"reason": "API_KEY_INVALID"}])


@pytest.mark.parametrize(
    ("code", "message", "reason", "retryable"),
    [
        (400, BAD_KEY, "MODEL_KEY_INVALID", False),
        (400, google(400, "The input token count (1200000) exceeds the maximum"), "MODEL_REQUEST_INVALID", False),
        (401, google(401, "Request had invalid authentication credentials."), "MODEL_UNAUTHENTICATED", False),
        (402, google(402, "The budget of this sandbox is spent."), "BUDGET_SPENT", False),
        (403, google(403, "The caller does not have permission"), "MODEL_FORBIDDEN", False),
        (404, "models/none is not found", "MODEL_NOT_FOUND", False),
        (500, "models/none is not found for API version v1beta", "MODEL_NOT_FOUND", False),
        (429, "Rate limit exceeded. Try again later.", "MODEL_RATE_LIMITED", True),
        (429, "You have exhausted your daily quota on this model.", "MODEL_QUOTA_SPENT", False),
        (
            429,
            google(429, "Quota", details=[{"violations": [{"quotaId": "GenerateRequestsPerDayPerProject"}]}]),
            "MODEL_QUOTA_SPENT",
            False,
        ),
        (500, "Internal error encountered.", "MODEL_UNAVAILABLE", True),
        (503, google(503, "The model is overloaded."), "MODEL_UNAVAILABLE", True),
        (500, "terminated", "MODEL_STREAM_BROKEN", True),
        (500, "Unterminated string in JSON at position 52", "MODEL_STREAM_BROKEN", True),
        (500, "fetch failed", "MODEL_UNAVAILABLE", True),
        (413, "too large", "MODEL_REQUEST_INVALID", False),
        (-32000, "Gemini API key is missing or not configured.", "CLI_AUTH_REQUIRED", False),
        (-32602, "Session not found: x", "CLI_SESSION_LOST", True),
        (-32602, "other", "CLI_ERROR", False),
        (-32603, "Internal error", "CLI_ERROR", False),
        (0, "", "CLI_ERROR", False),
    ],
)
def test_every_error_of_the_cli_has_its_reason(code: int, message: str, reason: str, *, retryable: bool) -> None:
    error = failure_from_rpc({"code": code, "message": message})

    assert (error.reason, error.retryable) == (reason, retryable)
    assert not error.message.startswith("{")
    assert error.message


def test_a_message_that_is_json_in_json_is_unfolded() -> None:
    folded = json.dumps({"error": {"message": google(402, "The budget is spent."), "code": 500}})

    error = failure_from_rpc({"code": 500, "message": folded})

    assert (error.reason, error.message, error.http_status) == ("BUDGET_SPENT", "The budget is spent.", 402)


def test_a_list_around_the_error_is_unfolded() -> None:
    error = failure_from_api(None, f"[API Error: [{google(503, 'busy')}]]")

    assert (error.reason, error.message) == ("MODEL_UNAVAILABLE", "busy")


@given(
    st.dictionaries(
        st.sampled_from(["code", "message", "data"]),
        st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.dictionaries(st.text(), st.text())),
    )
)
def test_any_error_is_an_error(error: dict[str, Any]) -> None:
    assert failure_from_rpc(error).reason


@pytest.mark.parametrize(
    ("exit_code", "signal", "reason", "stop"),
    [
        (0, None, "CLI_EXITED", "interrupted"),
        (None, 9, "CLI_EXITED", "interrupted"),
        (None, None, "CLI_EXITED", "interrupted"),
        (130, None, "CLI_EXITED", "interrupted"),
        (1, None, "CLI_EXITED", "interrupted"),
        (41, None, "CLI_AUTH_REQUIRED", "error"),
        (42, None, "CLI_INPUT_REFUSED", "error"),
        (44, None, "CLI_ERROR", "error"),
        (52, None, "CLI_SETTINGS_INVALID", "error"),
        (53, None, None, "max_turn_requests"),
        (54, None, "CLI_ERROR", "error"),
        (55, None, "CLI_FOLDER_UNTRUSTED", "error"),
        (144, None, "MODEL_REQUEST_INVALID", "error"),
        (145, None, "MODEL_UNAUTHENTICATED", "error"),
        (146, None, "BUDGET_SPENT", "error"),
        (147, None, "MODEL_FORBIDDEN", "error"),
        (148, None, "MODEL_NOT_FOUND", "error"),
        (173, None, "MODEL_RATE_LIMITED", "error"),
        (244, None, "MODEL_UNAVAILABLE", "error"),
        (247, None, "MODEL_UNAVAILABLE", "error"),
    ],
)
def test_every_exit_code_of_a_headless_run_has_its_meaning(
    exit_code: int | None, signal: int | None, reason: str | None, stop: str
) -> None:
    judged, error = judge_exit(exit_code=exit_code, signal=signal, stderr_tail="")

    assert (judged.value, error.reason if error else None) == (stop, reason)


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        f"x-goog-api-key: {KEY}",
        '{"x-goog-api-key": "plain-secret-1"}',
        "x-goog-api-key=plain-secret-1",
        "Authorization: Bearer plain-secret-1",
        "authorization: bearer plain-secret-1",
        "https://host/v1?key=plain-secret-1&alt=sse",
        "GEMINI_API_KEY=plain-secret-1",
        "sbxd-ses-01kabcdefghjkmnpqrstvwxyz0",
        "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        "ya29.a0AfH6SMBx-secret",
    ],
)
def test_keys_and_tokens_are_taken_out(secret: str) -> None:
    said = f"It failed with {secret} and went on."

    redacted = redact(said)

    assert REDACTED in redacted
    assert "plain-secret" not in redacted
    assert KEY not in redacted
    assert "01kabc" not in redacted
    assert "c2lnbmF0" not in redacted
    assert "a0AfH6" not in redacted
    assert redacted.startswith("It failed with ")
    assert redacted.endswith(" and went on.")
    assert secret not in failure_from_rpc({"code": 500, "message": said}).message
    assert secret not in cli_exited(exit_code=1, signal=None, stderr_tail=said).message
    assert secret.encode() not in unparsed(said.encode(), "NOT_JSON").data


def test_what_is_no_secret_stays() -> None:
    said = "sandboxes/sbx-01kabcdefghjkmnpqrstvwxyz0 is bearer of good news; the key was missing"

    assert redact(said) == said.replace("bearer of", f"bearer {REDACTED}")
    assert redact_bytes(b"\xff\x00 keep \xfe") == b"\xff\x00 keep \xfe"


@given(st.text(), st.integers(min_value=4, max_value=50))
def test_pieces_fit_and_lose_nothing(text: str, limit: int) -> None:
    made = list(pieces(text, limit))

    assert "".join(made) == clean(text)
    assert all(len(piece.encode()) <= limit for piece in made)
    assert all(made) or made == [""]


@given(st.text(), st.integers(min_value=0, max_value=50))
def test_a_cut_text_is_a_beginning_that_fits(text: str, limit: int) -> None:
    kept, was_cut = cut(clean(text), limit)

    assert clean(text).startswith(kept)
    assert len(kept.encode()) <= limit
    assert was_cut == (kept != clean(text))


def test_a_shortened_text_says_what_is_missing() -> None:
    assert shorten("abcdef", 3) == "abc … [3 characters cut]"
