"""What the demo is asked for, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for."""

    prompts: tuple[str, ...] = ()
    """Turns to run; empty for the demo's own, with pause and resume."""
    as_json: bool = False
    data_dir: Path | None = None
    keep: bool = False
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What the demo came to."""

    problem: str = ""
    """What went wrong, for people; empty where nothing did."""
    broken: bool = False
    """True where the demo itself could not go on; False where a turn failed and was told as such."""
    kept: str = ""
    """Where the terminated sandbox's files are."""
