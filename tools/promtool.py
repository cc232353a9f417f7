"""The pinned promtool: what Prometheus itself says of our rules and of the dashboard's queries.

`python -m tools.promtool` checks them, in CI, too; a test does the same.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from sandboxd.dev.node import ToolchainError
from tools.go_tool import ensure_go_tool

VERSION = "v0.316.0"
ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "docs" / "observability" / "alerts.yaml"
DASHBOARD = ROOT / "docs" / "observability" / "dashboard.json"
RULE_TESTS = ROOT / "tests" / "data" / "observability" / "alerts_test.yaml"


def ensure_promtool() -> Path:
    """Return promtool, without its service discoveries. Raises ToolchainError where it cannot be had."""
    return ensure_go_tool(
        "github.com/prometheus/prometheus/cmd/promtool", version=VERSION, tags=["remove_all_sd", "netgo"]
    )


def dashboard_rules() -> str:
    """Write the dashboard's queries as recording rules, so that promtool reads them; Grafana's variables are set."""
    queries = [
        re.sub(r"\$__(rate_)?interval", "5m", target["expr"])
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", [])
    ]
    rules = [{"record": f"dashboard:query_{number}", "expr": query} for number, query in enumerate(queries)]
    return json.dumps({"groups": [{"name": "dashboard", "rules": rules}]})


def check() -> str:
    """Check the rules and the queries, and run the rules' tests; answers what was wrong, empty for nothing.

    Raises:
        ToolchainError: There is no promtool.
    """
    promtool = ensure_promtool()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as queries:
        queries.write(dashboard_rules())
        queries.flush()
        commands = (
            ["check", "rules", "--lint=all", "--lint-fatal", str(RULES), queries.name],
            ["test", "rules", str(RULE_TESTS)],
        )
        ran = [
            subprocess.run([promtool, *command], capture_output=True, text=True, check=False) for command in commands
        ]
    return "".join(one.stdout + one.stderr for one in ran if one.returncode)


if __name__ == "__main__":
    try:
        sys.exit(check() or 0)
    except ToolchainError as error:
        sys.exit(str(error))
