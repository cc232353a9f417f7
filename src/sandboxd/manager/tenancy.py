"""Everything that can be done with clients, freelancers and keys, as the edges get it: one object."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.clients import Clients
from sandboxd.manager.core import leased_tasks
from sandboxd.manager.erasing import Eraser, RemoveTexts
from sandboxd.manager.erasure_ports import ProofSigner
from sandboxd.manager.erasures import Erasures
from sandboxd.manager.freelancers import Freelancers
from sandboxd.manager.image_erasing import ImageErasing
from sandboxd.manager.key_ports import KeyHashes, KeyStore
from sandboxd.manager.keys import Keys
from sandboxd.manager.once import Once
from sandboxd.manager.pools import Pools
from sandboxd.manager.sandboxes import ManagerCore, SandboxManager


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    """The use cases of tenancy. `eraser.run` must run beside them."""

    accounts: AccountCache
    """What hot paths ask."""
    clients: Clients
    freelancers: Freelancers
    erasures: Erasures
    eraser: Eraser
    keys: Keys
    pools: Pools
    key_hashes: KeyHashes


def make_tenancy(
    *,
    core: ManagerCore,
    manager: SandboxManager,
    signer: ProofSigner,
    key_store: KeyStore,
    key_hashes: KeyHashes,
    remove_texts: RemoveTexts | None = None,
) -> Tenancy:
    """Build the use cases; `remove_texts` removes what the audit keeps of a person's texts."""
    tools, accounts = core.tools, core.accounts
    units, clock, ids = tools.units, tools.clock, tools.ids
    once = Once(units=units, clock=clock)
    images = None if tools.images is None else ImageErasing(images=tools.images)
    keys = Keys(units=units, store=key_store, hashes=key_hashes, clock=clock, replica=tools.replica)
    eraser = Eraser(
        units=units,
        accounts=accounts,
        resting=manager.resting,
        backend=tools.backend,
        signer=signer,
        changes=core.changes,
        clock=clock,
        tasks=leased_tasks(tools, core.changes),
        deeds=tools.deeds,
        remove_keys=keys.erase,
        remove_texts=remove_texts,
        remove_images=None if images is None else images.erase,
        remove_project=None if images is None else images.erase_project,
        remove_backups=None if core.backups is None else core.backups.erase,
    )
    return Tenancy(
        accounts=accounts,
        clients=Clients(units=units, once=once, accounts=accounts, clock=clock),
        freelancers=Freelancers(units=units, once=once, accounts=accounts, clock=clock),
        erasures=Erasures(units=units, accounts=accounts, eraser=eraser, changes=core.changes, clock=clock, ids=ids),
        eraser=eraser,
        keys=keys,
        pools=Pools(
            units=units,
            once=once,
            clock=clock,
            ids=ids,
            changed=manager.refill.wake,
            explicit=tools.explicit_registration,
            members_per_client=tools.pool_members_per_client,
        ),
        key_hashes=key_hashes,
    )
