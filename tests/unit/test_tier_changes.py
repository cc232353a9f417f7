"""Another tier: what runs gets it, what rests gets it at its next start, and quotas hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxd.manager.editing import SandboxEdit
from sandboxd.manager.intents import SandboxInUseError
from sandboxd.model.client import ClientPolicy, Quotas
from sandboxd.model.client_errors import QuotaExceededError
from sandboxd.model.errors import UnavailableError
from sandboxd.model.sandbox import TIER_RESOURCES, SandboxState, Tier
from tests.manager_world import SOON, ManagerWorld, a_request

LARGER = SandboxEdit(tier=Tier.STANDARD)


@pytest.mark.parametrize("tier", [Tier.STANDARD, Tier.PREMIUM])
async def test_a_sandbox_that_runs_is_given_another_tier_and_goes_on(tier: Tier) -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()

    changed = await world.manager.update(a_request(), sandbox.id, SandboxEdit(tier=tier), timeout=SOON)

    assert (changed.tier, changed.state, changed.incarnations) == (tier, SandboxState.ACTIVE, 1)
    assert world.backend.tiers[sandbox.id] is tier


async def test_a_paused_sandbox_has_it_from_its_next_start_on() -> None:
    world = ManagerWorld()
    sandbox = await world.given_paused()

    await world.manager.update(a_request(), sandbox.id, LARGER, timeout=SOON)
    assert world.backend.tiers[sandbox.id] is Tier.BASIC
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    assert world.backend.tiers[sandbox.id] is Tier.STANDARD


async def test_one_on_its_way_is_not_changed() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    world.units.rows.sandboxes[sandbox.id] = replace(world.row(sandbox.id), state=SandboxState.PAUSING)

    with pytest.raises(SandboxInUseError):
        await world.manager.update(a_request(), sandbox.id, LARGER, timeout=SOON)

    assert world.row(sandbox.id).tier is Tier.BASIC


async def test_a_tier_that_does_not_fit_is_refused_and_one_s_own_storage_does_not_count_twice() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    rows = world.units.rows
    fits = TIER_RESOURCES[Tier.STANDARD].storage_bytes
    policy = ClientPolicy(quotas=Quotas(sandboxes=1, storage_bytes=fits))
    rows.clients[sandbox.client] = replace(rows.clients[sandbox.client], policy=policy)

    with pytest.raises(QuotaExceededError):
        await world.manager.update(a_request(), sandbox.id, SandboxEdit(tier=Tier.PREMIUM), timeout=SOON)
    changed = await world.manager.update(a_request(), sandbox.id, LARGER, timeout=SOON)

    assert changed.tier is Tier.STANDARD


async def test_what_a_crash_or_an_outage_left_is_asked_for_again_by_recovery() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    world.backend.error = UnavailableError("The cluster does not answer.")
    changed = await world.manager.update(a_request(), sandbox.id, LARGER, timeout=SOON)
    assert (changed.tier, world.backend.tiers[sandbox.id]) == (Tier.STANDARD, Tier.BASIC)
    world.backend.error = None

    await world.manager.recovery.inspect()

    assert world.backend.tiers[sandbox.id] is Tier.STANDARD
