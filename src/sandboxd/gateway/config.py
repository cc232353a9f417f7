"""How one gateway is set up. Made by `bootstrap` from the settings; nothing here reads the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sandboxd.gateway.breaker import BreakerPolicy
from sandboxd.model.usage import DEFAULT_OUTPUT_CLAMP
from sandboxd.monitor.sweep import GATEWAY_SILENCE
from sandboxd.tls.files import TlsFiles

GEMINI_API_URL: Final = "https://generativelanguage.googleapis.com"
"""The public Gemini Developer API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """Bounds of every call, and of all together."""

    request_bytes: int = 64 << 20
    """Largest request body."""
    held_request_bytes: int = 256 << 20
    """All request bodies that are held at once."""
    response_bytes: int = 64 << 20
    """Largest answer that is streamed on, uncompressed."""
    whole_response_bytes: int = 32 << 20
    """Largest answer without a stream; it is held until the ledger has it."""
    calls: int = 1000
    """Calls at once, all sandboxes."""
    calls_per_sandbox: int = 32
    """Calls at once of one sandbox."""
    output_tokens_clamp: int = DEFAULT_OUTPUT_CLAMP
    """Output tokens that one call reserves at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTimeouts:
    """Deadlines, in seconds."""

    request_body: float = 60.0
    """Reading the request."""
    connect: float = 10.0
    """Reaching the model API, TLS included."""
    headers: float = 60.0
    """Waiting for its status; the CLI itself gives up at 60 s."""
    idle: float = 300.0
    """Silence between two pieces of the answer."""
    total: float = 1800.0
    """One whole call."""
    client_write: float = 120.0
    """A CLI that takes no byte for this long is taken for gone."""
    ledger_open: float = 5.0
    """Writing the row before the call; then the call is refused."""
    ledger_settle: float = 5.0
    """Writing the row after the call; then the settlement is spooled, and the CLI waits no longer."""
    shutdown: float = 25.0
    """How long running calls may go on when the gateway stops; below Kubernetes' 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything that one gateway process needs to know."""

    host: str = "127.0.0.1"
    port: int = 0
    """Port for sandboxes; 0 picks a free one."""
    admin_host: str = "127.0.0.1"
    admin_port: int = 0
    """Port for `/healthz`, `/readyz` and `/metrics`, not reachable from sandboxes; 0 picks a free one."""
    upstream_url: str = GEMINI_API_URL
    """The one API that calls go to. It may have a path; it has no query, no user and no fragment."""
    path_prefix: str = ""
    """Path that the gateway is mounted under, for example `/gemini`."""
    spool_directory: Path
    """Where settlements wait for the ledger; durable, of this gateway alone or shared with its next lives."""
    spool_limit: int = 10_000
    """Settlements that may wait; beyond it new calls are refused, so that nothing has to be forgotten."""
    beat_seconds: float = 5.0
    """How often the gateway says that it lives, and persists what running calls have used so far."""
    dead_after_seconds: float = GATEWAY_SILENCE.total_seconds()
    """Another gateway that has been silent for this long is taken for dead, and its open calls are settled."""
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    timeouts: GatewayTimeouts = field(default_factory=GatewayTimeouts)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    trace_upstream: bool = False
    """Send the trace context of traced calls to the model API. It names nothing, and is nobody's business there."""
    tls: TlsFiles | None = None
    """None serves plain HTTP: on loopback only."""
    admin_tls: TlsFiles | None = None
    """The same for the operators' port."""

    def __post_init__(self) -> None:
        """Refuse an upstream that is not one plain base URL, and a prefix that is not a path."""
        url = urlsplit(self.upstream_url)
        extras = url.query or url.fragment or url.username or url.password or "?" in self.upstream_url
        if url.scheme not in {"http", "https"} or not url.hostname or extras:
            raise ValueError("the upstream must be a plain http or https base URL, without user, query and fragment")
        if self.path_prefix and (not self.path_prefix.startswith("/") or self.path_prefix.endswith("/")):
            raise ValueError("the path prefix must begin with a slash and end without one")
