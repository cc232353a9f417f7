"""Sets of public keys: what of a JWKS can be used, and the set that a file holds."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import jwt
import structlog
from jwt import PyJWK
from typing_extensions import override

log = structlog.get_logger("sandboxd.api")

ALGORITHMS: Final = ("EdDSA", "RS256", "ES256")
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
"""Larger keys would make each check of a forged token dear."""
MAX_KEY_SET_BYTES: Final = 512 << 10
MAX_KEYS: Final = 100
MAX_KEY_ID_CHARS: Final = 256
_RELOAD_SECONDS: Final = 2.0


class KeySetError(Exception):
    """The key set cannot be used; the text says why, and holds nothing of the keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The usable keys of a JWKS."""

    keys: Mapping[str, PyJWK]
    """By `kid`."""
    left_out: Mapping[str, str]
    """Why other entries are not used, by `kid` or position."""

    def find(self, key_id: str | None) -> PyJWK | None:
        """Return the key of an id; without an id, the only key."""
        if key_id is None:
            return next(iter(self.keys.values())) if len(self.keys) == 1 else None
        return self.keys.get(key_id)


class Keys(Protocol):
    """Where keys are found."""

    def find(self, key_id: str | None) -> PyJWK | None:
        """Return the key of an id, as far as it is known now; without an id, the only key."""
        ...

    async def renew(self) -> None:
        """Ask the issuer whether there are new keys, as far as that may be asked again now.

        Raises:
            KeysUnavailableError: The issuer does not say.
            TokenKeyUnknownError: It was asked a moment ago, and may not be asked again yet.
        """
        ...


def parse_key_set(text: bytes) -> KeySet:
    """Read a JWKS. Entries that are for something else are left out, as RFC 7517 asks; so are those that share a `kid`.

    Raises:
        KeySetError: It is no JWKS, or holds no usable key.
    """
    if len(text) > MAX_KEY_SET_BYTES:
        raise KeySetError(f"is larger than {MAX_KEY_SET_BYTES >> 10} KiB")
    try:
        entries = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeySetError("is not a JWKS") from error
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise KeySetError(f"is not a JWKS of at most {MAX_KEYS} keys")
    keys: dict[str, PyJWK] = {}
    left_out: dict[str, str] = {}
    ids = Counter(entry["kid"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("kid"), str))
    for number, entry in enumerate(entries):
        try:
            key_id, key = _key(entry)
            if ids[key_id] > 1:
                raise KeySetError("two keys have this `kid`")
            keys[key_id] = key
        except KeySetError as error:
            named = entry.get("kid") if isinstance(entry, dict) else None
            left_out[str(named or f"number {number + 1}")[:MAX_KEY_ID_CHARS]] = str(error)
    if not keys:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise KeySetError(f"holds no usable key ({reasons})" if reasons else "holds no key")
    return KeySet(keys=keys, left_out=left_out)


def _key(entry: Any) -> tuple[str, PyJWK]:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        raise KeySetError("has no `kid`")
    if not 0 < len(entry["kid"]) <= MAX_KEY_ID_CHARS:
        raise KeySetError(f"its `kid` must have 1 to {MAX_KEY_ID_CHARS} characters")
    if entry.get("kty") not in {"OKP", "RSA", "EC"}:
        raise KeySetError("is not a public key for EdDSA, RS256 or ES256")
    if "d" in entry:
        raise KeySetError("is a private key; publish the public one")
    if entry.get("use", "sig") != "sig" or "verify" not in (entry.get("key_ops") or ["verify"]):
        raise KeySetError("is not for signatures")
    try:
        key = PyJWK(entry)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise KeySetError("cannot be read") from error
    if key.algorithm_name not in ALGORITHMS:
        raise KeySetError(f"is for another algorithm than {', '.join(ALGORITHMS)}")
    _check_size(entry, key)
    return entry["kid"], key


def _check_size(entry: Mapping[str, Any], key: PyJWK) -> None:
    # By the algorithm that will verify with it, and not by what the entry says of itself.
    match key.algorithm_name, entry["kty"]:
        case "RS256", "RSA":
            if not MIN_RSA_BITS <= key.key.key_size <= MAX_RSA_BITS:
                raise KeySetError(f"RSA keys must have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
        case "ES256", "EC":
            if entry.get("crv") != "P-256":
                raise KeySetError("ES256 is for the curve P-256")
        case "EdDSA", "OKP":
            if entry.get("crv") != "Ed25519":
                raise KeySetError("EdDSA is for the curve Ed25519")
        case _:
            raise KeySetError("its `alg` and `kty` do not belong together")


class FileKeys(Keys):
    """The keys of a JWKS file; a changed file is read again within seconds."""

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            KeySetError: It is not there, or holds no usable key, or one that is not usable.
        """
        self._path = path
        self._monotonic = monotonic
        self._good = self._told = _stamp(path)
        self._set = _read(path)
        self._looked = monotonic()

    @override
    def find(self, key_id: str | None) -> PyJWK | None:
        """Return the key of an id; without an id, the only key."""
        self._refresh()
        return self._set.find(key_id)

    @override
    async def renew(self) -> None:
        """Do nothing: the file is looked at as often as it must be."""

    def _refresh(self) -> None:
        if self._monotonic() - self._looked < _RELOAD_SECONDS:
            return
        self._looked = self._monotonic()
        stamp = _stamp(self._path)
        if stamp == self._good:
            return
        try:
            self._set = _read(self._path)
        except KeySetError as error:
            # In the middle of being replaced, or gone: the keys that were good stay good. Tried each time, told once.
            if stamp != self._told:
                log.warning("callers.key_file_refused", error=str(error))
        else:
            self._good = stamp
            log.info("callers.keys_changed", keys=sorted(self._set.keys))
        self._told = stamp


def _read(path: Path) -> KeySet:
    try:
        found = parse_key_set(path.read_bytes())
    except FileNotFoundError as error:
        raise KeySetError(f"the key set {path} does not exist") from error
    except OSError as error:
        raise KeySetError(f"the key set {path} cannot be read ({error.strerror})") from error
    except KeySetError as error:
        raise KeySetError(f"the key set {path} {error}") from error
    if found.left_out:
        # A file is written by its operator, for us: what cannot be used is a mistake.
        name, why = next(iter(found.left_out.items()))
        raise KeySetError(f"key {name} in {path} cannot be used: {why}")
    return found


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
