import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import access_page, settings_page

REPOSITORY = Path(__file__).resolve().parents[2]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
VERBS = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
LOCK = (REPOSITORY / "requirements.lock").read_text()


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=REPOSITORY, capture_output=True, check=True)
    names = listed.stdout.decode().split("\0")
    return [path for name in names if name and (path := REPOSITORY / name).is_file()]


def test_the_makefile_has_at_most_eighteen_verbs() -> None:
    assert len(VERBS) == len(set(VERBS)) <= 18


def test_make_without_a_verb_explains_each_verb() -> None:
    shown = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert re.findall(r"make ([a-z-]+) ", shown) == VERBS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_a_page_names_no_verb_that_the_makefile_does_not_have(page: str) -> None:
    named = re.findall(r"`make ((?:[a-z-]+ ?)+)", (REPOSITORY / page).read_text())

    assert {verb for verbs in named for verb in verbs.split()} <= set(VERBS)


def test_the_readme_or_the_page_for_contributors_tells_of_every_verb() -> None:
    told = (REPOSITORY / "README.md").read_text() + (REPOSITORY / "CONTRIBUTING.md").read_text()

    assert [verb for verb in VERBS if f"make {verb}" not in told] == []


def test_every_link_between_the_pages_leads_somewhere() -> None:
    lost = [
        f"{page.relative_to(REPOSITORY)}: {target}"
        for page in tracked("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]

    assert lost == []


def test_the_page_of_settings_says_what_the_settings_say() -> None:
    assert settings_page.PAGE.read_text() == settings_page.render(), "run .venv/bin/python tools/settings_page.py"


def test_the_page_of_who_may_call_what_is_up_to_date() -> None:
    assert access_page.PAGE.read_text() == access_page.render(), "run .venv/bin/python tools/access_page.py"


def test_the_migrations_are_one_chain() -> None:
    told = [
        (
            re.findall(r'^revision\b.*"(\w+)"', text, re.MULTILINE),
            re.findall(r'^down_revision\b.*"(\w+)"', text, re.MULTILINE),
        )
        for path in (REPOSITORY / "alembic" / "versions").glob("*.py")
        for text in [path.read_text()]
    ]

    numbers = sorted(revision for revisions, _ in told for revision in revisions)
    assert numbers == [f"{number:04}" for number in range(1, len(told) + 1)]
    assert all(after == [f"{int(revision) - 1:04}"] for (revision,), after in told if revision != "0001")


def test_every_decision_is_in_the_list_of_decisions() -> None:
    pages = {path.name for path in (REPOSITORY / "docs" / "adr").glob("0*.md")}

    assert set(re.findall(r"\]\((0[^)]+)\)", (REPOSITORY / "docs" / "adr" / "README.md").read_text())) == pages


def test_every_dependency_is_locked_by_hash() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *(item for group in [*extras, *groups] for item in group)]
    names = {re.split(r"[\[<>=~! ;]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    locked = {match[1] for match in re.finditer(r"^([a-z0-9.-]+)==\S+[^\n]*\\\n    --hash=sha256:", LOCK, re.MULTILINE)}

    assert sorted(names - locked) == []


def test_the_locks_name_no_registry() -> None:
    locks = [path for path in tracked() if path.name.endswith((".lock", "-lock.json", "lock.txt"))]

    assert len(locks) >= 4
    assert [path.name for path in locks if "://" in path.read_text()] == []


def test_no_module_is_longer_than_the_style_allows() -> None:
    long = [
        f"{path.relative_to(REPOSITORY)}: {lines} lines"
        for path in tracked("src/**/*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    ]

    assert long == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for path in tracked("src/**/*.py")
        if not path.read_text().startswith(('"""', 'r"""'))
    ]

    assert silent == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [
        path for path in tracked("src/**/*.py") if path.stem in {"utils", "util", "helpers", "common", "misc"}
    ] == []


def test_no_file_beside_a_script_of_the_bench_hides_a_module_of_the_standard_library() -> None:
    # The stand-in for the CLI is run as a script, so its directory comes first where modules are looked for.
    names = {path.stem for path in (REPOSITORY / "tests" / "bench").glob("*.py")}

    assert not names & (sys.stdlib_module_names - {"__main__"})
