"""The role `migrate`: brings the database to the schema of this version, then ends."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from sandboxd.bootstrap.schema import while_away
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
    return await while_away(
        lambda: migrate_database(url, role=role),
        patience=timedelta(seconds=wait_seconds),
        every=_AGAIN_SECONDS,
        waiting=lambda error: log.info("migrate.waiting", message=str(error), wait_seconds=wait_seconds),
    )


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
