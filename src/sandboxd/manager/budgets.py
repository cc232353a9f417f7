"""Sets, shows and removes budgets. What counts in them is the ledger's business (`monitor.ports.UsageLedger`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sandboxd.manager.budget_ports import BudgetFilter
from sandboxd.manager.once import Once
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.accounting_errors import BudgetAboveClientError, BudgetLevelForbiddenError, BudgetNotFoundError
from sandboxd.model.budget import BudgetId, BudgetLevel, BudgetPeriod, BudgetStatus, BudgetTarget, show_amount
from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.errors import SandboxNotFoundError
from sandboxd.model.ids import FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sources import Clock, IdSource

DEFAULT_PAGE: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetWish:
    """A budget that somebody wants to have."""

    freelancer: FreelancerId | None
    sandbox: SandboxId | None
    period: BudgetPeriod
    unit: str
    limit: int
    thresholds: tuple[int, ...]

    def target(self, caller: Caller) -> BudgetTarget:
        """What it limits, at the caller's client."""
        return BudgetTarget(
            client=caller.client,
            freelancer=self.freelancer,
            sandbox=self.sandbox,
            period=self.period,
            unit=self.unit,
        )


class Budgets:
    """The budgets of clients."""

    def __init__(self, *, units: UnitsOfWork, once: Once, clock: Clock, ids: IdSource) -> None:
        self._units = units
        self._once = once
        self._clock = clock
        self._ids = ids

    async def set(self, request: Request, wish: BudgetWish, *, encode: Callable[[BudgetStatus], bytes]) -> bytes:
        """Make a budget, or change the one of the same target.

        Raises:
            BudgetLevelForbiddenError: It is the client's own, and the caller is not the platform.
            BudgetAboveClientError: The client's own of this period and unit is lower.
            SandboxNotFoundError: The client has no such sandbox.
        """
        caller, target = request.caller, wish.target(request.caller)
        if target.level is BudgetLevel.CLIENT and caller.role is not Role.PLATFORM:
            raise BudgetLevelForbiddenError

        async def change(work: UnitOfWork) -> BudgetStatus:
            now = self._clock.now()
            await self._require_sandbox(work, target)
            # First the write, which takes the client's budgets alone: nobody lowers the client's own meanwhile.
            new = BudgetId(self._ids.new("bdg"))
            made = await work.budgets.put(target, limit=wish.limit, thresholds=wish.thresholds, new=new, at=now)
            await self._require_below_client(work, target, wish.limit)
            return await work.budgets.get(made.id, client=target.client, at=now)

        return await self._once.run(request, "SetBudget", change, encode=encode, about=target.sandbox or "")

    async def get(self, caller: Caller, budget: BudgetId) -> BudgetStatus:
        """Return one budget of the caller's client; a freelancer's own, or one of its sandboxes.

        Raises:
            BudgetNotFoundError: There is none that this caller may see.
        """
        async with self._units.begin() as work:
            found = await work.budgets.get(budget, client=caller.client, at=self._clock.now())
            if caller.freelancer is not None and not await self._is_of(work, found.budget.target, caller.freelancer):
                raise BudgetNotFoundError(budget)
        return found

    async def list(
        self,
        caller: Caller,
        *,
        freelancer: FreelancerId | None,
        sandbox: SandboxId | None,
        page_size: int,
        page_token: str,
    ) -> Page[BudgetStatus]:
        """Return one page of the budgets that the caller may see."""
        if caller.freelancer is not None and freelancer not in {None, caller.freelancer}:
            return Page(items=[], next_token="")
        where = BudgetFilter(client=caller.client, freelancer=caller.freelancer or freelancer, sandbox=sandbox)
        async with self._units.begin() as work:
            return await work.budgets.list(
                where, at=self._clock.now(), page_size=page_size or DEFAULT_PAGE, page_token=page_token
            )

    async def delete(self, request: Request, budget: BudgetId, *, encode: Callable[[None], bytes]) -> bytes:
        """Remove a budget.

        Raises:
            BudgetNotFoundError: The client has no such budget.
            BudgetLevelForbiddenError: It is the client's own, and the caller is not the platform.
        """

        async def change(work: UnitOfWork) -> None:
            client = request.caller.client
            found = await work.budgets.get(budget, client=client, at=self._clock.now())
            if found.budget.target.level is BudgetLevel.CLIENT and request.caller.role is not Role.PLATFORM:
                raise BudgetLevelForbiddenError
            await work.budgets.delete(budget, client=client)

        return await self._once.run(request, "DeleteBudget", change, encode=encode)

    async def rebuild(self, request: Request, *, encode: Callable[[tuple[int, int]], bytes]) -> bytes:
        """Count the client's budgets anew from the ledger: how many there are, and how many sums were wrong."""

        async def change(work: UnitOfWork) -> tuple[int, int]:
            return await work.budgets.recount(request.caller.client, at=self._clock.now())

        return await self._once.run(request, "RebuildBudgets", change, encode=encode)

    async def _require_sandbox(self, work: UnitOfWork, target: BudgetTarget) -> None:
        if target.sandbox is not None:
            sandbox = await work.sandboxes.get(target.sandbox)
            if sandbox.client != target.client:
                raise SandboxNotFoundError(target.sandbox)

    async def _require_below_client(self, work: UnitOfWork, target: BudgetTarget, limit: int) -> None:
        if target.level is BudgetLevel.CLIENT:
            return
        above = await work.budgets.find(BudgetTarget(client=target.client, period=target.period, unit=target.unit))
        if above is not None and limit > above.limit:
            raise BudgetAboveClientError(limit=show_amount(above.limit, target.unit))

    async def _is_of(self, work: UnitOfWork, target: BudgetTarget, freelancer: FreelancerId) -> bool:
        if target.sandbox is None:
            return target.freelancer == freelancer
        return (await work.sandboxes.get(target.sandbox)).freelancer == freelancer
