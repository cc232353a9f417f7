"""`python -m sandboxd.agent --config FILE`: the agent's own program. Imports only what is light."""

from __future__ import annotations

import os
import signal
import sys

if os.getpid() == 1:
    # The kernel keeps a signal from a PID 1 that handles none: until the agent does, TERM would be lost for it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import argparse
import asyncio
import logging
from pathlib import Path

# Children are forked here; gRPC's own fork handlers would wait for its threads in them. Set before it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# One poll strategy and few threads: this process must stay small.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from sandboxd.agent.config import ConfigError, load_config
from sandboxd.agent.furnishing import StartedBeforeError
from sandboxd.agent.logs import configure_logs
from sandboxd.agent.server import run

STARTED_BEFORE = 3
"""Exit status of an agent that was started a second time."""

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the agent until it is told to end.

    Returns:
        0 after an orderly end, 2 when the configuration cannot be used, 3 when an agent ran in this place before.
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
    except StartedBeforeError as error:
        log.critical("agent.started_before", extra={"fields": {"reason": str(error)}})
        return STARTED_BEFORE
    return 0


if __name__ == "__main__":
    sys.exit(main())
