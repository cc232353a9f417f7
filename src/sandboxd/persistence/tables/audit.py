"""The audit: chains, their entries, the texts beside them, open intents and signed heads.

Entries and heads are append-only: triggers refuse every UPDATE, DELETE and TRUNCATE, and the application's role has no
right to them in the first place (`persistence/roles.py`). Texts can be deleted, so that a person can be erased.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.audit import AuditKind
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, SafeText, one_of


class AuditChainRow(Base):
    """Where a chain ends. Whoever appends locks it."""

    __tablename__ = "audit_chains"

    chain: Mapped[str] = mapped_column(primary_key=True)
    head_sequence: Mapped[int] = mapped_column(BigInteger)
    head_hash: Mapped[bytes]
    head_time: Mapped[Moment]

    # Moves with every group of entries.
    __table_args__ = (
        CheckConstraint("head_sequence >= 0 AND length(head_hash) = 32", name="head"),
        {"postgresql_with": {"fillfactor": "50"}},
    )


class AuditEntryRow(Base):
    """One entry: `model.audit.AuditEntry`."""

    __tablename__ = "audit_entries"

    chain: Mapped[str] = mapped_column(primary_key=True)
    """No foreign key: whoever appends holds the chain's row locked."""
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[str]
    time: Mapped[Moment]
    kind: Mapped[str]
    action: Mapped[str]
    role: Mapped[str]
    target: Mapped[str] = mapped_column(SafeText())
    request_id: Mapped[str] = mapped_column(SafeText())
    intent: Mapped[int] = mapped_column(BigInteger)
    code: Mapped[str]
    reason: Mapped[str] = mapped_column(SafeText())
    count: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[Moment | None]
    digests: Mapped[dict[str, Any]] = mapped_column(SafeJson)
    prev_hash: Mapped[bytes]
    hash: Mapped[bytes]

    __table_args__ = (
        # By it a repeated append finds what it has written already.
        UniqueConstraint("id"),
        one_of("kind", AuditKind),
        CheckConstraint("sequence > 0 AND count > 0 AND length(prev_hash) = 32 AND length(hash) = 32", name="link"),
        CheckConstraint("(kind = 'OUTCOME') = (intent > 0)", name="intent"),
        Index(None, "chain", "time"),
        Index(None, "chain", "target", "sequence"),
    )


class AuditTextRow(Base):
    """A personal text of an entry, with the salt of its digest. Deleted when its person is erased."""

    __tablename__ = "audit_texts"

    chain: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(SafeText())
    salt: Mapped[bytes]
    person: Mapped[str]
    """Freelancer whom it is about; another caller as `role:subject`; empty where only the entry's target can tell."""

    __table_args__ = (
        Index(None, "chain", "person"),
        Index("ix_audit_texts_actor", "chain", "value", "sequence", postgresql_where=text("name = 'actor'")),
    )


class AuditOpenIntentRow(Base):
    """An intent that has no outcome yet, and the life of the replica that has to conclude it."""

    __tablename__ = "audit_open_intents"

    chain: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    replica: Mapped[str]
    action: Mapped[str]
    role: Mapped[str]
    target: Mapped[str] = mapped_column(SafeText())
    request_id: Mapped[str] = mapped_column(SafeText())


class AuditHeadRow(Base):
    """A signed head: `model.audit.SignedHead`."""

    __tablename__ = "audit_heads"

    chain: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[bytes]
    time: Mapped[Moment]
    signature: Mapped[bytes]
