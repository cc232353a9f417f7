"""`make lint`: every check of the house, all of them even when one fails, with timings."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sandboxd.dev.node import ToolchainError, cache_directory, find_node, install_locked

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LONGEST_SESSION = 4 * 3600
"""Seconds. What lies before the commits of one session of work has landed; a session takes less than this."""


def say(text: str) -> None:
    """Print one line at once, so that it stands above the output of the check it announces."""
    print(text, flush=True)


def run(*command: str | Path) -> bool:
    """Run one check and tell whether it passed."""
    return subprocess.run([*map(str, command)], cwd=REPOSITORY, check=False).returncode == 0


def buf(*arguments: str) -> bool:
    """Run the pinned buf, installed into the cache on the first call."""

    def accept(fresh: Path) -> None:
        if not _binaries(fresh) or not run(_binaries(fresh)[0], "--version"):
            raise ToolchainError("npm brought no buf that runs on this machine's processor")

    lock = REPOSITORY / "tools" / "buf"
    home = install_locked(lock, into=cache_directory() / "tools" / "buf", say=say, node=find_node(), accept=accept)
    return run(_binaries(home)[0], *arguments)


def _binaries(home: Path) -> list[Path]:
    return [*home.glob("node_modules/@bufbuild/buf-*/bin/buf")]


def breaking() -> bool:
    """Compare the protos with the last landed ones."""
    base = landed(REPOSITORY)
    if base is None:
        say("not compared: this history has no landed version yet, the first one is in the making")
        return True
    if not _git(REPOSITORY, "ls-tree", base, "proto/"):
        say(f"not compared: the last landed version, {base[:9]}, has no protos")
        return True
    say(f"against {base[:9]}")
    return buf("breaking", "--against", f".git#ref={base}")


def landed(repository: Path) -> str | None:
    """Return the commit that others build against: where this branch left the remote's main, or what is older."""
    head = _git(repository, "rev-parse", "HEAD")
    fork = _git(repository, "merge-base", "HEAD", "origin/main")
    if fork and fork != head:
        return fork
    head_time = int(_git(repository, "log", "-1", "--format=%ct") or 0)
    return _git(repository, "rev-list", "-1", f"--before={head_time - LONGEST_SESSION}", "HEAD") or None


def _git(repository: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, check=False)
    return result.stdout.decode().strip() if result.returncode == 0 else ""


CHECKS: dict[str, Callable[[], bool]] = {
    "ruff check": lambda: run(BIN / "ruff", "check", "--quiet", "."),
    "ruff format": lambda: run(BIN / "ruff", "format", "--check", "--quiet", "."),
    "mypy --strict": lambda: run(BIN / "mypy"),
    "import-linter": lambda: run(BIN / "lint-imports", "--no-logo"),
    "buf lint": lambda: buf("lint"),
    "buf breaking": breaking,
}


def main() -> int:
    """Run the checks and return the exit code."""
    failed = []
    for name, check in CHECKS.items():
        say(f"── {name}")
        began = time.monotonic()
        try:
            passed = check()
        except ToolchainError as error:
            say(str(error))
            passed = False
        say(f"   {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.1f} s")
        failed += [] if passed else [name]
    say(f"lint: {len(CHECKS) - len(failed)} of {len(CHECKS)} passed" + "".join(f"\nfailed: {name}" for name in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
