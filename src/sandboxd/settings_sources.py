"""Where settings come from besides variables and a TOML file: files that hold secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic_settings import PydanticBaseSettingsSource
from typing_extensions import override

from sandboxd.settings_rules import PREFIX


class SecretFiles(PydanticBaseSettingsSource):
    """`SANDBOXD_<NAME>_FILE` for secrets, and GEMINI_API_KEY, the name that everybody knows."""

    @override
    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` answers everything."""
        raise NotImplementedError

    @override
    def __call__(self) -> dict[str, Any]:
        """Return the secrets that files hold."""
        found: dict[str, Any] = {}
        for name, variables in {
            "database_url": [f"{PREFIX}DATABASE_URL_FILE"],
            "database_owner_url": [f"{PREFIX}DATABASE_OWNER_URL_FILE"],
            "images_registry_password": [f"{PREFIX}IMAGES_REGISTRY_PASSWORD_FILE"],
            "gemini_api_key": [f"{PREFIX}GEMINI_API_KEY_FILE", "GEMINI_API_KEY_FILE"],
        }.items():
            for variable in variables:
                if file := os.environ.get(variable):
                    try:
                        found.setdefault(name, Path(file).expanduser().read_text().strip())
                    except OSError as error:
                        raise ValueError(f"{variable}: {file} cannot be read ({error.strerror})") from error
        if key := os.environ.get("GEMINI_API_KEY"):
            found.setdefault("gemini_api_key", key)
        return found
