"""`make setup`: from Python 3.11 and make to everything that the other verbs need.

Uses the standard library alone, because it runs before anything is installed. Each step is skipped
when its inputs have not changed since it last succeeded, so a second run takes no time.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CACHE = Path(os.environ.get("SANDBOXD_CACHE_DIR") or Path.home() / ".cache" / "sandboxd")
LOCK = REPOSITORY / "requirements.lock"
SERVER_LOCK = REPOSITORY / "requirements-server.lock"
UV_LOCK = REPOSITORY / "tools" / "uv.lock.txt"
GENERATOR = REPOSITORY / "tools" / "generate_protos.py"


class SetupError(Exception):
    """The machine lacks something; the text says what to do about it."""


def say(text: str) -> None:
    """Print one line for the person who waits; on standard error, because `make demo` may print JSON."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    """Run one command of a step, its output shown only when it fails.

    Raises:
        SetupError: The command failed.
    """
    result = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode != 0:
        raise SetupError(f"{Path(command[0]).name} failed:\n{result.stdout.decode(errors='replace')}")


def step(name: str, inputs: list[Path], facts: str, made: Path, work: Callable[[], None]) -> None:
    """Do the work unless a stamp says it was done for the same inputs and what it made is still there."""
    digest = hashlib.sha256(facts.encode())
    for path in inputs:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    stamp = VENV / f".{name}.stamp"
    if made.exists() and stamp.is_file() and stamp.read_text() == digest.hexdigest():
        return
    began = time.monotonic()
    work()
    stamp.write_text(digest.hexdigest())
    say(f"{name} done in {time.monotonic() - began:.1f} s")


def find_uv() -> Path:
    """Return the pinned uv, installed into a small environment of its own on the first call."""
    digest = hashlib.sha256(UV_LOCK.read_bytes()).hexdigest()[:12]
    home = CACHE / "tools" / f"uv-{digest}"
    uv = home / "bin" / "uv"
    if uv.is_file():
        return uv
    say("installing uv, which installs the rest")
    fresh = home.with_name(f"{home.name}.{os.getpid()}")
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(UV_LOCK)]
    try:
        if importlib.util.find_spec("ensurepip"):
            run(sys.executable, "-m", "venv", fresh)
            run(fresh / "bin" / "python", *install)
        elif importlib.util.find_spec("pip"):
            run(sys.executable, *install, "--target", fresh)
        elif found := shutil.which("uv"):
            return Path(found)
        else:
            raise SetupError(
                f"{sys.executable} has neither ensurepip nor pip, and there is no uv on PATH.\n"
                "Install one of them (Debian, Ubuntu: apt-get install python3-venv) and try again."
            )
        if not uv.is_file():
            fresh.replace(home)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return uv


def make_environment() -> None:
    """Fill `.venv` with exactly what the lock names, and this package as an editable install."""
    say("installing the locked dependencies into .venv")
    uv = find_uv()
    os.environ["UV_PYTHON_DOWNLOADS"] = "never"
    os.environ["UV_LINK_MODE"] = os.environ.get("UV_LINK_MODE", "hardlink")
    if not VENV_PYTHON.exists():
        run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, "--prompt", "sandboxd", VENV)
    run(uv, "pip", "sync", "--quiet", "--python", VENV_PYTHON, "--require-hashes", LOCK)
    editable = ["--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY)]
    run(uv, "pip", "install", "--quiet", "--python", VENV_PYTHON, *editable)


def generate_protos() -> None:
    """Make the Python modules of the protos."""
    run(VENV_PYTHON, GENERATOR)


def install_gemini_cli() -> None:
    """Install the pinned Gemini CLI, outside the checkout."""
    say(f"installing the pinned Gemini CLI into {CACHE} (100 MB, unless it is there)")
    run(VENV_PYTHON, "-m", "sandboxd.dev.gemini_cli")


def lock() -> None:
    """Resolve pyproject.toml anew into the locks; a locked version stays unless it no longer fits.

    The first lock is for developers and CI, the second is its part that the server's image needs.
    """
    resolve = ["pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"]
    resolve += ["--quiet", "--custom-compile-command", "make lock", str(REPOSITORY / "pyproject.toml")]
    run(find_uv(), *resolve, "--all-extras", "--group", "dev", "--output-file", LOCK)
    run(find_uv(), *resolve, "--constraint", LOCK, "--output-file", SERVER_LOCK)


def main() -> None:
    """Run the steps that are due."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["gen", "lock"], help="run this step alone")
    only: str | None = parser.parse_args().only
    if sys.version_info < (3, 11):  # noqa: UP036  started by whatever Python there is
        raise SetupError(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}")
    if only == "lock":
        lock()
        return
    facts = f"{sys.executable} {sys.version}"
    VENV.mkdir(exist_ok=True)
    step("environment", [LOCK, REPOSITORY / "pyproject.toml"], facts, VENV_PYTHON, make_environment)
    protos = sorted(path for root in ("proto", "third_party") for path in (REPOSITORY / root).rglob("*.proto"))
    step("protos", [LOCK, GENERATOR, *protos], "", REPOSITORY / "src" / "buf", generate_protos)
    if only is None and (package := REPOSITORY / "src" / "sandboxd" / "dev" / "gemini-cli").is_dir():
        step("gemini-cli", sorted(package.iterdir()), "", CACHE / "gemini-cli", install_gemini_cli)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup: {error}")
