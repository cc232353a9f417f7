"""What of a root file system never becomes part of an image: the machine's own, caches, logs and secrets. Pure.

Paths are those of `rootfs.py`. Packages' own state (`/var/lib/dpkg` above all) is never left out in part: an image
with half of it is worse than one without a package.
"""

from __future__ import annotations

import re
from typing import Final

EXCLUDED: Final = frozenset(
    {
        b"dev",
        b"proc",
        b"run",
        b"sys",
        b"tmp",
        b"var/tmp",
        b"etc/hostname",  # these four the runtime makes for each pod
        b"etc/hosts",
        b"etc/mtab",
        b"etc/resolv.conf",
        b"etc/machine-id",  # one for each machine; an image that carried it would make many of one
        b"var/lib/dbus/machine-id",
        b"var/lib/systemd/random-seed",
        b".dockerenv",
    }
)
"""Left out with all below; that one of them is absent is no change either."""

DIRECTORIES_ONLY: Final = (
    b"var/cache/",
    b"var/log/",
    b"var/lib/apt/lists/",
    b"root/.cache/",
    b"root/.npm/_cacache/",
)
"""Of what lies below, directories are kept and nothing else: packages make theirs once, at their installation, and do
not start without them (nginx and `/var/log/nginx`)."""

_SECRET_NAMES: Final = frozenset(
    {
        b".ash_history",
        b".aws",
        b".bash_history",
        b".git-credentials",
        b".gnupg",
        b".lesshst",
        b".mysql_history",
        b".netrc",
        b".node_repl_history",
        b".pgpass",
        b".psql_history",
        b".pypirc",
        b".python_history",
        b".rediscli_history",
        b".sh_history",
        b".sqlite_history",
        b".ssh",
        b".viminfo",
        b".wget-hsts",
        b".zsh_history",
    }
)
_SECRET_TAILS: Final = (
    b"/.azure/msal_token_cache.json",
    b"/.config/gcloud",
    b"/.config/gh/hosts.yml",
    b"/.docker/config.json",
    b"/.gemini/gemini-credentials.json",
    b"/.gemini/oauth_creds.json",
    b"/.kube/config",
)
_HOST_KEYS: Final = b"etc/ssh/ssh_host_"
_SETTINGS_WITH_TOKENS: Final = frozenset({b".npmrc", b"npmrc", b"pip.conf", b".yarnrc", b".yarnrc.yml"})
_TOKEN: Final = re.compile(
    rb"(_auth(token)?|_password|npmauthtoken)[\"']?\s*[=:]|://[^/\s:@]+:[^/\s@]+@", re.IGNORECASE
)


def is_secret(path: bytes) -> bool:
    """Whether a path is one where programs keep credentials or what somebody typed."""
    name = path[path.rfind(b"/") + 1 :]
    return name in _SECRET_NAMES or path.startswith(_HOST_KEYS) or (b"/" + path).endswith(_SECRET_TAILS)


def may_hold_token(path: bytes) -> bool:
    """Whether it is a settings file that is wanted, unless there are credentials in it."""
    return path[path.rfind(b"/") + 1 :] in _SETTINGS_WITH_TOKENS


def holds_token(content: bytes) -> bool:
    """Whether such a file has credentials in it."""
    return _TOKEN.search(content) is not None


def keeps_directories_only(path: bytes) -> bool:
    """Whether it lies where only directories are kept."""
    return path.startswith(DIRECTORIES_ONLY)
