"""The role `migrate`: brings the database to the schema of this version, then ends."""

from __future__ import annotations

from sandboxd.persistence import migrations
from sandboxd.settings import Settings, SettingsError


async def migrate(settings: Settings) -> str:
    """Migrate, and return the revision that the database has then.

    Raises:
        SettingsError: No database is set.
        DatabaseUnavailableError: It does not answer.
    """
    if settings.database_url is None:
        raise SettingsError("The settings cannot be used:\n  SANDBOXD_DATABASE_URL: migrate needs a PostgreSQL")
    return await migrations.upgrade(settings.database_url.get_secret_value())
