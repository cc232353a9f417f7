"""Takes the API key out of what the model API answers, should it ever repeat it: the sandbox reads those bytes.

Chunks pass at once. Only where a chunk ends in what may be the beginning of the key are those few bytes held back until
the next chunk or the end.
"""

from __future__ import annotations

from typing import Final

from sandboxd.gateway.secret import Secret

_REPLACEMENT: Final = b"[redacted]"


class KeyScrubber:
    """Replaces one key in a stream of bytes."""

    def __init__(self, key: Secret) -> None:
        self._key: Final = key.reveal().encode()
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes and give those that may be passed on."""
        data = (self._held + chunk).replace(self._key, _REPLACEMENT)
        keep = self._beginning_at_the_end_of(data)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def end(self) -> bytes:
        """Give what is still held: the stream has ended, so it was not the key."""
        held, self._held = self._held, b""
        return held

    def _beginning_at_the_end_of(self, data: bytes) -> int:
        longest = min(len(self._key) - 1, len(data))
        return next((size for size in range(longest, 0, -1) if self._key.startswith(data[-size:])), 0)
