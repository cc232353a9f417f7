"""Alembic's entry: runs the migrations on the connection that `sandboxd migrate` brings, or on one of its own."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from sandboxd.persistence.engine import driver_url
from sandboxd.persistence.tables import Base


def render_item(kind: str, item: Any, _: Any) -> str | bool:  # Any: Alembic's own signature
    """Write our types into migrations as PostgreSQL's: a migration must not change when a class of ours does."""
    if kind == "type" and type(item).__name__ == "SafeText":
        return "sa.Text()"
    return False


def run(connection: Connection) -> None:
    """Run what the command asked for; each migration in a transaction of its own."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transaction_per_migration=True,
        compare_type=True,
        compare_server_default=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_on_own_connection() -> None:
    """Connect as SANDBOXD_DATABASE_URL says, for a developer's `alembic` command."""
    engine = create_async_engine(driver_url(os.environ["SANDBOXD_DATABASE_URL"]), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(run_on_own_connection())
