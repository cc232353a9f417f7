"""Programs written in Go that checks and tests need: those on PATH, else built once into the cache, pinned."""

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
    home = cache_directory() / "tools" / f"{name}-{version}"
    binary = home / name
    if binary.is_file():
        return binary
    go = shutil.which("go")
    if go is None:
        raise ToolchainError(f"{name} is not on PATH, and there is no Go to build it with.")
    fresh = home.with_name(f"{home.name}.{os.getpid()}")
    try:
        subprocess.run(
            [go, "install", "-tags", ",".join(tags), "-ldflags", "-s -w", f"{package}@{version}"],
            env={**os.environ, "GOBIN": str(fresh), "GOFLAGS": "-trimpath", "GOTOOLCHAIN": "local"},
            capture_output=True,
            timeout=BUILD_SECONDS,
            check=True,
        )
        home.mkdir(parents=True, exist_ok=True)
        (fresh / name).replace(binary)
    except subprocess.CalledProcessError as error:
        raise ToolchainError(f"{name} could not be built: {error.stderr.decode(errors='replace')}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return binary
