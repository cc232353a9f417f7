"""Erasures and keys in memory: nothing is there to be erased but names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from typing_extensions import override

from sandboxd.manager.erasure_ports import ErasureRepository, ProofSigner
from sandboxd.manager.key_ports import KeyHashes, KeyRepository, KeyStore
from sandboxd.model.api_key import ApiKey
from sandboxd.model.client import AccountState, Freelancer
from sandboxd.model.client_errors import ErasureNotFoundError
from sandboxd.model.erasure import Erasure, ErasureId, Signature
from sandboxd.model.errors import SandboxdError, StaleOwnerError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Sandbox

MARK = "erased"


class _Rows(Protocol):
    sandboxes: dict[SandboxId, Sandbox]
    freelancers: dict[tuple[ClientId, FreelancerId], Freelancer]
    erasures: dict[ErasureId, Erasure]
    keys: dict[ClientId, ApiKey]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...


class FakeErasureRepository(ErasureRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def add(self, erasure: Erasure) -> None:
        (await self.work.write()).erasures[erasure.id] = erasure

    @override
    async def get(self, erasure: ErasureId, *, for_update: bool = False) -> Erasure:
        rows = await (self.work.write() if for_update else self.work.read())
        if erasure not in rows.erasures:
            raise ErasureNotFoundError(erasure)
        return rows.erasures[erasure]

    @override
    async def save(self, erasure: Erasure) -> None:
        (await self.work.write()).erasures[erasure.id] = erasure

    @override
    async def list(self, client: ClientId, *, page_size: int, page_token: str) -> Page[Erasure]:
        rows = await self.work.read()
        return Page(items=[one for one in rows.erasures.values() if one.client == client][:page_size])

    @override
    async def unfinished(self, *, limit: int) -> Sequence[Erasure]:
        rows = await self.work.read()
        return [one for one in rows.erasures.values() if one.end_time is None][:limit]

    @override
    async def sandboxes(self, client: ClientId, freelancer: FreelancerId | None, *, limit: int) -> Sequence[SandboxId]:
        rows = await self.work.read()
        return [
            one.id
            for one in rows.sandboxes.values()
            if one.client == client and freelancer in (None, one.freelancer) and one.state_reason != MARK
        ][:limit]

    @override
    async def erase_sandbox(self, sandbox: SandboxId) -> None:
        rows = await self.work.write()
        found = rows.sandboxes[sandbox]
        rows.sandboxes[sandbox] = replace(found, display_name="", labels={}, state_reason=MARK)

    @override
    def kinds(self) -> Sequence[str]:
        return ("events",)

    @override
    async def erase(self, kind: str, client: ClientId, freelancer: FreelancerId | None, *, limit: int) -> int:
        return 0

    @override
    async def kept(self, client: ClientId, freelancer: FreelancerId | None) -> Sequence[tuple[str, int, str]]:
        return [("usage_events", 0, "for the law of billing")]

    @override
    async def close_freelancers(self, client: ClientId, *, at: datetime) -> int:
        rows = await self.work.write()
        closed = 0
        for key, one in list(rows.freelancers.items()):
            if one.client == client and one.state is not AccountState.DELETED:
                rows.freelancers[key] = replace(one, state=AccountState.DELETED, display_name="", delete_time=at)
                closed += 1
        return closed


class FakeKeyRepository(KeyRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def find(self, client: ClientId, *, for_update: bool = False) -> ApiKey | None:
        rows = await (self.work.write() if for_update else self.work.read())
        return rows.keys.get(client)

    @override
    async def save(self, key: ApiKey) -> None:
        (await self.work.write()).keys[key.client] = key


class FakeSigner(ProofSigner):
    """Signs with a digest."""

    @override
    def sign(self, document: bytes) -> Signature:
        return Signature(key_id="fake", signature=hashlib.sha256(document).digest(), public_key="none")


class FakeKeyStore(KeyStore):
    """Keys by client, with their generation; the place may be away."""

    def __init__(self) -> None:
        self.keys: dict[ClientId, tuple[str, int, datetime | None]] = {}
        self.previous: dict[ClientId, str] = {}
        self.generations: dict[ClientId, int] = {}
        self.error: SandboxdError | None = None

    @override
    async def put(
        self, client: ClientId, key: str, *, generation: int, keep_previous_until: datetime | None = None
    ) -> None:
        if self._fence(client, generation) != generation:
            self.previous.pop(client, None)
            if keep_previous_until is not None and client in self.keys:
                self.previous[client] = self.keys[client][0]
        self.keys[client] = (key, generation, keep_previous_until)
        self.generations[client] = generation

    @override
    async def remove(self, client: ClientId, *, generation: int) -> int:
        self._fence(client, generation)
        self.generations[client] = generation
        return sum(found.pop(client, None) is not None for found in (self.keys, self.previous))

    def _fence(self, client: ClientId, generation: int) -> int:
        if self.error is not None:
            raise self.error
        there = self.generations.get(client, 0)
        if there > generation:
            raise StaleOwnerError(f"A later change of the key of client {client} was made.", client=client)
        return there


class FakeKeyHashes(KeyHashes):
    """Plain digests."""

    @override
    def digest(self, key: str) -> bytes:
        return hashlib.sha256(key.encode()).digest()

    @override
    def fingerprint(self, key: str) -> str:
        return hashlib.sha256(b"f" + key.encode()).hexdigest()[:12]
