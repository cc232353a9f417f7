"""The page of bad weather names tests that exist."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "bad-weather.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def names_of(file: str) -> set[str]:
    path = REPOSITORY / file
    if not path.is_file():
        return set()
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions)}


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > 40
    assert [f"{file}::{name}" for file, name in NAMED if name not in names_of(file)] == []


def test_every_row_names_its_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    heads = ("| Fault |", "| What |", "| What was wrong |")

    assert [row for row in rows if not row.startswith(heads) and "::test_" not in row] == []
