"""The pinned executor of kaniko, which makes images in another way than ours: `python -m tools.kaniko` builds it.

Upstream is archived and this is its last release; the Go module proxy had none of the forks that go on when it was
pinned. It is built as its own module, with its own go.sum: the proxy lists no versions of it, and `go install` asks
for them. The build tag leaves out parts of Google's storage client that the service never speaks with.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sandboxd.dev.node import ToolchainError, cache_directory
from tools.go_tool import BUILD_SECONDS

MODULE = "github.com/GoogleContainerTools/kaniko"
VERSION = "v1.24.0"
SUM = "h1:PgzzuOwaraxC7UMw0F0YoxNHi+a6YeiAbDgc2GHrk+M="
"""Of the module, as go.sum has them; those of what it needs are in its own."""


def ensure_executor() -> Path:
    """Return the executor, a static program; building it takes some minutes.

    Raises:
        ToolchainError: There is no Go, or the build failed.
    """
    binary = cache_directory() / "tools" / f"kaniko-{VERSION}" / "executor"
    if binary.is_file():
        return binary
    go = shutil.which("go")
    if go is None:
        raise ToolchainError("kaniko is built with Go (1.24 or newer), and there is none.")
    binary.parent.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_name(f"executor.{os.getpid()}")
    try:
        found = json.loads(_go(go, "mod", "download", "-json", f"{MODULE}@{VERSION}", cwd=binary.parent))
        if found["Sum"] != SUM:
            raise ToolchainError(f"{MODULE}@{VERSION} is not what was pinned: {found['Sum']}")
        tags = ("-tags", "disable_grpc_modules", "-ldflags", "-s -w")
        _go(go, "build", "-trimpath", *tags, "-o", str(fresh), "./cmd/executor", cwd=Path(found["Dir"]))
        fresh.replace(binary)
    finally:
        fresh.unlink(missing_ok=True)
    return binary


def _go(go: str, *arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [go, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
    )
    if done.returncode != 0:
        raise ToolchainError(f"kaniko could not be built: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(ensure_executor())
    except ToolchainError as error:
        sys.exit(str(error))
