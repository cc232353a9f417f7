"""Budgets and prices of the service that speaks the contract from memory (platform_server.py)."""

from __future__ import annotations

from typing import Any

import grpc
from typing_extensions import override

from sandboxd.v1 import budget_pb2, budget_pb2_grpc, price_pb2, price_pb2_grpc


class FakeAccounting(budget_pb2_grpc.BudgetServiceServicer, price_pb2_grpc.PriceServiceServicer):
    """One page at a time holds one thing."""

    def __init__(self) -> None:
        self.budgets: dict[str, budget_pb2.Budget] = {}
        self.prices: dict[str, price_pb2.Price] = {}

    def add_accounting_to(self, server: grpc.Server) -> None:
        budget_pb2_grpc.add_BudgetServiceServicer_to_server(self, server)
        price_pb2_grpc.add_PriceServiceServicer_to_server(self, server)

    @override
    def SetBudget(self, request: budget_pb2.SetBudgetRequest, context: Any) -> budget_pb2.SetBudgetResponse:
        made = budget_pb2.Budget()
        made.CopyFrom(request.budget)
        made.name, made.client = f"budgets/bdg-{len(self.budgets) + 1}", "acme"
        made.use.spent, made.use.reserved, made.use.remaining = 800_000, 100_000, 100_000
        self.budgets[made.name] = made
        return budget_pb2.SetBudgetResponse(budget=made)

    @override
    def GetBudget(self, request: budget_pb2.GetBudgetRequest, context: Any) -> budget_pb2.GetBudgetResponse:
        return budget_pb2.GetBudgetResponse(budget=self.budgets[request.name])

    @override
    def ListBudgets(self, request: budget_pb2.ListBudgetsRequest, context: Any) -> budget_pb2.ListBudgetsResponse:
        names = sorted(name for name, one in self.budgets.items() if request.freelancer in {"", one.freelancer})
        names = [name for name in names if name > request.page_token]
        found = [self.budgets[name] for name in names[:1]]
        return budget_pb2.ListBudgetsResponse(budgets=found, next_page_token=names[0] if len(names) > 1 else "")

    @override
    def DeleteBudget(self, request: budget_pb2.DeleteBudgetRequest, context: Any) -> budget_pb2.DeleteBudgetResponse:
        if self.budgets.pop(request.name, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Budget {request.name} does not exist.")
        return budget_pb2.DeleteBudgetResponse()

    @override
    def RebuildBudgets(
        self, request: budget_pb2.RebuildBudgetsRequest, context: Any
    ) -> budget_pb2.RebuildBudgetsResponse:
        return budget_pb2.RebuildBudgetsResponse(budgets=len(self.budgets), corrected=1)

    @override
    def AddPrice(self, request: price_pb2.AddPriceRequest, context: Any) -> price_pb2.AddPriceResponse:
        made = price_pb2.Price()
        made.CopyFrom(request.price)
        made.name = f"prices/price-{len(self.prices) + 1}"
        self.prices[made.name] = made
        return price_pb2.AddPriceResponse(price=made)

    @override
    def EndPrice(self, request: price_pb2.EndPriceRequest, context: Any) -> price_pb2.EndPriceResponse:
        price = self.prices[request.name]
        price.valid_until.GetCurrentTime()
        if request.HasField("end_time"):
            price.valid_until.CopyFrom(request.end_time)
        return price_pb2.EndPriceResponse(price=price)

    @override
    def ListPrices(self, request: price_pb2.ListPricesRequest, context: Any) -> price_pb2.ListPricesResponse:
        found = [price for price in self.prices.values() if not (request.current and price.HasField("valid_until"))]
        return price_pb2.ListPricesResponse(prices=found)
