"""The pinned restic, which keeps backups, and a small S3-compatible server to test it with."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from sandboxd.dev.node import ToolchainError, cache_directory
from tools.go_tool import ensure_go_tool

VERSION = "v0.18.1"
S3_SERVER_VERSION = "v1.2.0"


def found_restic() -> Path | None:
    """Return a restic that is there and new enough, from PATH or the cache; Debian 12's is too old."""
    built = cache_directory() / "tools" / f"restic-{VERSION}" / "restic"
    for path in (shutil.which("restic"), built if built.is_file() else None):
        if path is not None:
            said = subprocess.run([path, "version"], capture_output=True, text=True, check=False, timeout=30).stdout
            version = re.match(r"restic (\d+)\.(\d+)", said)
            if version is not None and (int(version[1]), int(version[2])) >= (0, 17):
                return Path(path)
    return None


def ensure_restic() -> Path:
    """Return restic; building it takes some minutes. Raises ToolchainError where it cannot be had."""
    return found_restic() or ensure_go_tool(
        "github.com/restic/restic/cmd/restic", version=VERSION, tags=["disable_grpc_modules"], on_path=False
    )


def ensure_s3_server() -> Path:
    """Return gofakes3, which keeps buckets in memory. Raises ToolchainError where it cannot be had."""
    return ensure_go_tool("github.com/johannesboyne/gofakes3/cmd/gofakes3", version=S3_SERVER_VERSION)


if __name__ == "__main__":
    try:
        print(ensure_restic(), ensure_s3_server())
    except ToolchainError as error:
        sys.exit(str(error))
