"""Accounts to pull with, in memory."""

from __future__ import annotations

from typing_extensions import override

from sandboxd.images.projects import PullAccount, PullAccounts
from sandboxd.model.ids import ClientId


class FakePullAccounts(PullAccounts):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: dict[ClientId, PullAccount] = {}

    @override
    async def get(self, client: ClientId) -> PullAccount | None:
        return self.kept.get(client)

    @override
    async def put(self, client: ClientId, account: PullAccount) -> None:
        self.kept[client] = account

    @override
    async def remove(self, client: ClientId) -> None:
        self.kept.pop(client, None)
