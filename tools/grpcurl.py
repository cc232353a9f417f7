"""The pinned grpcurl, for the tests that use the service as a stranger would."""

import sys
from pathlib import Path

from sandboxd.dev.node import ToolchainError
from tools.go_tool import ensure_go_tool

VERSION = "v1.9.3"


def ensure_grpcurl() -> Path:
    """Return grpcurl. Raises ToolchainError where there is none and none can be built."""
    return ensure_go_tool("github.com/fullstorydev/grpcurl/cmd/grpcurl", version=VERSION)


if __name__ == "__main__":
    try:
        print(ensure_grpcurl())
    except ToolchainError as error:
        sys.exit(str(error))
