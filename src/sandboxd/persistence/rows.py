"""Sessions, turns and events: from what the database holds to the model, and back. Plain functions, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sandboxd.model.events import SessionEvent, TextState, Unparsed
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.session import Attachment, PromptInput, Session, StopReason, Turn, TurnState
from sandboxd.persistence.escape import dump_json, escape, load_json, unescape
from sandboxd.stream.codec import UnreadableEventError, decode_body, encode_body, kind_of
from sandboxd.stream.ports import Conversation

Row = Mapping[str, Any]
"""A record: asyncpg's and SQLAlchemy's mappings alike. Any: its columns have any type."""

_TEXT_STATE: Final = "text_state"
"""Name beside the fields of an event's payload; left out where the text is as it was written."""
SESSION_COLUMNS: Final = (
    "id, sandbox, client, freelancer, title, mode, model, cli_session, head_sequence, turns, open_turn,"
    " create_time, update_time, delete_time"
)
TURN_COLUMNS: Final = "id, session, number, request_id, state, stop_reason, prompt, start_time, end_time, traceparent"
CONVERSATION_COLUMNS: Final = (
    "sandbox, epoch, owner, incarnation, process, dialect, consumed, written, snapshot::text AS snapshot"
)


def session_values(session: Session) -> tuple[Any, ...]:  # Any: one value a column
    """A session's values in the order of SESSION_COLUMNS."""
    return (
        session.id,
        session.sandbox,
        session.client,
        session.freelancer,
        escape(session.title),
        escape(session.mode),
        escape(session.model),
        escape(session.cli_session),
        session.head_sequence,
        session.turns,
        session.open_turn,
        session.create_time,
        session.update_time,
        session.delete_time,
    )


def read_session(row: Row) -> Session:
    """A session from its row."""
    return Session(
        id=SessionId(row["id"]),
        sandbox=SandboxId(row["sandbox"]),
        client=ClientId(row["client"]),
        freelancer=FreelancerId(row["freelancer"]),
        title=unescape(row["title"]),
        mode=unescape(row["mode"]),
        model=unescape(row["model"]),
        cli_session=unescape(row["cli_session"]),
        head_sequence=row["head_sequence"],
        turns=row["turns"],
        open_turn=TurnId(row["open_turn"]) if row["open_turn"] else None,
        create_time=row["create_time"],
        update_time=row["update_time"],
        delete_time=row["delete_time"],
    )


def turn_values(turn: Turn) -> tuple[Any, ...]:  # Any: one value a column
    """A turn's values in the order of TURN_COLUMNS."""
    return (
        turn.id,
        turn.session,
        turn.number,
        turn.request_id,
        turn.state.value,
        turn.stop_reason.value if turn.stop_reason else None,
        escape(turn.prompt.text),
        turn.start_time,
        turn.end_time,
        turn.traceparent,
    )


def read_turn(row: Row, attachments: Sequence[Attachment]) -> Turn:
    """A turn from its row and those of its attachments."""
    return Turn(
        id=TurnId(row["id"]),
        session=SessionId(row["session"]),
        number=row["number"],
        request_id=RequestId(row["request_id"]),
        state=TurnState(row["state"]),
        prompt=PromptInput(text=unescape(row["prompt"]), attachments=tuple(attachments)),
        stop_reason=StopReason(row["stop_reason"]) if row["stop_reason"] else None,
        start_time=row["start_time"],
        end_time=row["end_time"],
        traceparent=row["traceparent"],
    )


def event_values(event: SessionEvent) -> tuple[Any, ...]:  # Any: one value a column
    """An event as (session, sequence, turn, kind, payload, size, event_time)."""
    encoded = encode_body(event.body)
    if event.text_state is not TextState.KEPT:
        encoded[_TEXT_STATE] = event.text_state.value
    payload = dump_json(encoded)
    return (
        event.session,
        event.sequence,
        event.turn,
        kind_of(event.body),
        payload,
        len(payload),
        event.event_time,
    )


def read_event(session: SessionId, row: Row) -> SessionEvent:
    """An event from its row. One that a newer version wrote and this one cannot read keeps its place in the log."""
    return SessionEvent(
        session=session,
        sequence=row["sequence"],
        turn=TurnId(row["turn"]) if row["turn"] else None,
        event_time=row["event_time"],
        **_read_payload(row["payload"]),
    )


def _read_payload(payload: str) -> dict[str, Any]:
    """The fields of an event that its payload holds. Any: of different types."""
    try:
        value = load_json(payload)
        return {"body": decode_body(value), "text_state": TextState(value.get(_TEXT_STATE, TextState.KEPT.value))}
    except UnreadableEventError:
        data = payload.encode(errors="surrogatepass")
        return {"body": Unparsed(data=data, size=len(data), why="NEWER_VERSION")}


def read_conversation(row: Row) -> Conversation:
    """A conversation from its row."""
    return Conversation(
        sandbox=SandboxId(row["sandbox"]),
        epoch=row["epoch"],
        owner=row["owner"],
        incarnation=IncarnationId(row["incarnation"]) if row["incarnation"] else None,
        process=row["process"],
        dialect=row["dialect"],
        consumed=row["consumed"],
        written=row["written"],
        snapshot=load_json(row["snapshot"]),
    )
