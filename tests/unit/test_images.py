"""What goes into the images: nothing forgotten of what the agent imports, nothing guessed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
IMPORTED = """
import sys, sandboxd.agent.__main__, sandboxd.agent.deliver
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__name__, module.__file__)
"""
WHEELS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_status": "grpcio-status",
    "h11": "h11",
    "typing_extensions": "typing-extensions",
}


def _constant(file: str, name: str) -> tuple[str, ...]:
    for node in ast.parse((REPOSITORY / file).read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            found: tuple[str, ...] = ast.literal_eval(node.value)
            return found
    raise AssertionError(f"{file} has no {name}")


def _imported() -> dict[str, Path]:
    command = [sys.executable, "-c", IMPORTED]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return {line.split(" ", 1)[0]: Path(line.split(" ", 1)[1]) for line in shown.splitlines()}


def test_the_agents_image_holds_every_module_that_the_agent_imports() -> None:
    held = [REPOSITORY / "src" / name for name in _constant("images/agent/assemble.py", "PACKAGES")]

    ours = [path for name, path in _imported().items() if name.split(".")[0] == "sandboxd"]

    assert ours
    assert [path for path in ours if not any(path.is_relative_to(one) for one in held)] == []


def test_the_agents_image_has_the_wheels_of_all_that_it_imports_and_of_the_versions_that_are_tested() -> None:
    theirs = {name.split(".")[0] for name, path in _imported().items() if "site-packages" in path.parts}
    locked = set(re.findall(r"^\S+==\S+", (REPOSITORY / "images/agent/requirements.lock").read_text(), re.MULTILINE))
    tested = set(re.findall(r"^\S+==\S+", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE))

    assert {WHEELS[name] for name in theirs if name in WHEELS} <= {one.partition("==")[0] for one in locked}
    assert locked <= tested


def test_what_decides_the_tag_of_the_agents_image_is_what_goes_into_it() -> None:
    held = {f"src/{name}" for name in _constant("images/agent/assemble.py", "PACKAGES")}

    assert set(_constant("tools/images.py", "AGENT_SOURCES")) == held
