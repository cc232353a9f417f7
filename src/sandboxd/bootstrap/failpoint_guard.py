"""Keeps failpoints out of production: a service that others can reach does not start with them."""

from __future__ import annotations

import structlog

from sandboxd.model.failpoints import VARIABLE, armed
from sandboxd.settings import Settings, SettingsError
from sandboxd.settings_rules import is_loopback

log = structlog.get_logger("sandboxd.bootstrap")


def guard_failpoints(settings: Settings, *, role: str) -> None:
    """Say loudly that failpoints are armed, where they are.

    Raises:
        SettingsError: They are, and an address of this process can be reached from other machines.
    """
    names = armed()
    if not names:
        return
    own = {
        "gateway": [settings.gateway_listen],
        "operator": [settings.operator_web_listen],
        "serve": [settings.grpc_listen],
    }
    # A role without addresses of its own, such as `sweep`, belongs to an installation that may have them all.
    addresses = own.get(role) or [settings.grpc_listen, settings.gateway_listen]
    if not all(is_loopback(address) for address in addresses):
        raise SettingsError(
            f"The settings cannot be used:\n  {VARIABLE}: failpoints break this process on purpose, "
            "and it can be reached from other machines"
        )
    log.warning("role.failpoints_armed", names=names, warning="this process breaks on purpose: it is for tests alone")
