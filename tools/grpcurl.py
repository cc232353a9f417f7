"""The pinned grpcurl, for the tests that use the service as a stranger would; built once with Go into the cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sandboxd.dev.node import ToolchainError, cache_directory

VERSION = "v1.9.3"
BUILD_SECONDS = 600


def ensure_grpcurl() -> Path:
    """Return grpcurl: the one on PATH, else the one in the cache, else one built with Go.

    Raises:
        ToolchainError: There is no grpcurl and no Go, or the build failed.
    """
    if found := shutil.which("grpcurl"):
        return Path(found)
    home = cache_directory() / "tools" / f"grpcurl-{VERSION}"
    binary = home / "grpcurl"
    if binary.is_file():
        return binary
    go = shutil.which("go")
    if go is None:
        raise ToolchainError("grpcurl is not on PATH, and there is no Go to build it with.")
    fresh = home.with_name(f"{home.name}.{os.getpid()}")
    try:
        subprocess.run(
            [go, "install", f"github.com/fullstorydev/grpcurl/cmd/grpcurl@{VERSION}"],
            env={**os.environ, "GOBIN": str(fresh), "GOFLAGS": "-trimpath", "GOTOOLCHAIN": "local"},
            capture_output=True,
            timeout=BUILD_SECONDS,
            check=True,
        )
        home.mkdir(parents=True, exist_ok=True)
        (fresh / "grpcurl").replace(binary)
    except subprocess.CalledProcessError as error:
        raise ToolchainError(f"grpcurl could not be built: {error.stderr.decode(errors='replace')}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return binary


if __name__ == "__main__":
    try:
        print(ensure_grpcurl())
    except ToolchainError as error:
        sys.exit(str(error))
