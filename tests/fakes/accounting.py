"""Budgets and prices in memory. Nothing is counted in these budgets: what counts is tested on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from typing_extensions import override

from sandboxd.manager.budget_ports import BudgetFilter, BudgetRepository
from sandboxd.manager.price_ports import PriceRepository
from sandboxd.model.accounting_errors import BudgetNotFoundError
from sandboxd.model.budget import Budget, BudgetId, BudgetStatus, BudgetTarget
from sandboxd.model.ids import ClientId
from sandboxd.model.paging import Page
from sandboxd.model.pricing import Price


class _Work(Protocol):
    async def read(self) -> Any: ...  # Any: the rows of tests/fakes/manager.py
    async def write(self) -> Any: ...


class FakeBudgetRepository(BudgetRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def put(
        self, target: BudgetTarget, *, limit: int, thresholds: tuple[int, ...], new: BudgetId, at: datetime
    ) -> Budget:
        rows = await self.work.write()
        found = await self.find(target)
        made = Budget(id=new, target=target, limit=limit, thresholds=thresholds, create_time=at, update_time=at)
        if found is not None:
            made = replace(found, limit=limit, thresholds=thresholds, update_time=at)
        rows.budgets[made.id] = made
        return made

    @override
    async def find(self, target: BudgetTarget) -> Budget | None:
        rows = await self.work.read()
        return next((one for one in rows.budgets.values() if one.target == target), None)

    @override
    async def get(self, budget: BudgetId, *, client: ClientId, at: datetime) -> BudgetStatus:
        rows = await self.work.read()
        found = rows.budgets.get(budget)
        if found is None or found.target.client != client:
            raise BudgetNotFoundError(budget)
        return _status(found, at)

    @override
    async def list(self, where: BudgetFilter, *, at: datetime, page_size: int, page_token: str) -> Page[BudgetStatus]:
        rows = await self.work.read()
        found = [
            _status(budget, at)
            for _, budget in sorted(rows.budgets.items())
            if budget.target.client == where.client
            and (where.sandbox is None or budget.target.sandbox == where.sandbox)
            and (where.freelancer is None or where.freelancer in (budget.target.freelancer, _owner(rows, budget)))
            and budget.id > page_token
        ]
        more = len(found) > page_size
        return Page(items=found[:page_size], next_token=found[page_size - 1].budget.id if more else "")

    @override
    async def delete(self, budget: BudgetId, *, client: ClientId) -> None:
        rows = await self.work.write()
        if budget not in rows.budgets or rows.budgets[budget].target.client != client:
            raise BudgetNotFoundError(budget)
        del rows.budgets[budget]

    @override
    async def recount(self, client: ClientId, *, at: datetime) -> tuple[int, int]:
        rows = await self.work.write()
        return sum(one.target.client == client for one in rows.budgets.values()), 0


class FakePriceRepository(PriceRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def all(self, *, for_update: bool = False) -> Sequence[Price]:
        rows = await (self.work.write() if for_update else self.work.read())
        return sorted(rows.prices.values(), key=lambda price: (price.model, price.valid_from, price.id))

    @override
    async def add(self, price: Price) -> None:
        rows = await self.work.write()
        rows.prices[price.id] = price

    @override
    async def set_end(self, price: str, *, at: datetime) -> None:
        rows = await self.work.write()
        rows.prices[price] = replace(rows.prices[price], valid_until=at)


def _status(budget: Budget, at: datetime) -> BudgetStatus:
    return BudgetStatus(budget=budget, period_start=budget.target.period.start(at), reserved=0, spent=0)


def _owner(rows: Any, budget: Budget) -> Any:
    sandbox = rows.sandboxes.get(budget.target.sandbox)
    return sandbox.freelancer if sandbox else None
