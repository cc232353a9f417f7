"""The calls of budgets and prices, as part of the client (`client.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.ctl.connection import Connection, new_request_id
from sandboxd.v1 import budget_pb2, budget_pb2_grpc, price_pb2, price_pb2_grpc

PAGE_SIZE = 200


class AccountingClient:
    """Budgets and prices of one sandboxd, as one caller."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._budgets = budget_pb2_grpc.BudgetServiceStub(connection.channel)
        self._prices = price_pb2_grpc.PriceServiceStub(connection.channel)

    async def set_budget(self, budget: budget_pb2.Budget) -> budget_pb2.Budget:
        """Make a budget, or change the one for the same freelancer or sandbox, period and unit."""
        request = budget_pb2.SetBudgetRequest(request_id=new_request_id(), budget=budget)
        return (await self._connection.call(self._budgets.SetBudget, request)).budget

    async def budgets(self, *, freelancer: str = "", sandbox: str = "") -> AsyncIterator[budget_pb2.Budget]:
        """Yield budgets as they stand, oldest first."""
        request = budget_pb2.ListBudgetsRequest(freelancer=freelancer, sandbox=sandbox, page_size=PAGE_SIZE)
        while True:
            page = await self._connection.call(self._budgets.ListBudgets, request)
            for budget in page.budgets:
                yield budget
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_budget(self, name: str) -> None:
        """Remove a budget."""
        request = budget_pb2.DeleteBudgetRequest(request_id=new_request_id(), name=name)
        await self._connection.call(self._budgets.DeleteBudget, request)

    async def rebuild_budgets(self) -> budget_pb2.RebuildBudgetsResponse:
        """Count all budgets of the client anew from the ledger."""
        request = budget_pb2.RebuildBudgetsRequest(request_id=new_request_id())
        return await self._connection.call(self._budgets.RebuildBudgets, request)

    async def add_price(
        self,
        model: str,
        *,
        currency: str,
        rates: Sequence[price_pb2.Rates],
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> price_pb2.Price:
        """Add a price."""
        price = price_pb2.Price(
            model=model,
            currency=currency,
            rates=rates,
            valid_from=_stamp(valid_from),
            valid_until=_stamp(valid_until),
        )
        request = price_pb2.AddPriceRequest(request_id=new_request_id(), price=price)
        return (await self._connection.call(self._prices.AddPrice, request)).price

    async def end_price(self, name: str, *, at: datetime | None = None) -> price_pb2.Price:
        """Let a price end, now or at a moment."""
        request = price_pb2.EndPriceRequest(request_id=new_request_id(), name=name, end_time=_stamp(at))
        return (await self._connection.call(self._prices.EndPrice, request)).price

    async def prices(self, *, current: bool = True, model: str = "") -> AsyncIterator[price_pb2.Price]:
        """Yield prices, by model and beginning."""
        request = price_pb2.ListPricesRequest(current=current, model=model, page_size=PAGE_SIZE)
        while True:
            page = await self._connection.call(self._prices.ListPrices, request)
            for price in page.prices:
                yield price
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def _stamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    made = Timestamp()
    made.FromDatetime(moment)
    return made
