"""What Grafana's published schema says of our dashboard: read strictly by the Go types of Grafana's Foundation SDK.

`python -m tools.grafana` does it, in CI, too; a test does the same.
"""

import subprocess
import sys
from pathlib import Path

from sandboxd.dev.node import ToolchainError
from tools.go_tool import ensure_own_go_tool
from tools.promtool import DASHBOARD

SOURCE = Path(__file__).resolve().parent / "dashboard_check"


def check(dashboard: str) -> str:
    """Read a dashboard's JSON; answers what is wrong with it, empty for nothing.

    Raises:
        ToolchainError: The program that reads it cannot be built here.
    """
    program = ensure_own_go_tool(SOURCE)
    return subprocess.run([program], input=dashboard, capture_output=True, text=True, timeout=30, check=False).stderr


if __name__ == "__main__":
    try:
        sys.exit(check(DASHBOARD.read_text()) or 0)
    except ToolchainError as error:
        sys.exit(str(error))
