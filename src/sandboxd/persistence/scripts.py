"""Where the migration scripts are, and which revision is the newest, without importing Alembic, which is slow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_REVISION: Final = re.compile(r"^(revision|down_revision)\b[^=\n]*=\s*(?:None|[\"'](\w+)[\"'])", re.MULTILINE)


def scripts() -> Path:
    """Folder of the migration scripts.

    Raises:
        FileNotFoundError: The package was installed without them.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "alembic", package.parents[2] / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise FileNotFoundError("The migration scripts are missing from this installation of sandboxd.")


def newest_revision() -> str:
    """The revision that no other one follows: the schema that this version of the service is written for."""
    found = [
        dict(_REVISION.findall(script.read_text(encoding="utf-8"))) for script in (scripts() / "versions").glob("*.py")
    ]
    heads = {one["revision"] for one in found} - {one["down_revision"] for one in found}
    if len(heads) != 1:
        raise FileNotFoundError("The migration scripts of this installation do not have one newest revision.")
    return str(heads.pop())
