"""API keys of clients: set, rotated, revoked, listed; never read back.

A key touches two places, the database and the key store, so each change is an intent (a row that says SETTING with its
generation), the store, and the outcome. The text of a key is nowhere but in the caller's request: where the service
dies in between, the caller repeats the request, and the same generation is written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.manager.clients import namespace_of, require_reachable
from sandboxd.manager.key_ports import KeyHashes, KeyStore
from sandboxd.manager.ports import (
    REQUEST_KEPT_FOR,
    Operation,
    OperationId,
    RequestOutcome,
    RequestRecord,
    UnitOfWork,
    UnitsOfWork,
)
from sandboxd.model.api_key import ApiKey, ApiKeyState
from sandboxd.model.caller import Caller, Request
from sandboxd.model.client import AccountState
from sandboxd.model.client_errors import AccountStateError, ApiKeyNotFoundError, KeyChangeInProgressError
from sandboxd.model.errors import RequestIdReusedError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.sources import Clock

LEASE: Final = timedelta(seconds=30)
"""How long one change of a key keeps others from it."""


class Keys:
    """Manages keys."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        store: KeyStore,
        hashes: KeyHashes,
        clock: Clock,
        replica: str,
    ) -> None:
        self._units = units
        self._store = store
        self._hashes = hashes
        self._clock = clock
        self._replica = replica

    async def set(self, request: Request, client: ClientId, key: str) -> ApiKey:
        """Give a client its key; one that was there before is dropped.

        Raises:
            ClientNotFoundError: There is no such client, or it is not the caller's.
            AccountStateError: The client is deleted, or about to be.
            KeyChangeInProgressError: Another change of the key is on its way.
            UnavailableError: The key store cannot be written; repeat the request.
        """
        return await self._change(request, "SetKey", client, key, grace=None)

    async def rotate(self, request: Request, client: ClientId, key: str, *, grace: timedelta) -> ApiKey:
        """Replace a client's key: the new one is used at once, the old one stands in where the API refuses the new.

        Raises:
            ApiKeyNotFoundError: The client has no key that could be replaced.
            The others: As `set`.
        """
        return await self._change(request, "RotateKey", client, key, grace=grace)

    async def revoke(self, request: Request, client: ClientId) -> ApiKey:
        """Drop a client's key, and the one that stands in for it; the gateway stops using them within seconds.

        Raises:
            ApiKeyNotFoundError: The client has none.
            The others: As `set`.
        """
        return await self._change(request, "RevokeKey", client, "", grace=None)

    async def list(self, caller: Caller, client: ClientId) -> Sequence[ApiKey]:
        """What is known of a client's keys.

        Raises:
            ClientNotFoundError: There is no such client, or it is not the caller's.
        """
        require_reachable(caller, client)
        async with self._units.begin() as work:
            await work.clients.get(client)
            found = await work.keys.find(client)
        return [] if found is None else [found]

    async def erase(self, client: ClientId) -> int:
        """Remove the keys of a client that is being deleted, without a request; safe to repeat."""
        async with self._units.begin() as work:
            found = await work.keys.find(client, for_update=True)
            generation = 1 if found is None else found.generation + 1
            if found is not None:
                gone = replace(
                    found,
                    state=ApiKeyState.REVOKED,
                    fingerprint="",
                    previous_fingerprint="",
                    generation=generation,
                    revoke_time=self._clock.now(),
                )
                await work.keys.save(gone)
            await work.commit()
        return await self._store.remove(client, generation=generation)

    async def _change(
        self, request: Request, method: str, client: ClientId, key: str, *, grace: timedelta | None
    ) -> ApiKey:
        require_reachable(request.caller, client)
        begun = await self._begin(request, method, client, key, grace)
        if begun.state is not ApiKeyState.SETTING:
            return begun  # a repeated request that was done
        failpoint("key.after_commit")
        if method == "RevokeKey":
            await self._store.remove(client, generation=begun.generation)
        else:
            await self._store.put(
                client, key, generation=begun.generation, keep_previous_until=begun.previous_expire_time
            )
        failpoint("key.after_store")
        return await self._settle(request, method, begun)

    async def _begin(
        self, request: Request, method: str, client: ClientId, key: str, grace: timedelta | None
    ) -> ApiKey:
        now = self._clock.now()
        claim = RequestRecord(
            client=namespace_of(request.caller),
            request_id=request.request_id,
            method=method,
            subject=request.caller.subject,
            body_hash=request.body_hash,
            sandbox=SandboxId(f"clients/{client}/keys"),
            create_time=now,
            expire_time=now + REQUEST_KEPT_FOR,
        )
        async with self._units.begin() as work:
            earlier = await work.requests.claim(claim)
            if earlier is not None and (earlier.method, earlier.subject, earlier.body_hash) != (
                claim.method,
                claim.subject,
                claim.body_hash,
            ):
                raise RequestIdReusedError(claim.request_id)
            owner = await work.clients.get(client, for_update=True)
            found = await work.keys.find(client, for_update=True)
            if earlier is not None and earlier.outcome is not None:
                if found is None:
                    raise ApiKeyNotFoundError(client)
                return found
            if owner.state in (AccountState.DELETING, AccountState.DELETED):
                raise AccountStateError(f"clients/{client}", state=owner.state.value, wanted="given a key")
            operation = Operation(id=OperationId(f"key-{claim.client}-{request.request_id}"), replica=self._replica)
            if not await work.operations.take(_lock(client), operation, lease=LEASE):
                raise KeyChangeInProgressError(client)
            if earlier is not None and found is not None and found.state is ApiKeyState.SETTING:
                await work.commit()  # the service died in the middle of this very request: the same once more
                return found
            begun = self._planned(found, method, client, key, grace, now)
            await work.keys.save(begun)
            await work.commit()
        return begun

    def _planned(
        self, found: ApiKey | None, method: str, client: ClientId, key: str, grace: timedelta | None, now: datetime
    ) -> ApiKey:
        there = found is not None and found.state is not ApiKeyState.REVOKED
        if method != "SetKey" and not there:
            raise ApiKeyNotFoundError(client)
        generation = 1 if found is None else found.generation + 1
        if method == "RevokeKey" and found is not None:
            return replace(
                found,
                state=ApiKeyState.SETTING,
                generation=generation,
                previous_fingerprint="",
                previous_expire_time=None,
                revoke_time=now,
            )
        stands_in = found if method == "RotateKey" and grace else None
        return ApiKey(
            client=client,
            state=ApiKeyState.SETTING,
            fingerprint=self._hashes.fingerprint(key),
            previous_fingerprint=stands_in.fingerprint if stands_in else "",
            previous_expire_time=now + grace if stands_in and grace else None,
            generation=generation,
            set_time=now,
            rotate_time=now if method == "RotateKey" else (found.rotate_time if found else None),
        )

    async def _settle(self, request: Request, method: str, begun: ApiKey) -> ApiKey:
        client = begun.client
        state = ApiKeyState.REVOKED if method == "RevokeKey" else ApiKeyState.ACTIVE
        async with self._units.begin() as work:
            found = await work.keys.find(client, for_update=True)
            if found is None or found.generation != begun.generation:
                raise KeyChangeInProgressError(client)
            settled = replace(found, state=state)
            await work.keys.save(settled)
            namespace = namespace_of(request.caller)
            await work.requests.finish(namespace, request.request_id, RequestOutcome(response=b""))
            await _release(work, client, OperationId(f"key-{namespace}-{request.request_id}"))
            await work.commit()
        return settled


def _lock(client: ClientId) -> SandboxId:
    return SandboxId(f"clients/{client}/keys")


async def _release(work: UnitOfWork, client: ClientId, operation: OperationId) -> None:
    await work.operations.release(_lock(client), operation)
