"""Writes docs/settings.md from the settings' own docstrings; a test compares them."""

from pathlib import Path

from sandboxd.settings import Settings
from sandboxd.settings_rules import PREFIX

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
HEAD = """# Settings

Every role reads environment variables, or the TOML file that `SANDBOXD_CONFIG` names (there the names below stand in
lower case, without the prefix). Strongest first: the command line, the environment, `…_FILE` for secrets
(`SANDBOXD_DATABASE_URL_FILE`, `SANDBOXD_GEMINI_API_KEY_FILE`, `SANDBOXD_IMAGES_REGISTRY_PASSWORD_FILE`), the TOML
file, the defaults. What is in force is logged at start, secrets only as `(set)`; a misspelt variable is named.

Read elsewhere: `GEMINI_API_KEY` (as `SANDBOXD_GEMINI_API_KEY`) and `SANDBOXD_CACHE_DIR` (where `make setup` keeps what
it downloads, `~/.cache/sandboxd`). The agent has no such settings: a file configures it
([why](adr/0006-agent-in-python.md)).

This page is made by `.venv/bin/python tools/settings_page.py`.

| Variable | Default | Meaning |
| --- | --- | --- |
"""


def render() -> str:
    """Return the page."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "host and process" if field.default_factory else "" if field.default is None else f"`{field.default}`"
        meaning = (field.description or "").replace("|", "\\|").replace("\n", " ")
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {meaning} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(render())
