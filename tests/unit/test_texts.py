"""What is left of texts by the client's policy."""

from __future__ import annotations

import json
import typing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model import events
from sandboxd.model.events import SessionEvent, TextState
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.stream.codec import encode_body
from sandboxd.stream.personal import redact_personal
from sandboxd.stream.redaction import REDACTED
from sandboxd.stream.texts import redact_chunks, rewrite, treat
from tests.contract.journal_world import an_event

SESSION, TURN = SessionId("ses-1"), TurnId("trn-1")
CANARY = "ada.lovelace@example.org"
DIFF = events.Diff(path=CANARY, old_text=CANARY, new_text=CANARY, kind="modify")
ALLOW = events.PermissionOptionKind.ALLOW_ONCE
TEXTUAL: list[events.EventBody] = [
    events.SessionOpened(title=CANARY),
    events.TurnStarted(
        request_id="r-1",
        number=1,
        text=CANARY,
        attachments=[events.AttachmentInfo(name=CANARY, mime_type="text/plain", size=3, sha256="ab")],
    ),
    events.Text(text=CANARY),
    events.Thought(subject=CANARY, text=CANARY),
    events.ToolCall(call="c", tool="t", title=CANARY, kind=events.ToolKind.EDIT, locations=[CANARY]),
    events.ToolOutput(call="c", tool="t", status=events.ToolStatus.COMPLETED, text=CANARY, diffs=[DIFF]),
    events.PermissionRequest(
        permission="p",
        call="c",
        tool="t",
        title=CANARY,
        options=[events.PermissionOption(id="o", label=CANARY, kind=ALLOW)],
        text=CANARY,
        diffs=[DIFF],
    ),
    events.Notice(code="PLAN", message=CANARY),
    events.Error(reason="CLI_EXITED", message=CANARY),
]


def texts(*pieces: str) -> list[SessionEvent]:
    return [an_event(SESSION, n, events.Text(text=piece), turn=TURN) for n, piece in enumerate(pieces, start=1)]


@pytest.mark.parametrize("body", TEXTUAL, ids=lambda body: type(body).__name__)
@pytest.mark.parametrize("state", [TextState.REDACTED, TextState.ERASED])
def test_no_text_of_an_event_escapes(body: events.EventBody, state: TextState) -> None:
    (treated,) = treat([an_event(SESSION, 1, body)], state)

    written = json.dumps(encode_body(treated.body))
    assert CANARY not in written
    assert (REDACTED in written) is (state is TextState.REDACTED)
    assert type(treated.body) is type(body)
    assert treated.text_state is state


def test_every_kind_of_event_has_a_rule() -> None:
    known = {type(body) for body in TEXTUAL} | {events.Unparsed}
    textless = {kind for kind in typing.get_args(events.EventBody) if kind not in known}

    assert {kind.__name__ for kind in textless} == {
        "Waking",
        "SessionReady",
        "PermissionAnswered",
        "ModeChanged",
        "ModelChanged",
        "CommandsAvailable",
        "CancelRequested",
        "Usage",
        "TurnCompleted",
    }, "a new kind of event: say in stream/texts.py what of it is text, and put it into one of the lists here"


def test_bytes_that_could_not_be_understood_go_with_their_digest() -> None:
    body = events.Unparsed(data=b"key AIzaSyD-0123456789abcdefghij", size=33, why="NOT_JSON", sha256="ab")

    assert rewrite(body, TextState.ERASED) == events.Unparsed(data=b"", size=33, why="NOT_JSON")
    assert rewrite(body, TextState.REDACTED) == events.Unparsed(data=b"key [redacted]", size=33, why="NOT_JSON")


def test_what_was_erased_is_not_brought_back_by_a_milder_policy() -> None:
    erased = treat(texts("hello ", "there"), TextState.ERASED)

    assert treat(erased, TextState.REDACTED) == erased
    assert treat(erased, TextState.KEPT) == erased


def test_a_secret_that_was_cut_into_chunks_is_found() -> None:
    treated = treat(texts("write to ada@exa", "mple", ".org, or call +49 30", " 1234567", "."), TextState.REDACTED)

    assert [event.body.text for event in treated if isinstance(event.body, events.Text)] == [
        f"write to {REDACTED}",
        "",
        f", or call {REDACTED}",
        "",
        ".",
    ]


@given(st.text(alphabet="ab@.+1234567890 -:/=_kpswordAIza", max_size=120), st.lists(st.integers(0, 120), max_size=6))
def test_chunks_are_redacted_as_their_whole(text: str, cuts: list[int]) -> None:
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chunks = [text[begin:end] for begin, end in pairwise(borders)]

    assert "".join(redact_chunks(chunks)) == redact_personal(text)


@pytest.mark.parametrize(
    "secret",
    [
        "AIzaSyD-0123456789abcdefghijklmnop",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefghij0123456789abcdef",
        "glpat-0123456789abcdefghij",
        "xoxb-0123456789-abcdef",
        "sk-proj-0123456789abcdefABCDEF",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "ada@example.org",
        "+49 30 1234567",
        "DE89 3704 0044 0532 0130 00",
        "4111 1111 1111 1111",
        'password = "correct horse"',
        "client_secret:abcd1234",
    ],
)
def test_what_looks_secret_or_personal_is_replaced(secret: str) -> None:
    assert redact_personal(f"before {secret} after") == f"before {REDACTED} after"


@pytest.mark.parametrize(
    "harmless",
    [
        "def password(self): return None",
        "1 + 1 = 2, and 3.14159265358979",
        "2026-11-28 16:20:00 took 1234567890123 ns",
        "commit 4111111111111112 of the tree",
        "http://localhost:8080/path?x=1",
        "@pytest.mark.parametrize and user@host",
        "DE00 1234 5678 9012 3456 78",
    ],
)
def test_what_only_resembles_it_stays(harmless: str) -> None:
    assert redact_personal(harmless) == harmless


def test_redaction_takes_time_in_proportion_to_the_text() -> None:
    for hostile in (
        "a" * 200_000,
        "+1" + " 1" * 100_000,
        "://" + "a:" * 100_000,
        "-----BEGIN PRIVATE KEY-----" * 5_000,
    ):
        assert len(redact_personal(hostile)) <= len(hostile)
