"""Budgets, prices, live usage and resources together, as the API serves them."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.manager.budgets import Budgets
from sandboxd.manager.once import Once
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.pricing import Pricing
from sandboxd.manager.usage_watch import UsageWatch
from sandboxd.model.sources import Clock, IdSource
from sandboxd.monitor.ports import UsageLedger
from sandboxd.monitor.resource_ports import ResourceLedger
from sandboxd.stream.ports import Wakeups


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """What limits spending, what tokens cost, and what is used."""

    budgets: Budgets
    pricing: Pricing
    watch: UsageWatch
    resources: ResourceLedger


def make_accounting(
    *,
    units: UnitsOfWork,
    ledger: UsageLedger,
    resources: ResourceLedger,
    wakeups: Wakeups,
    clock: Clock,
    ids: IdSource,
) -> Accounting:
    """Put it together."""
    once = Once(units=units, clock=clock)
    return Accounting(
        budgets=Budgets(units=units, once=once, clock=clock, ids=ids),
        pricing=Pricing(units=units, once=once, clock=clock, ids=ids),
        watch=UsageWatch(ledger=ledger, wakeups=wakeups, clock=clock),
        resources=resources,
    )
