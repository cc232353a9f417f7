"""`python -m sandboxd.agent --config FILE`: the agent's own program. Imports only what is light."""

from __future__ import annotations

import gc
import os
import signal
import sys

# What is loaded now stays: looking for garbage in it meanwhile is an eighth of the start.
if gc.isenabled():
    gc.disable()
if os.getpid() == 1:
    # The kernel keeps a signal from a PID 1 that handles none: until the agent does, TERM would be lost for it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

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
from sandboxd.agent.niceness import spread_niceness
from sandboxd.agent.server import run

STARTED_BEFORE = 3
"""Exit status of an agent that was started a second time."""

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the agent until it is told to end.

    Returns:
        0 after an orderly end, 2 when the configuration cannot be used, 3 when an agent ran in this place before.
    """
    config = _config_file(sys.argv[1:] if arguments is None else arguments)
    configure_logs()
    spread_niceness(os.getpid())
    gc.freeze()
    gc.enable()
    try:
        asyncio.run(run(load_config(config)))
    except ConfigError as error:
        print(f"sandboxd agent: {error}", file=sys.stderr)
        return 2
    except StartedBeforeError as error:
        log.critical("agent.started_before", extra={"fields": {"reason": str(error)}})
        return STARTED_BEFORE
    return 0


def _config_file(arguments: list[str]) -> Path:
    match arguments:
        case ["--config", file]:  # what every backend writes; the parser costs a start its time
            return Path(file)
        case _:
            return _parse(arguments)


def _parse(arguments: list[str]) -> Path:
    import argparse

    parser = argparse.ArgumentParser(prog="sandboxd agent", description="The process supervisor inside a sandbox.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file; its names are those of AgentConfig")
    found: Path = parser.parse_args(arguments).config
    return found


if __name__ == "__main__":
    sys.exit(main())
