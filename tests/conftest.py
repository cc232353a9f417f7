"""What every test gets: nothing global, no outside address, no key of the person who runs it."""

import os

import pytest

KEPT = ("SANDBOXD_CACHE_DIR",)


@pytest.fixture(autouse=True)
def _no_settings_of_the_person_who_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if (name.startswith("SANDBOXD_") and name not in KEPT) or name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
            monkeypatch.delenv(name)
