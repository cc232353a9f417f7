"""A running gateway with everything around it faked but the network: for the integration tests of the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from prometheus_client import CollectorRegistry

from sandboxd.gateway.config import GatewayConfig
from sandboxd.gateway.key_files import StaticApiKeys
from sandboxd.gateway.policy import StaticModelPolicies
from sandboxd.gateway.ports import ApiKeys
from sandboxd.gateway.secret import Secret
from sandboxd.gateway.server import Gateway
from sandboxd.gateway.tokens import SandboxTokenSigner, SandboxTokenVerifier
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.model.usage import UsageEvent, UsageState
from sandboxd.monitor.list_prices import list_prices
from sandboxd.monitor.ports import GatewayReports
from tests.contract.usage_world import an_identity
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.fakes.usage import FakePriceBookStore, FakeUsageLedger

CANARY = "AIzaCANARY-0123456789-abcdefghijklmnop"
MODEL = "gemini-2.5-flash"


class RealClock:
    offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset


@dataclass
class FakeVerifyingKeys:
    keys: dict[str, Ed25519PublicKey] = field(default_factory=dict)

    def find(self, key_id: str) -> Ed25519PublicKey | None:
        return self.keys.get(key_id)


@dataclass(kw_only=True)
class GatewayWorld:
    fake: FakeGemini
    config: GatewayConfig
    ledger: FakeUsageLedger = field(default_factory=FakeUsageLedger)
    prices: FakePriceBookStore = field(default_factory=FakePriceBookStore)
    clock: RealClock = field(default_factory=RealClock)
    identity: SandboxIdentity = field(default_factory=an_identity)
    signing_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    verifying_keys: FakeVerifyingKeys = field(default_factory=FakeVerifyingKeys)
    keys: ApiKeys = field(default_factory=lambda: StaticApiKeys(Secret(CANARY)))
    policies: StaticModelPolicies = field(default_factory=StaticModelPolicies)
    tracer: Tracer = NO_TRACES
    reports: GatewayReports | None = None
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    gateway: Gateway = field(init=False)
    http: aiohttp.ClientSession = field(init=False)

    def __post_init__(self) -> None:
        self.ledger.incarnations[self.identity.incarnation] = self.identity
        self.verifying_keys.keys["key-1"] = self.signing_key.public_key()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[GatewayWorld]:
        await self.prices.add(list_prices())
        self.registry = CollectorRegistry()  # each life of a gateway has its own
        gateway = Gateway(
            config=self.config,
            ledger=self.ledger,
            prices=self.prices,
            keys=self.keys,
            verifier=SandboxTokenVerifier(keys=self.verifying_keys, clock=self.clock),
            clock=self.clock,
            registry=self.registry,
            policies=self.policies,
            tracer=self.tracer,
            reports=self.reports,
        )
        async with aiohttp.ClientSession(auto_decompress=False) as self.http, gateway as self.gateway:
            yield self

    def token(self, identity: SandboxIdentity | None = None, *, key_id: str = "key-1") -> str:
        signer = SandboxTokenSigner(key=self.signing_key, key_id=key_id, clock=self.clock)
        return signer.mint(identity or self.identity).text

    def request(
        self,
        prompt: str,
        *,
        method: str = "streamGenerateContent?alt=sse",
        model: str = MODEL,
        headers: Mapping[str, str] | None = None,
        config: Mapping[str, object] | None = None,
    ) -> Any:
        body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": dict(config or {})}
        return self.http.post(
            f"{self.gateway.url}/v1beta/models/{model}:{method}",
            data=json.dumps(body),
            headers={"authorization": f"Bearer {self.token()}", **(headers or {})},
            timeout=aiohttp.ClientTimeout(total=20),
        )

    async def ask(self, prompt: str, **more: Any) -> tuple[int, bytes]:
        async with self.request(prompt, **more) as answer:
            return answer.status, await answer.read()

    @property
    def rows(self) -> Sequence[UsageEvent]:
        return [self.ledger.rows[event] for event in sorted(self.ledger.rows)]

    async def settled(self) -> UsageEvent:
        """The newest row, once it is settled."""
        await eventually(
            lambda: self.rows and self.rows[-1].state is not UsageState.OPEN, what="the newest row is settled"
        )
        return self.rows[-1]

    async def received(self, number: int = 1) -> list[dict[str, Any]]:
        """The requests that the upstream has finished with."""
        await eventually(lambda: len(self.fake.requests) >= number, what=f"{number} requests at the upstream")
        return list(self.fake.requests)

    async def metrics(self) -> str:
        async with self.http.get(f"{self.gateway.admin_url}/metrics") as answer:
            return await answer.text()


def texts(body: bytes) -> list[str]:
    """The text parts of a stream, in order."""
    found = []
    for line in body.splitlines():
        if line.startswith(b"data:"):
            for candidate in json.loads(line[5:]).get("candidates", []):
                found += [part["text"] for part in candidate.get("content", {}).get("parts", []) if "text" in part]
    return found


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    return error


def config_for(fake: FakeGemini, directory: Path, **more: Any) -> GatewayConfig:
    return GatewayConfig(
        **{"upstream_url": fake.url, "spool_directory": directory / "spool", "beat_seconds": 0.05, **more}
    )
