"""Keys and tokens in text files that would be kept, by the form that their issuers give them. Pure.

A find may cost a file (`SecretPolicy.STRIP`), so high entropy, words like `password` and URLs with a name in them are
none: they are in every second configuration. What package managers own is not looked at: libraries bring keys and
tokens for their tests and documentation, and are broken without them. Nor is the one key that a package of Debian makes
for itself at its installation: its certificate is signed by itself, nobody trusts it, and PostgreSQL, which names it,
does not start without it (docs/adr/0055-snakeoil.md).

`stream/redaction.py` has looser forms on purpose: there, a word too many that is blanked costs nothing.
"""

from __future__ import annotations

import re
from typing import Final

from sandboxd.model.rootfs_rules import holds_token, may_hold_token

SCANNED_BYTES: Final = (1 << 20) - 1
"""Larger files are not looked at: keys lie in small ones."""
_PACKAGE_TREES: Final = (
    b"usr/",
    b"lib/",
    b"lib32/",
    b"lib64/",
    b"libx32/",
    b"bin/",
    b"sbin/",
    b"var/lib/dpkg/",
    b"var/lib/apt/",
)
_NOT_PACKAGE_TREES: Final = (b"usr/local/", b"usr/src/")
_MADE_BY_PACKAGES: Final = frozenset({b"etc/ssl/private/ssl-cert-snakeoil.key"})
_PACKAGE_DIRECTORIES: Final = re.compile(
    rb"/(?:site-packages|dist-packages|node_modules|gems|rustlib)/|^usr/local/(?:lib|include|share)/|/\.cargo/registry/|/pkg/mod/"
)
_FORMS: Final[tuple[tuple[tuple[bytes, ...], bytes], ...]] = (
    # What must be in the file, before the expression is tried; then the expression.
    (
        (b"AIza",),
        rb"\bAIza[0-9A-Za-z_\-]{35}(?![0-9A-Za-z_\-])",
    ),  # Google: keys, OAuth clients, access and refresh tokens
    ((b"AQ.",), rb"\bAQ\.[0-9A-Za-z_\-]{40,}"),
    ((b"GOCSPX-",), rb"\bGOCSPX-[0-9A-Za-z_\-]{28}"),
    ((b"ya29.",), rb"\bya29\.[0-9A-Za-z_\-.]{30,}"),
    ((b"1//0",), rb"(?<![0-9A-Za-z])1//0[0-9A-Za-z_\-]{40,}"),
    ((b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), rb"\bgh[pousr]_[0-9A-Za-z]{36,}"),  # GitHub
    ((b"github_pat_",), rb"\bgithub_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}"),
    ((b"glpat-",), rb"\bglpat-[0-9A-Za-z_\-]{20,}"),  # GitLab
    ((b"AKIA", b"ASIA"), rb"\b(?:AKIA|ASIA)(?![A-Z2-7]{9}EXAMPLE)[A-Z2-7]{16}\b"),  # AWS; its documentation's end so
    ((b"sk-ant-",), rb"\bsk-ant-[a-z]{2,6}[0-9]{2}-[0-9A-Za-z_\-]{80,}"),  # Anthropic
    ((b"T3BlbkFJ",), rb"\bsk-[0-9A-Za-z_\-]{20,}T3BlbkFJ[0-9A-Za-z_\-]{20,}"),  # OpenAI
    ((b"hf_",), rb"\bhf_[A-Za-z]{34}\b"),  # Hugging Face
    ((b"xox", b"xapp-"), rb"\b(?:xox[abeoprs]|xapp)-[0-9]+-[0-9A-Za-z\-]{20,}"),  # Slack
    ((b"k_live_",), rb"\b[rs]k_live_[0-9A-Za-z]{20,}"),  # Stripe
    ((b"SG.",), rb"\bSG\.[0-9A-Za-z_\-]{22}\.[0-9A-Za-z_\-]{43}"),  # SendGrid
    ((b"dop_v1_", b"doo_v1_", b"dor_v1_"), rb"\bdo[opr]_v1_[0-9a-f]{64}"),  # DigitalOcean
    ((b"npm_",), rb"\bnpm_[0-9A-Za-z]{36}\b"),
    ((b"pypi-AgE",), rb"\bpypi-AgE[0-9A-Za-z_\-]{50,}"),
    ((b"dckr_",), rb"\bdckr_(?:pat|oat)_[0-9A-Za-z_\-]{20,}"),  # Docker
    ((b"sbx-token-",), rb"\bsbx-token-[0-9A-Za-z_\-.]{16,}"),  # our own
    ((b"eyJ",), rb"\beyJ[0-9A-Za-z_\-]{10,}\.eyJ[0-9A-Za-z_\-]{10,}\.[0-9A-Za-z_\-]{20,}"),  # any signed JWT
    (
        (b"PRIVATE KEY",),
        rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\s|\\[nr]|[A-Za-z\-]+:[^\n]*\n)+[0-9A-Za-z+/=]{40,}",
    ),
    ((b"AGE-SECRET-KEY-1",), rb"\bAGE-SECRET-KEY-1[0-9A-Z]{58}"),
)
_TRIED: Final = tuple((needle, re.compile(form)) for needles, form in _FORMS for needle in needles)


def is_scanned(path: bytes) -> bool:
    """Whether a file is a person's, as far as its place tells."""
    if may_hold_token(path):
        return True
    if path in _MADE_BY_PACKAGES:
        return False
    if path.startswith(_PACKAGE_TREES) and not path.startswith(_NOT_PACKAGE_TREES):
        return False
    return _PACKAGE_DIRECTORIES.search(path) is None


def find_secret(path: bytes, content: bytes) -> str | None:
    """Say what is in a file: `secret` for a settings file with credentials, `token` for a key or token, or None.

    Args:
        path: Of the file.
        content: All of it, at most `SCANNED_BYTES`. What has a zero in it is no text and has none.
    """
    if may_hold_token(path) and holds_token(content):
        return "secret"
    if b"\0" in content:
        return None
    for needle, form in _TRIED:  # nearly always none is there: what is written here is what each file costs
        if needle in content and form.search(content) is not None:
            return "token"
    return None
