"""What is left of an event's text when a client's policy says so: everything, all but secrets, or nothing. Pure.

Prompts, answers, thoughts, titles, tool output, diffs, paths, names of attachments and messages are text; kinds, ids,
states, token counts and moments are not. An answer comes in chunks, so the chunks of one are looked at together: a
secret that was cut in two is found, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final, assert_never

from sandboxd.model import events
from sandboxd.model.events import EventBody, SessionEvent, TextState
from sandboxd.stream.personal import personal_spans, redact_personal
from sandboxd.stream.redaction import REDACTED, redact_bytes

_STRICTNESS: Final = {TextState.KEPT: 0, TextState.REDACTED: 1, TextState.ERASED: 2}


def treat(chunk: Sequence[SessionEvent], state: TextState) -> list[SessionEvent]:
    """Return events with their text as the state says; what was treated as strictly before stays as it is."""
    return [event for _, run in groupby(chunk, key=_run) for event in _treat_run(list(run), state)]


def treat_text(text: str, state: TextState) -> str:
    """Return one text as the state says."""
    match state:
        case TextState.KEPT:
            return text
        case TextState.REDACTED:
            return redact_personal(text)
        case TextState.ERASED:
            return ""
        case _:
            assert_never(state)


def redact_chunks(texts: Sequence[str]) -> list[str]:
    """Redact texts that are pieces of one; a secret across a border is replaced in the piece where it begins."""
    spans = personal_spans("".join(texts))
    pieces, at = [], 0
    for text in texts:
        last = at + len(text)
        piece, after = [], at
        for begin, end in spans:
            if begin < last and end > at:
                piece.append(text[after - at : max(begin, at) - at])
                piece.append(REDACTED if begin >= at else "")
                after = min(end, last)
        pieces.append("".join([*piece, text[after - at :]]))
        at = last
    return pieces


def _run(event: SessionEvent) -> tuple[object, ...]:
    """Events with the same answer here are pieces of one text; all others stand alone."""
    if isinstance(event.body, events.Text):
        return (event.turn, event.text_state)
    return (event.sequence,)


def _treat_run(run: Sequence[SessionEvent], state: TextState) -> Iterator[SessionEvent]:
    if _STRICTNESS[run[0].text_state] >= _STRICTNESS[state]:
        yield from run
    elif state is TextState.REDACTED and len(run) > 1:
        texts = [event.body.text for event in run if isinstance(event.body, events.Text)]
        for event, text in zip(run, redact_chunks(texts), strict=True):
            yield replace(event, body=events.Text(text=text), text_state=state)
    else:
        for event in run:
            yield replace(event, body=rewrite(event.body, state), text_state=state)


def rewrite(body: EventBody, state: TextState) -> EventBody:
    """Return an event's body with its texts as the state says."""

    def words(text: str) -> str:
        return treat_text(text, state)

    match body:
        case events.SessionOpened():
            return events.SessionOpened(title=words(body.title))
        case events.TurnStarted():
            named = tuple(replace(one, name=words(one.name), sha256="") for one in body.attachments)
            return replace(body, text=words(body.text), attachments=named)
        case events.Text():
            return events.Text(text=words(body.text))
        case events.Thought():
            return events.Thought(subject=words(body.subject), text=words(body.text))
        case events.ToolCall():
            return replace(body, title=words(body.title), locations=tuple(filter(None, map(words, body.locations))))
        case events.ToolOutput():
            return replace(body, text=words(body.text), diffs=_diffs(body.diffs, state))
        case events.PermissionRequest():
            labelled = tuple(replace(one, label=words(one.label)) for one in body.options)
            diffs = _diffs(body.diffs, state)
            return replace(body, title=words(body.title), text=words(body.text), diffs=diffs, options=labelled)
        case events.Notice() | events.Error():
            return replace(body, message=words(body.message))
        case events.Unparsed():
            return replace(body, data=redact_bytes(body.data) if state is TextState.REDACTED else b"", sha256="")
        case (
            events.Waking()
            | events.SessionReady()
            | events.PermissionAnswered()
            | events.ModeChanged()
            | events.ModelChanged()
            | events.CommandsAvailable()
            | events.CancelRequested()
            | events.Usage()
            | events.TurnCompleted()
        ):
            return body
        case _:
            assert_never(body)


def _diffs(diffs: Sequence[events.Diff], state: TextState) -> Sequence[events.Diff]:
    if state is TextState.ERASED:
        return ()
    return tuple(
        replace(
            diff,
            path=treat_text(diff.path, state),
            old_text=None if diff.old_text is None else treat_text(diff.old_text, state),
            new_text=treat_text(diff.new_text, state),
        )
        for diff in diffs
    )
