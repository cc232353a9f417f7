"""What the manager needs of the rows of budgets. Part of the unit of work (`manager/ports.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sandboxd.model.budget import Budget, BudgetId, BudgetStatus, BudgetTarget
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFilter:
    """Which budgets are meant: all conditions that are set must hold."""

    client: ClientId
    freelancer: FreelancerId | None = None
    """Budgets of this freelancer and of its sandboxes."""
    sandbox: SandboxId | None = None


class BudgetRepository(Protocol):
    """The budgets and their sums.

    Every method that writes first takes the client's budgets alone, so that no call of
    the client is counted half: calls wait as long as the transaction lasts.
    """

    async def put(
        self, target: BudgetTarget, *, limit: int, thresholds: tuple[int, ...], new: BudgetId, at: datetime
    ) -> Budget:
        """Make the budget of a target, or change the one that is there; its sums are what the ledger says.

        Args:
            target: What it limits.
            limit: Micro-units or tokens.
            thresholds: Percent at which it warns.
            new: Id that it gets where there is none yet.
            at: The present moment. A new budget counts all calls of the period that holds it.
        """
        ...

    async def find(self, target: BudgetTarget) -> Budget | None:
        """The budget of a target; None where there is none."""
        ...

    async def get(self, budget: BudgetId, *, client: ClientId, at: datetime) -> BudgetStatus:
        """One budget of a client, as it stands in the period that holds a moment.

        Raises:
            BudgetNotFoundError: The client has no such budget.
        """
        ...

    async def list(self, where: BudgetFilter, *, at: datetime, page_size: int, page_token: str) -> Page[BudgetStatus]:
        """One page, by id, which is by creation.

        Raises:
            InvalidRequestError: The token is not one of a list with this filter.
        """
        ...

    async def delete(self, budget: BudgetId, *, client: ClientId) -> None:
        """Remove a budget with its sums.

        Raises:
            BudgetNotFoundError: The client has no such budget.
        """
        ...

    async def recount(self, client: ClientId, *, at: datetime) -> tuple[int, int]:
        """Make the sums of all budgets of a client, of the present period and the one before, what the ledger says.

        Returns:
            How many budgets were looked at, and how many sums were not what they should have been.
        """
        ...
