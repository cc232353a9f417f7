"""Programs written in Go that checks and tests need: those on PATH, else built once into the cache, pinned."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sandboxd.dev.node import ToolchainError, cache_directory

BUILD_SECONDS = 1200


def ensure_go_tool(package: str, *, version: str, tags: Sequence[str] = (), on_path: bool = True) -> Path:
    """Return the program that the last part of a package's path names; one on PATH only if `on_path`.

    Raises:
        ToolchainError: There is neither the program nor Go, or the build failed.
    """
    name = package.rpartition("/")[2]
    if on_path and (found := shutil.which(name)):
        return Path(found)
    flags = ["-tags", ",".join(tags), "-ldflags", "-s -w", f"{package}@{version}"]
    return _built(name, at=version, flags=flags)


def ensure_own_go_tool(source: Path) -> Path:
    """Return the program of a module of ours, which has the name of its folder; a change of a file builds it anew.

    Raises:
        ToolchainError: There is no Go, or the build failed.
    """
    return ensure_own_go_programs(source, (".",)) / source.name


def ensure_own_go_programs(source: Path, packages: Sequence[str]) -> Path:
    """Return the directory of programs of a module of ours, and of those that it pins; a change builds all anew.

    Raises:
        ToolchainError: There is no Go, or the build failed.
    """
    flags = ["-ldflags", "-s -w", *packages]
    return _built(source.name, at=_digest(source, packages), flags=flags, cwd=source).parent


def found_own_go_programs(source: Path, packages: Sequence[str]) -> Path | None:
    """Return the same directory where it is built already."""
    binary = _binary(source.name, at=_digest(source, packages))
    return binary.parent if binary.is_file() else None


def _digest(source: Path, packages: Sequence[str]) -> str:
    digest = hashlib.sha256(repr(tuple(packages)).encode())
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(source)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _binary(name: str, *, at: str) -> Path:
    return cache_directory() / "tools" / f"{name}-{at}" / name


def _built(name: str, *, at: str, flags: Sequence[str], cwd: Path | None = None) -> Path:
    binary = _binary(name, at=at)
    home = binary.parent
    if binary.is_file():
        return binary
    go = shutil.which("go")
    if go is None:
        raise ToolchainError(f"{name} is not on PATH, and there is no Go to build it with.")
    fresh = home.with_name(f"{home.name}.{os.getpid()}")
    try:
        subprocess.run(
            [go, "install", *flags],
            cwd=cwd,
            env={**os.environ, "GOBIN": str(fresh), "GOFLAGS": "-trimpath", "GOTOOLCHAIN": "local"},
            capture_output=True,
            timeout=BUILD_SECONDS,
            check=True,
        )
        home.mkdir(parents=True, exist_ok=True)
        for made in sorted(fresh.iterdir(), key=lambda one: one.name == name):  # the one that is looked for last
            made.replace(home / made.name)
    except subprocess.CalledProcessError as error:
        raise ToolchainError(f"{name} could not be built: {error.stderr.decode(errors='replace')}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return binary
