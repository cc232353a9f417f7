"""BudgetService: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.codec_budget import decode_budget, encode_budget
from sandboxd.api.grpc.names import sandbox_id
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.manager.budgets import Budgets
from sandboxd.model.budget import BudgetId
from sandboxd.model.ids import FreelancerId
from sandboxd.v1 import budget_pb2 as pb
from sandboxd.v1 import budget_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


class BudgetServicer(budget_pb2_grpc.BudgetServiceServicer):
    """Serves budgets."""

    def __init__(self, *, budgets: Budgets) -> None:
        self._budgets = budgets

    @override
    async def SetBudget(self, request: pb.SetBudgetRequest, context: Context) -> pb.SetBudgetResponse:
        """Make a budget or change one."""
        answer = await self._budgets.set(
            request_of(request, request.request_id),
            decode_budget(request.budget),
            encode=lambda status: pb.SetBudgetResponse(budget=encode_budget(status)).SerializeToString(),
        )
        return pb.SetBudgetResponse.FromString(answer)

    @override
    async def GetBudget(self, request: pb.GetBudgetRequest, context: Context) -> pb.GetBudgetResponse:
        """Return one budget."""
        found = await self._budgets.get(current_rpc().caller, _budget_id(request.name))
        return pb.GetBudgetResponse(budget=encode_budget(found))

    @override
    async def ListBudgets(self, request: pb.ListBudgetsRequest, context: Context) -> pb.ListBudgetsResponse:
        """List budgets as they stand."""
        page = await self._budgets.list(
            current_rpc().caller,
            freelancer=FreelancerId(request.freelancer) if request.freelancer else None,
            sandbox=sandbox_id(request.sandbox) if request.sandbox else None,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListBudgetsResponse(
            budgets=[encode_budget(status) for status in page.items], next_page_token=page.next_token
        )

    @override
    async def DeleteBudget(self, request: pb.DeleteBudgetRequest, context: Context) -> pb.DeleteBudgetResponse:
        """Remove a budget."""
        answer = await self._budgets.delete(
            request_of(request, request.request_id),
            _budget_id(request.name),
            encode=lambda _: pb.DeleteBudgetResponse().SerializeToString(),
        )
        return pb.DeleteBudgetResponse.FromString(answer)

    @override
    async def RebuildBudgets(self, request: pb.RebuildBudgetsRequest, context: Context) -> pb.RebuildBudgetsResponse:
        """Count the client's budgets anew."""
        answer = await self._budgets.rebuild(
            request_of(request, request.request_id),
            encode=lambda found: pb.RebuildBudgetsResponse(budgets=found[0], corrected=found[1]).SerializeToString(),
        )
        return pb.RebuildBudgetsResponse.FromString(answer)


def _budget_id(name: str) -> BudgetId:
    return BudgetId(name.split("/")[1])
