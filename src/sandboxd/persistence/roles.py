"""The application's role: it may read and write rows, and owns nothing, so that it cannot undo the audit's protection.

`sandboxd migrate` runs as the owner of the tables and gives the role its rights after each run, so that tables of later
versions are covered. The role is a group without a login: whoever `serve` and the gateways log in as is made a member.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import asyncpg

from sandboxd.persistence.engine import Database, plain_url
from sandboxd.persistence.errors import translated

DEFAULT_ROLE: Final = "sandboxd_app"
_RIGHTS: Final = (
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    # For tables that the owner makes by other means than `sandboxd migrate`.
    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE, SELECT ON SEQUENCES TO {role}",
    "REVOKE UPDATE, DELETE, TRUNCATE ON audit_entries, audit_heads FROM {role}",
    "REVOKE DELETE, TRUNCATE ON audit_chains FROM {role}",
    "REVOKE UPDATE, TRUNCATE ON audit_texts FROM {role}",
    "REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON alembic_version FROM {role}",
)
_TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleProblem:
    """Why the role could not be made ready, and what to do about it."""

    role: str
    message: str


async def ensure_application_role(url: str, *, role: str = DEFAULT_ROLE) -> RoleProblem | None:
    """Make the application's role where it is missing, and give it its rights; safe to repeat.

    Args:
        url: The database, as the owner of its tables.
        role: Name of the role.

    Returns:
        None where all is well; else what stands in the way: a managed PostgreSQL may not let its users make roles.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    with translated():
        connection = await asyncpg.connect(plain_url(url), timeout=_TIMEOUT_SECONDS, command_timeout=_TIMEOUT_SECONDS)
        try:
            schema = await connection.fetchval("SELECT quote_ident(current_schema())")
            name = await connection.fetchval("SELECT quote_ident($1)", role)
            try:
                if not await connection.fetchval("SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)", role):
                    await _create(connection, name)
                async with connection.transaction():  # the application sees all of its rights, or none
                    for statement in _RIGHTS:
                        await connection.execute(statement.format(schema=schema, role=name))
            except asyncpg.InsufficientPrivilegeError:
                return RoleProblem(
                    role=role,
                    message=f"The database's owner may not make the role {role}, or give it rights. Have an "
                    f"administrator run: CREATE ROLE {name} NOLOGIN; GRANT {name} TO the user of serve and gateway; "
                    "then run `sandboxd migrate` again.",
                )
        finally:
            await connection.close(timeout=_TIMEOUT_SECONDS)
    return None


async def _create(connection: asyncpg.Connection[asyncpg.Record], name: str) -> None:
    try:
        await connection.execute(f"CREATE ROLE {name} NOLOGIN")
    except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        return  # another migration, of another database of this server, was quicker


async def bypasses(database: Database) -> str:
    """Say how this process's role could get around the audit's protection; empty where it cannot."""
    async with database.raw() as connection:
        row = await connection.fetchrow(
            """
            SELECT r.rolsuper AS superuser, pg_has_role(current_user, c.relowner, 'MEMBER') AS owner,
                has_table_privilege(c.oid, 'UPDATE') OR has_table_privilege(c.oid, 'DELETE')
                OR has_table_privilege(c.oid, 'TRUNCATE') AS writer
            FROM pg_class AS c, pg_roles AS r
            WHERE c.oid = to_regclass('audit_entries') AND r.rolname = current_user
            """
        )
    if row is None:
        return ""
    for fact, words in (
        ("superuser", "it is a superuser"),
        ("owner", "it owns the audit's tables"),
        ("writer", "it was given rights to change audit entries"),
    ):
        if row[fact]:
            return words
    return ""
