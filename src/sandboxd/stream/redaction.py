"""Keys and tokens are taken out of what people read when something goes wrong. Pure.

Applied to error messages, to the tail of the CLI's stderr and to bytes that could not be understood; never to the
model's answers or tool output, which belong to the freelancer.
"""

from __future__ import annotations

import re

REDACTED = "[redacted]"

SECRETS = re.compile(
    r"""
      \bAIza[0-9A-Za-z_\-]{8,}                              # Google API keys
    | \bAQ\.[0-9A-Za-z_\-]{16,}                             # and their newer form
    | \bya29\.[0-9A-Za-z_\-.]{8,}                           # OAuth access tokens
    | \beyJ[0-9A-Za-z_\-]{8,}\.[0-9A-Za-z_\-]{4,}(?:\.[0-9A-Za-z_\-]*)?   # JWTs: the sandbox token
    | \bsbxd-[0-9A-Za-z_\-]+ | \bsbx-token-[0-9A-Za-z_\-]+   # session hints, sandbox tokens
    | (?<=bearer\ )\s*[0-9A-Za-z_\-.~+/=]+
    | (?<=x-goog-api-key)(?:\\?["'])?\s*[:=]\s*(?:\\?["'])?[^\s"'\\,;}]+
    | (?<=[?&]key=)[^\s"'&\\]+
    | (?<=api[-_]key)(?:\\?["'])?\s*[:=]\s*(?:\\?["'])?[^\s"'\\,;}]+
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace everything that looks like a key or a token."""
    return SECRETS.sub(REDACTED, text)


def redact_bytes(data: bytes) -> bytes:
    """The same for bytes of any encoding; all other bytes stay as they are."""
    return redact(data.decode("latin-1")).encode("latin-1")
