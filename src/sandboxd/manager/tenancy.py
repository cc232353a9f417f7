"""Everything that can be done with clients and freelancers, as the edges get it: one object."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.clients import Clients
from sandboxd.manager.freelancers import Freelancers
from sandboxd.manager.once import Once
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.sources import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    """The use cases of tenancy."""

    accounts: AccountCache
    """What hot paths ask."""
    clients: Clients
    freelancers: Freelancers


def make_tenancy(*, units: UnitsOfWork, accounts: AccountCache, clock: Clock) -> Tenancy:
    """Build the use cases."""
    once = Once(units=units, clock=clock)
    return Tenancy(
        accounts=accounts,
        clients=Clients(units=units, once=once, accounts=accounts, clock=clock),
        freelancers=Freelancers(units=units, once=once, accounts=accounts, clock=clock),
    )
