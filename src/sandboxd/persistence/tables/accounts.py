"""Clients, their freelancers, and the places that turns take in quotas."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.client import AccountState
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, SafeText, one_of


class ClientRow(Base):
    """A tenant: `model.client.Client`. What has a default may be left out by whoever registers it on first use."""

    __tablename__ = "clients"

    id: Mapped[str] = mapped_column(primary_key=True)
    create_time: Mapped[Moment]
    display_name: Mapped[str] = mapped_column(SafeText(), server_default=text("''"))
    state: Mapped[str] = mapped_column(server_default=text("'ACTIVE'"))
    state_reason: Mapped[str] = mapped_column(SafeText(), server_default=text("''"))
    policy: Mapped[dict[str, Any]] = mapped_column(SafeJson, server_default=text("'{}'"))
    update_time: Mapped[Moment] = mapped_column(server_default=text("now()"))
    delete_time: Mapped[Moment | None]
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))

    __table_args__ = (
        one_of("state", AccountState),
        CheckConstraint("version > 0", name="version"),
        CheckConstraint("(state = 'DELETED') = (delete_time IS NOT NULL)", name="deleted"),
        Index(None, "create_time", "id"),
        Index("ix_clients_deleting", "id", postgresql_where=text("state = 'DELETING'")),
    )


class FreelancerRow(Base):
    """A person who works at a client: `model.client.Freelancer`. The same person at another client is another row."""

    __tablename__ = "freelancers"

    client: Mapped[str] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    create_time: Mapped[Moment]
    display_name: Mapped[str] = mapped_column(SafeText(), server_default=text("''"))
    state: Mapped[str] = mapped_column(server_default=text("'ACTIVE'"))
    state_reason: Mapped[str] = mapped_column(SafeText(), server_default=text("''"))
    quotas: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    update_time: Mapped[Moment] = mapped_column(server_default=text("now()"))
    delete_time: Mapped[Moment | None]
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))

    __table_args__ = (
        one_of("state", AccountState),
        CheckConstraint("version > 0", name="version"),
        CheckConstraint("(state = 'DELETED') = (delete_time IS NOT NULL)", name="deleted"),
        Index(None, "client", "create_time", "id"),
        Index("ix_freelancers_deleting", "client", "id", postgresql_where=text("state = 'DELETING'")),
    )


class TurnPlaceRow(Base):
    """A place in a quota of turns, taken for a turn that is about to begin; the turn itself counts after."""

    __tablename__ = "turn_places"

    client: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(primary_key=True)
    """Of the prompt."""
    freelancer: Mapped[str]
    session: Mapped[str]
    """No foreign key: a place lives for seconds."""
    lease_until: Mapped[Moment]
    replica: Mapped[str] = mapped_column(server_default=text("''"))
    """Whose place it is: when that replica dies, it counts no more. Empty: of a version that did not say."""
