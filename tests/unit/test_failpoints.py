"""Failpoints do nothing unless a test asks for it, and the list, the code and the page name the same ones."""

import ast
import fnmatch
import os
import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.__main__ import BAD_SETTINGS
from sandboxd.model.failpoints import POINTS, VARIABLE, FailpointError, armed, arming, failpoint, parse
from tools import failpoints_page

SOURCE = Path(__file__).resolve().parents[2] / "src" / "sandboxd"
A, B = "create.after_commit", "pause.after_commit"


def test_a_failpoint_is_passed_when_nothing_is_armed() -> None:
    assert armed() == []
    failpoint(A)
    with arming(f"{B}=error"):
        failpoint(A)


def test_a_failpoint_that_is_not_armed_costs_next_to_nothing() -> None:
    passes = 100_000

    seconds = min(timeit.repeat(lambda: failpoint(A), number=passes, repeat=5))

    assert seconds / passes < 2e-6, "reading the environment each time costs more"


def test_an_error_is_raised_at_its_place() -> None:
    with arming(f"{A}=sleep:0, {B}=error"):
        assert armed() == [A, B]
        failpoint(A)
        with pytest.raises(FailpointError):
            failpoint(B)
    failpoint(B)


def test_an_action_can_wait_for_its_pass() -> None:
    with arming(f"{A}=error@2"):
        failpoint(A)
        with pytest.raises(FailpointError):
            failpoint(A)
        failpoint(A)


@pytest.mark.parametrize("setting", ["nowhere=error", f"{A}=explode", A, f"{A}=error@x", f"{A}=sleep:long"])
def test_a_wrong_setting_is_no_silent_pass(setting: str) -> None:
    with pytest.raises(ValueError, match=r"failpoint|action|float"):
        parse(setting)


def test_a_place_that_is_not_in_the_list_is_found_as_soon_as_anything_is_armed() -> None:
    with arming(f"{A}=sleep:0"), pytest.raises(ValueError, match="not in the list"):
        failpoint("nowhere")


def test_exit9_ends_the_process_as_kill_9_does() -> None:
    code = f"from sandboxd.model.failpoints import failpoint; failpoint('{A}'); print('still here')"

    ended = subprocess.run(
        [sys.executable, "-c", code], env={VARIABLE: f"{A}=exit9"}, capture_output=True, check=False, timeout=30
    )

    assert (ended.returncode, ended.stdout) == (-9, b"")


def places_in_the_code() -> Iterator[str]:
    """Names of all calls; a changing part is a star."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        if "failpoint(" not in text or path.name == "failpoints.py":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                (name,) = node.args
                if isinstance(name, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in name.values)
                else:
                    assert isinstance(name, ast.Constant), f"{path}: a failpoint is named where it stands"
                    yield str(name.value)


def test_the_list_names_the_places_in_the_code_and_no_others() -> None:
    places = set(places_in_the_code())

    assert [place for place in sorted(places) if not fnmatch.filter(POINTS, place)] == [], "not in POINTS"
    assert [name for name in POINTS if not any(fnmatch.fnmatch(name, place) for place in places)] == [], "not in code"


def test_the_page_of_failpoints_says_what_the_code_says() -> None:
    assert failpoints_page.PAGE.read_text() == failpoints_page.render(), "run .venv/bin/python tools/failpoints_page.py"


def start(role: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start a role, in a process of its own, that ends by itself: it has no database."""
    environment = {**os.environ, "SANDBOXD_DATA_DIR": str(directory), **variables}
    command = [sys.executable, "-m", "sandboxd", role]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(("role", "prefix", "listen"), [
    ("serve", "SANDBOXD_TLS", "SANDBOXD_GRPC_LISTEN"),
    ("gateway", "SANDBOXD_GATEWAY_TLS", "SANDBOXD_GATEWAY_LISTEN"),
])  # fmt: skip
def test_a_service_that_others_can_reach_does_not_start_with_failpoints(
    role: str, prefix: str, listen: str, tmp_path: Path
) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.touch()
    files = {f"{prefix}_CERTIFICATE_FILE": str(certificate), f"{prefix}_KEY_FILE": str(certificate)}

    ended = start(role, tmp_path, **{VARIABLE: f"{A}=error", listen: "0.0.0.0:0"}, **files)

    assert ended.returncode == BAD_SETTINGS
    assert VARIABLE in ended.stderr
    assert "can be reached from other machines" in ended.stderr


def test_a_service_on_loopback_says_loudly_that_failpoints_are_armed(tmp_path: Path) -> None:
    ended = start("serve", tmp_path, **{VARIABLE: f"{A}=error"})

    assert "role.failpoints_armed" in ended.stderr
    assert A in ended.stderr


def test_a_misspelt_failpoint_is_told_before_anything_starts(tmp_path: Path) -> None:
    ended = start("serve", tmp_path, **{VARIABLE: "create.after_comit=error"})

    assert ended.returncode != 0
    assert "no failpoint is named create.after_comit" in ended.stderr
