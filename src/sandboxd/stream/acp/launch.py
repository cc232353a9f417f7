"""How the CLI is started: settings, environment and arguments that it needs to be correct and quiet. Pure functions.

Each setting answers something that was seen to go wrong: two processes of which one swallows signals (relaunch), shell
output that never arrives (interactive shell), loaded sessions deleted at the next start (retention), a prompt that
hangs for minutes (attempts), a trust dialog (folder trust), calls to other hosts (updates, statistics, telemetry).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PLACEHOLDER_KEY = "sbxd-none"
"""Key in the environment: worth nothing, only there so that the CLI does not refuse to start. ACP sessions get a key of
their own by `authenticate`."""
MAX_ATTEMPTS = 3
"""Attempts per model call. The CLI's default of 10, with pauses up to 30 s, hangs for minutes without one event."""
HEAP_MEGABYTES = 512
"""Node's old space. A session needs about 150 MB; a long one with large tool output several times that."""


def system_settings(*, yolo_allowed: bool = True) -> dict[str, Any]:
    """The CLI's system settings: they outrank what the freelancer sets.

    Args:
        yolo_allowed: Whether a session may approve all tools without asking.
    """
    return {
        "general": {
            "enableAutoUpdate": False,
            "enableAutoUpdateNotification": False,
            "maxAttempts": MAX_ATTEMPTS,
            "sessionRetention": {"enabled": False},
        },
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "security": {
            "auth": {"selectedType": "gemini-api-key", "enforcedType": "gemini-api-key"},
            "folderTrust": {"enabled": False},
            "disableYoloMode": not yolo_allowed,
            "environmentVariableRedaction": {"enabled": True, "blocked": ["GEMINI_API_KEY"]},
        },
        "tools": {"shell": {"enableInteractiveShell": False}},
    }


def environment(
    *, home: str, model_endpoint: str, settings_path: str, heap_megabytes: int = HEAP_MEGABYTES
) -> Mapping[str, str]:
    """What the CLI needs in its environment, in addition to `PATH` and the like.

    Args:
        home: The freelancer's home; the CLI keeps its sessions in `.gemini` below it.
        model_endpoint: URL that stands for the Gemini API, the agent's endpoint on 127.0.0.1.
        settings_path: File that holds `system_settings`.
        heap_megabytes: Limit of Node's heap.
    """
    return {
        "HOME": home,
        "GEMINI_API_KEY": PLACEHOLDER_KEY,
        "GOOGLE_GEMINI_BASE_URL": model_endpoint,
        "GEMINI_CLI_SYSTEM_SETTINGS_PATH": settings_path,
        "GEMINI_CLI_NO_RELAUNCH": "true",
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
        "NODE_OPTIONS": f"--max-old-space-size={heap_megabytes}",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }


def acp_argv(*, node: str, entry: str, model: str = "") -> Sequence[str]:
    """The command line of the CLI in ACP mode.

    Args:
        node: Path of the Node program.
        entry: Path of the CLI's entry script.
        model: Model that sessions begin with; a fixed one also saves the router's call. Empty leaves the CLI's choice.
    """
    return [node, entry, "--acp", *(["-m", model] if model else [])]


def headless_argv(*, node: str, entry: str, arguments: Sequence[str]) -> Sequence[str]:
    """The command line of one headless run: `arguments` come from the dialect's `Spawn`."""
    return [node, entry, *arguments]
