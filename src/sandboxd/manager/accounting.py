"""Budgets and prices together, as the API serves them."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.manager.budgets import Budgets
from sandboxd.manager.once import Once
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.pricing import Pricing
from sandboxd.model.sources import Clock, IdSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """What limits spending, and what tokens cost."""

    budgets: Budgets
    pricing: Pricing


def make_accounting(*, units: UnitsOfWork, clock: Clock, ids: IdSource) -> Accounting:
    """Put it together."""
    once = Once(units=units, clock=clock)
    return Accounting(
        budgets=Budgets(units=units, once=once, clock=clock, ids=ids),
        pricing=Pricing(units=units, once=once, clock=clock, ids=ids),
    )
