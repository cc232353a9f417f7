"""Erasures with their proofs, and what is known of the clients' API keys."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.api_key import ApiKeyState
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, one_of


class ErasureRow(Base):
    """An erasure: `model.erasure.Erasure`."""

    __tablename__ = "erasures"

    id: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[str] = mapped_column(ForeignKey("clients.id"))
    freelancer: Mapped[str | None]
    begin_time: Mapped[Moment]
    end_time: Mapped[Moment | None]
    items: Mapped[dict[str, Any]] = mapped_column(SafeJson)
    pending: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    document: Mapped[bytes | None]
    signature: Mapped[bytes | None]
    key_id: Mapped[str | None]
    public_key: Mapped[str | None]

    __table_args__ = (
        CheckConstraint(
            "(end_time IS NULL) = (document IS NULL) AND (document IS NULL) = (signature IS NULL)", name="proof"
        ),
        Index(None, "client", "begin_time", "id"),
        Index("ix_erasures_unfinished", "begin_time", "id", postgresql_where=text("end_time IS NULL")),
    )


class ApiKeyRow(Base):
    """What is known of a client's key: `model.api_key.ApiKey`. The key itself is in the key store."""

    __tablename__ = "api_keys"

    client: Mapped[str] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    state: Mapped[str]
    fingerprint: Mapped[str]
    previous_fingerprint: Mapped[str]
    previous_expire_time: Mapped[Moment | None]
    generation: Mapped[int] = mapped_column(BigInteger)
    set_time: Mapped[Moment]
    rotate_time: Mapped[Moment | None]
    revoke_time: Mapped[Moment | None]

    __table_args__ = (one_of("state", ApiKeyState), CheckConstraint("generation > 0", name="generation"))
