"""Where the CLI is inside every sandbox pod: what the sandbox image promises."""

from __future__ import annotations

from typing import Final

from sandboxd.model.cluster import CLI_ENTRY, HOME_DIRECTORY, MODEL_PORT, NODE_DIRECTORY, WORKSPACE_DIRECTORY
from sandboxd.model.packages import search_path
from sandboxd.stream.ports import CliPlace

CLEAN_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

POD_PLACE: Final = CliPlace(
    node=f"{NODE_DIRECTORY}/node",
    entry=CLI_ENTRY,
    home=HOME_DIRECTORY,
    workspace=WORKSPACE_DIRECTORY,
    # Written by the CLI's own user at each start of the CLI; the run directory is the agent's.
    settings=f"{HOME_DIRECTORY}/.sandboxd/settings.json",
    model_endpoint=f"http://127.0.0.1:{MODEL_PORT}",
    path=search_path(HOME_DIRECTORY, f"{CLEAN_PATH}:{NODE_DIRECTORY}"),
)
