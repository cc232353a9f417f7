"""What can go wrong with budgets and prices."""

from __future__ import annotations

from datetime import datetime

from sandboxd.model.errors import (
    AlreadyExistsError,
    FieldViolation,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
)


class BudgetNotFoundError(NotFoundError):
    """The client has no budget of this id."""

    reason = "BUDGET_NOT_FOUND"

    def __init__(self, budget: str) -> None:
        super().__init__(f"Budget {budget} does not exist.", budget=budget)


class BudgetLevelForbiddenError(ForbiddenError):
    """The caller may not set budgets of this level."""

    reason = "BUDGET_LEVEL_FORBIDDEN"

    def __init__(self) -> None:
        super().__init__(
            "The client's own budget is set by the platform. "
            "Set one of a freelancer or of a sandbox, or ask the platform."
        )


class BudgetAboveClientError(InvalidRequestError):
    """A budget below the client's would allow more than the client's own."""

    reason = "BUDGET_ABOVE_CLIENT"

    def __init__(self, *, limit: str) -> None:
        super().__init__(
            f"The client's own budget for this period is {limit}: a freelancer or a sandbox cannot have more.",
            violations=[FieldViolation(field="budget", description=f"must be at most the client's own, {limit}")],
            limit=limit,
        )


class PriceNotFoundError(NotFoundError):
    """No price has this id."""

    reason = "PRICE_NOT_FOUND"

    def __init__(self, price: str) -> None:
        super().__init__(f"Price {price} does not exist.", price=price)


class PriceOverlapsError(AlreadyExistsError):
    """Another price of the same model holds in a part of the new one's span."""

    reason = "PRICE_OVERLAPS"

    def __init__(self, price: str, *, model: str, valid_from: datetime, valid_until: datetime | None) -> None:
        end = f"until {valid_until.isoformat()}" if valid_until else "without an end"
        super().__init__(
            f"Price {price} of {model} holds from {valid_from.isoformat()} {end}. "
            "End it first, or let the new one begin later.",
            price=price,
            model=model,
        )
