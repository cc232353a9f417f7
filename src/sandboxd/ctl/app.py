"""The command line of `sandboxctl`, put together: importing the modules of verbs hangs them into the root."""

from sandboxd.ctl import (
    verbs_accounting,
    verbs_accounts,
    verbs_admin,
    verbs_audit,
    verbs_backups,
    verbs_images,
    verbs_keys,
    verbs_lifecycle,
    verbs_packages,
    verbs_pools,
    verbs_sandboxes,
    verbs_sessions,
)
from sandboxd.ctl.root import app

__all__ = [
    "app",
    "verbs_accounting",
    "verbs_accounts",
    "verbs_admin",
    "verbs_audit",
    "verbs_backups",
    "verbs_images",
    "verbs_keys",
    "verbs_lifecycle",
    "verbs_packages",
    "verbs_pools",
    "verbs_sandboxes",
    "verbs_sessions",
]
