"""What is known of the packages of sandboxes, and the history of their changes."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.package_history import Requester
from sandboxd.model.packages import PackageChangeKind, PackageManager, PackagePlace
from sandboxd.persistence.tables.base import Base, Moment, SafeText, one_of


class SandboxPackagesRow(Base):
    """The last known packages of a sandbox, and who watches them: `model.package_history.PackageRecord`."""

    __tablename__ = "sandbox_packages"

    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True)
    incarnation: Mapped[str]
    owner: Mapped[str]
    """Replica that watches; it is believed while its advisory lock is held. Empty: nobody."""
    sequence: Mapped[int] = mapped_column(BigInteger)
    number: Mapped[int] = mapped_column(BigInteger)
    looked: Mapped[bool]
    complete: Mapped[bool]
    root_change_time: Mapped[Moment | None]
    look_time: Mapped[Moment | None]
    dirty_since: Mapped[Moment | None]
    other_unsaved_time: Mapped[Moment | None]
    saved_time: Mapped[Moment | None]
    saved_sequence: Mapped[int] = mapped_column(BigInteger)
    saved_root_time: Mapped[Moment | None]
    missed: Mapped[int] = mapped_column(BigInteger)
    packages: Mapped[bytes]
    """The set, packed (`package_rows.py`): it is read whole or not at all, and hundreds of rows a sandbox are many."""

    __table_args__ = (
        CheckConstraint("sequence >= 0 AND number >= 0 AND saved_sequence >= 0 AND missed >= 0", name="numbers"),
        Index("ix_sandbox_packages_owner", "owner", postgresql_where=text("owner <> ''")),
    )


class PackageChangeRow(Base):
    """A change of a package: `model.package_history.KeptChange`."""

    __tablename__ = "package_changes"

    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    incarnation: Mapped[str]
    sequence: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str]
    manager: Mapped[str]
    name: Mapped[str] = mapped_column(SafeText())
    directory: Mapped[str] = mapped_column(SafeText())
    version: Mapped[str] = mapped_column(SafeText())
    old_version: Mapped[str] = mapped_column(SafeText())
    place: Mapped[str]
    requested: Mapped[bool]
    change_time: Mapped[Moment]
    """By the sandbox's clock."""
    kept_time: Mapped[Moment]
    process: Mapped[str] = mapped_column(SafeText())
    """The started process that the agent named; empty where it named none."""
    requester: Mapped[str]
    session: Mapped[str | None]
    """No foreign key: history stays when a session is deleted."""
    saved: Mapped[bool]

    __table_args__ = (
        one_of("kind", PackageChangeKind),
        one_of("manager", PackageManager),
        one_of("place", PackagePlace),
        one_of("requester", Requester),
        CheckConstraint("number > 0", name="number"),
        Index("uq_package_changes_told", "sandbox", "incarnation", "sequence", unique=True),
        Index("ix_package_changes_kept_time", "kept_time"),
    )
