"""The pinned Gemini CLI for this machine, installed once into the cache.

`make setup` runs this as a module; `sandboxd dev` and the tests call `ensure_gemini_cli`.
Must not start the CLI for anything but its version.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandboxd.dev.node import PROBE_SECONDS, Node, ToolchainError, cache_directory, find_node, install_locked

LOCK = Path(__file__).parent / "gemini-cli"
PACKAGE = "@google/gemini-cli"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeminiCli:
    """An installed Gemini CLI: `node entry ARGUMENTS` starts it."""

    node: Path
    entry: Path
    version: str


def ensure_gemini_cli(say: Callable[[str], None]) -> GeminiCli:
    """Return the pinned Gemini CLI, installing it on the first call; `say` gets a line where that takes time.

    Raises:
        ToolchainError: There is no Node, or the installation failed.
    """
    node = find_node()
    pinned = _pinned_version()

    def accept(fresh: Path) -> None:
        if (answered := _ask_version(node, _entry(fresh))) != pinned:
            raise ToolchainError(f"{PACKAGE} {pinned} was installed, but it says it is {answered!r}.")

    home = install_locked(LOCK, into=cache_directory() / "gemini-cli", say=say, node=node, accept=accept)
    return GeminiCli(node=node.binary, entry=_entry(home), version=pinned)


def _pinned_version() -> str:
    versions: dict[str, str] = json.loads((LOCK / "package.json").read_bytes())["dependencies"]
    return versions[PACKAGE]


def _entry(home: Path) -> Path:
    package = home / "node_modules" / PACKAGE
    entries: dict[str, str] = json.loads((package / "package.json").read_bytes())["bin"]
    return package / entries["gemini"]


def _ask_version(node: Node, entry: Path) -> str:
    # Even for --version the CLI writes to its home.
    with tempfile.TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": str(node.binary.parent), "GEMINI_CLI_NO_RELAUNCH": "true"}
        try:
            result = subprocess.run(
                [node.binary, entry, "--version"],
                env=environment,
                capture_output=True,
                timeout=PROBE_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ToolchainError(f"the installed {PACKAGE} does not start: {error}") from error
    return result.stdout.decode(errors="replace").strip()


if __name__ == "__main__":
    try:
        cli = ensure_gemini_cli(print)
    except ToolchainError as error:
        sys.exit(str(error))
    print(f"Gemini CLI {cli.version}: {cli.node} {cli.entry}")
