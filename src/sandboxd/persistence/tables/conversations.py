"""Conversations with what makes them exactly-once, and the sessions, turns and events that they write."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.session import StopReason, TurnState
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, SafeText, one_of

OPEN_TURN = "state IN ('QUEUED', 'RUNNING', 'FINISHING')"
"""The condition of the partial index of open turns; queries must use the same words."""


class ConversationRow(Base):
    """The CLI of one sandbox: who owns it, and how far it is."""

    __tablename__ = "conversations"

    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str]
    """Replica id; empty: given up."""
    lease_until: Mapped[Moment | None]
    incarnation: Mapped[str | None]
    process: Mapped[str]
    dialect: Mapped[str]
    consumed: Mapped[int] = mapped_column(BigInteger)
    written: Mapped[int] = mapped_column(BigInteger)
    snapshot: Mapped[dict[str, Any]] = mapped_column(SafeJson)

    __table_args__ = (
        CheckConstraint("epoch > 0", name="epoch"),
        CheckConstraint("consumed >= 0 AND written >= 0", name="offsets"),
        Index("ix_conversations_process", "sandbox", postgresql_where=text("process <> ''")),
        # Rewritten with every step of a stream: room in the page keeps the update from touching the indexes.
        {"postgresql_with": {"fillfactor": "70"}},
    )


class StdinRecordRow(Base):
    """Bytes for a process's stdin, until the agent has them."""

    __tablename__ = "stdin_records"

    sandbox: Mapped[str] = mapped_column(ForeignKey("conversations.sandbox"), primary_key=True)
    incarnation: Mapped[str] = mapped_column(primary_key=True)
    process: Mapped[str] = mapped_column(primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Absolute offset of the first byte."""
    data: Mapped[bytes]


class CommandRow(Base):
    """A mutating message of a stream, remembered by its request id."""

    __tablename__ = "commands"

    client: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[bytes]
    session: Mapped[str]
    turn: Mapped[str | None]
    create_time: Mapped[Moment] = mapped_column(server_default=text("now()"))

    __table_args__ = (Index(None, "create_time"),)


class SessionRow(Base):
    """A session: `model.session.Session`."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(primary_key=True)
    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id"))
    client: Mapped[str]
    freelancer: Mapped[str]
    title: Mapped[str] = mapped_column(SafeText())
    mode: Mapped[str] = mapped_column(SafeText())
    model: Mapped[str] = mapped_column(SafeText())
    cli_session: Mapped[str] = mapped_column(SafeText())
    head_sequence: Mapped[int] = mapped_column(BigInteger)
    turns: Mapped[int]
    open_turn: Mapped[str | None]
    create_time: Mapped[Moment]
    update_time: Mapped[Moment]
    delete_time: Mapped[Moment | None]
    text_redacted: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Texts of events up to this one were redacted (or erased); from then on the title is ours, too."""
    text_erased: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Texts of events up to this one were erased."""

    __table_args__ = (
        CheckConstraint("head_sequence >= 0 AND turns >= 0", name="counts"),
        Index(None, "sandbox", "create_time", "id"),
        Index(None, "sandbox", "update_time", "id"),
        # The head moves with every append.
        {"postgresql_with": {"fillfactor": "70"}},
    )


class TurnRow(Base):
    """A turn: `model.session.Turn` without the bytes of its attachments."""

    __tablename__ = "turns"

    id: Mapped[str] = mapped_column(primary_key=True)
    session: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    sandbox: Mapped[str]
    number: Mapped[int]
    request_id: Mapped[str]
    state: Mapped[str]
    stop_reason: Mapped[str | None]
    prompt: Mapped[str] = mapped_column(SafeText())
    start_time: Mapped[Moment]
    end_time: Mapped[Moment | None]
    traceparent: Mapped[str] = mapped_column(server_default="")
    """Of the call that started it; the gateway reads it with the turn."""

    __table_args__ = (
        one_of("state", TurnState),
        one_of("stop_reason", StopReason, optional=True),
        Index("uq_turns_number", "session", "number", unique=True),
        Index("ix_turns_end_time", "end_time", postgresql_where=text("end_time IS NOT NULL")),
        Index("ix_turns_open", "sandbox", postgresql_where=text(OPEN_TURN)),
    )


class TurnAttachmentRow(Base):
    """An attachment's bytes, while its turn is open. What the log keeps of it is in the turn's first event."""

    __tablename__ = "turn_attachments"

    turn: Mapped[str] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(SafeText())
    mime_type: Mapped[str] = mapped_column(SafeText())
    data: Mapped[bytes]


class EventRow(Base):
    """One event of a session's log."""

    __tablename__ = "events"

    session: Mapped[str] = mapped_column(primary_key=True)
    """No foreign key: it was two thirds of an append's time (measured), and whoever inserts joins the session's row,
    locked, in the same statement; session rows are never deleted."""
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    turn: Mapped[str | None]
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(SafeJson)
    size: Mapped[int]
    """Characters of the payload as it was written; pages are bounded by it."""
    event_time: Mapped[Moment]

    __table_args__ = (CheckConstraint("sequence > 0", name="sequence"),)
