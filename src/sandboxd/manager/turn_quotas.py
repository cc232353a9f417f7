"""Keeps the number of turns that run at the same time within the quotas, across replicas.

A turn is started by the owner of a conversation, whose journal transaction must stay lean. So a place is taken before,
in a transaction of its own under the client's lock, and given back when the turn is durable: from then on the turn
itself counts. Where no quota of turns is set, which is known from memory, nothing of this happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.client import Standing
from sandboxd.model.client_errors import QuotaExceededError
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId, RequestId
from sandboxd.model.quota import check_turn
from sandboxd.model.session import Session
from sandboxd.stream.ports import TurnQuotas

PLACE_LEASE: Final = timedelta(seconds=60)
"""How long a place that was taken counts where nobody gives it back: longer than a command may take."""

log = structlog.get_logger(__name__)


class AccountTurnQuotas(TurnQuotas):
    """Places for turns."""

    def __init__(self, *, units: UnitsOfWork, accounts: AccountCache, replica: str) -> None:
        self._replica = replica
        self._units = units
        self._accounts = accounts

    @override
    @asynccontextmanager
    async def place(self, session: Session, request_id: RequestId) -> AsyncIterator[None]:
        client, freelancer = session.client, session.freelancer
        if not _limited(await self._accounts.standing(client, freelancer)):
            yield
            return
        await self._take(session, request_id)
        try:
            yield
        finally:
            await asyncio.shield(self._give_back(client, request_id))

    async def _take(self, session: Session, request_id: RequestId) -> None:
        client, freelancer = session.client, session.freelancer
        async with self._units.begin() as work:
            owner = await work.clients.find(client, for_update=True)
            standing = Standing(client=owner, freelancer=await work.freelancers.find(client, freelancer))
            violations = [
                *check_turn(
                    f"clients/{client}", standing.policy.quotas, await work.quotas.turns(client, but=session.id)
                ),
                *check_turn(
                    f"clients/{client}/freelancers/{freelancer}",
                    standing.freelancer_quotas,
                    await work.quotas.turns(client, freelancer=freelancer, but=session.id),
                ),
            ]
            if violations:
                raise QuotaExceededError(violations)
            await work.quotas.take_place(
                client, request_id, freelancer, session.id, lease=PLACE_LEASE, replica=self._replica
            )
            await work.commit()

    async def _give_back(self, client: ClientId, request_id: RequestId) -> None:
        try:
            async with self._units.begin() as work:
                await work.quotas.give_back(client, request_id)
                await work.commit()
        except SandboxdError as error:
            log.warning("quota.place_not_given_back", client=client, error=error.message)  # its lease runs out


def _limited(standing: Standing) -> bool:
    quotas = (standing.policy.quotas, standing.freelancer_quotas)
    return any(one.concurrent_turns is not None for one in quotas)
