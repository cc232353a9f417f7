"""Finds the service to talk to: arguments first, then the environment, then a running `sandboxd dev` of this person.

A token that belongs to one address is never sent to another: the token of `sandboxd dev` goes to its own address only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandboxd.ctl.exits import Exit

DEV_FILE = "dev.json"


class SetupError(Exception):
    """Something is missing on this side, before anything was sent."""

    def __init__(self, message: str, *, advice: str, exit_code: Exit) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Files for TLS; each of them asks for it."""

    ca_file: Path | None = None
    """PEM certificates to trust instead of the system's."""
    cert_file: Path | None = None
    """PEM chain of a client certificate."""
    cert_key_file: Path | None = None
    """PEM key of the client certificate; without it the key is in `cert_file`, too."""

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return any((self.ca_file, self.cert_file, self.cert_key_file))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """What the command line says; None and empty where it says nothing."""

    address: str = ""
    token: str = ""
    token_file: Path | None = None
    tls: TlsOptions = TlsOptions()
    for_client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Where the service is and what to show it."""

    address: str
    token: str
    """The token itself, where it was given; else `token_file` is read before each call."""
    token_file: Path | None
    tls: TlsOptions
    for_client: str

    def read_token(self) -> str:
        """Return the token as it is now; empty where a client certificate is shown instead.

        Raises:
            SetupError: The file cannot be read or is empty.
        """
        if self.token_file is None:
            return self.token
        try:
            token = self.token_file.expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(
                f"The token file {self.token_file} cannot be read: {getattr(error, 'strerror', None) or error}.",
                advice="Give another one with --token-file, or a token with SANDBOXCTL_TOKEN.",
                exit_code=Exit.AUTH,
            ) from error
        if not token:
            raise SetupError(
                f"The token file {self.token_file} is empty.",
                advice="Give another one with --token-file, or a token with SANDBOXCTL_TOKEN.",
                exit_code=Exit.AUTH,
            )
        return token


def find(options: TargetOptions, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Decide where to connect and as whom.

    Raises:
        SetupError: There is no address, or no token for it.
    """
    dev = _read_dev(environment)
    address = options.address or environment.get("SANDBOXCTL_ADDRESS", "") or (dev.address if dev else "")
    if not address:
        raise SetupError(
            "No address is given, and no `sandboxd dev` of yours is running.",
            advice="Start one with: make run\nOr name a service and a token: --address HOST:PORT --token-file FILE",
            exit_code=Exit.UNAVAILABLE,
        )
    token, token_file = options.token, options.token_file
    # Who names a certificate at the command wants to be its owner. The service takes a token before a certificate, and
    # one that only happens to be in the environment is not meant.
    by_certificate = options.tls.cert_file is not None
    if not token and token_file is None and not by_certificate:
        token = environment.get("SANDBOXCTL_TOKEN", "")
        named = environment.get("SANDBOXCTL_TOKEN_FILE", "")
        token_file = Path(named) if named and not token else None
    if not token and token_file is None and not by_certificate and dev is not None and address == dev.address:
        token_file = dev.token_file
    tls = _tls(options.tls, environment)
    if not token and token_file is None and tls.cert_file is None:
        raise SetupError(
            f"There is no token for {address}.",
            advice="Give one with SANDBOXCTL_TOKEN, --token-file FILE or --token TOKEN; the platform a certificate "
            "with --cert FILE.",
            exit_code=Exit.AUTH,
        )
    for_client = options.for_client or environment.get("SANDBOXCTL_FOR_CLIENT", "")
    return Credentials(address=address, token=token, token_file=token_file, tls=tls, for_client=for_client)


def _tls(options: TlsOptions, environment: Mapping[str, str]) -> TlsOptions:
    named = {
        name: Path(file) if (file := environment.get(variable, "")) else None
        for name, variable in (("ca", "SANDBOXCTL_CA"), ("cert", "SANDBOXCTL_CERT"), ("key", "SANDBOXCTL_CERT_KEY"))
    }
    # A certificate and its key come from the same place.
    given = options.cert_file or options.cert_key_file
    return TlsOptions(
        ca_file=options.ca_file or named["ca"],
        cert_file=options.cert_file if given else named["cert"],
        cert_key_file=options.cert_key_file if given else named["key"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dev:
    address: str
    token_file: Path


def data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory that `sandboxd dev` keeps its state in."""
    named = environment.get("SANDBOXD_DATA_DIR", "")
    return Path(named).expanduser() if named else Path.home() / ".local" / "share" / "sandboxd"


def _read_dev(environment: Mapping[str, str]) -> _Dev | None:
    path = data_dir(environment) / DEV_FILE
    try:
        found = json.loads(path.read_text())
        return _Dev(address=str(found["address"]), token_file=path.parent / str(found["token_file"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
