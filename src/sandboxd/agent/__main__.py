"""`python -m sandboxd.agent --config FILE`: the agent's own program. Imports only what is light."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

# Children are forked here; gRPC's own fork handlers would wait for its threads in them. Set before it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# One poll strategy and few threads: this process must stay small.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from sandboxd.agent.config import ConfigError, load_config
from sandboxd.agent.logs import configure_logs
from sandboxd.agent.server import run


def main(arguments: list[str] | None = None) -> int:
    """Run the agent until it is told to end.

    Returns:
        0 after an orderly end, 2 when the configuration cannot be used.
    """
    parser = argparse.ArgumentParser(prog="sandboxd agent", description="The process supervisor inside a sandbox.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file; its names are those of AgentConfig")
    options = parser.parse_args(arguments)
    configure_logs()
    try:
        asyncio.run(run(load_config(options.config)))
    except ConfigError as error:
        print(f"sandboxd agent: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
