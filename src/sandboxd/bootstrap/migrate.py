"""The role `migrate`: brings the database to the schema of this version, then ends."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from sandboxd.model.errors import UnavailableError
from sandboxd.persistence import migrations
from sandboxd.persistence.roles import ensure_application_role
from sandboxd.settings import Settings, SettingsError

log = structlog.get_logger("sandboxd.bootstrap")

NO_ROLE = "-"
_AGAIN_SECONDS: Final = 0.5


async def migrate(settings: Settings, *, wait_seconds: float = 0) -> str:
    """Migrate, give the application's role its rights, and return the revision that the database has then.

    A database that does not answer is asked again for `wait_seconds`: it may come up beside whoever migrates it.

    Raises:
        SettingsError: No database is set.
        DatabaseUnavailableError: It does not answer.
    """
    given = settings.database_owner_url or settings.database_url
    if given is None:
        raise SettingsError(
            "The settings cannot be used:\n  SANDBOXD_DATABASE_OWNER_URL: migrate needs a PostgreSQL "
            "(or SANDBOXD_DATABASE_URL)"
        )
    url, role = given.get_secret_value(), settings.database_app_role
    deadline = time.monotonic() + wait_seconds
    told = False
    while True:
        try:
            return await migrate_database(url, role=role)
        except UnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                log.info("migrate.waiting", message=str(error), wait_seconds=wait_seconds)
            told = True
        await asyncio.sleep(_AGAIN_SECONDS)


async def migrate_database(url: str, *, role: str) -> str:
    """Bring a database to the newest schema and give the application's role its rights; answers the revision.

    Raises:
        DatabaseUnavailableError: It does not answer.
    """
    revision = await migrations.upgrade(url)
    if role == NO_ROLE:
        log.warning("migrate.no_application_role", message="serve runs as the owner and could change audit entries")
    elif problem := await ensure_application_role(url, role=role):
        log.warning("migrate.application_role", role=problem.role, message=problem.message)
    return revision
