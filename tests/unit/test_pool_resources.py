"""Pools as the cluster shows them: what serve writes, what the operator counts, and who is woken by what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.pool_board import KubernetesPoolBoard
from sandboxd.manager.pool_ports import ShownPool
from sandboxd.model.cluster_pool import PoolMember, pool_status
from sandboxd.model.pool import POOLED
from sandboxd.operator.pool_index import PoolIndex
from tests.eventually import eventually
from tests.fakes.kube import FakeKube
from tests.unit.test_pools import a_pool

NOW = "2026-11-28T12:00:00Z"
READY = PoolMember(ready=True, current=True)
COMING = PoolMember(ready=False, current=True)
STUCK = PoolMember(ready=False, current=True, trouble="sbx-1: Unschedulable: no node has room")
OLD = PoolMember(ready=True, current=False)


def a_status(members: list[PoolMember], *, target: int, wanted: int, before: dict[str, Any] | None = None) -> Any:
    return pool_status(
        {"target": target, "wanted": wanted}, members, before or {}, claimed=3, name="pol-1", generation=2, now=NOW
    )


@pytest.mark.parametrize(
    ("members", "target", "wanted", "reason", "ready"),
    [
        ([READY, READY], 2, 2, "Full", "True"),
        ([READY, COMING], 2, 2, "Filling", "False"),
        ([READY, STUCK], 2, 2, "MembersPending", "False"),
        ([READY], 2, 1, "Idle", "True"),
        ([], 0, 0, "Off", "True"),
    ],
)
def test_a_status_says_why_it_is_so(
    members: list[PoolMember], target: int, wanted: int, reason: str, ready: str
) -> None:
    status = a_status(members, target=target, wanted=wanted)

    assert (status["reason"], status["conditions"][0]["status"]) == (reason, ready)
    assert status["replicas"] == status["ready"] + status["starting"] == len(members)
    assert status["claimed"] == 3


def test_members_of_a_former_template_are_counted_and_a_condition_keeps_its_time() -> None:
    before = a_status([READY, READY], target=2, wanted=2)
    for condition in before["conditions"]:
        condition["lastTransitionTime"] = "earlier"

    status = a_status([READY, OLD], target=2, wanted=2, before=before)

    ready, current = status["conditions"]
    assert (status["outdated"], current["reason"], current["status"]) == (1, "Replacing", "False")
    assert (ready["lastTransitionTime"], current["lastTransitionTime"]) == ("earlier", NOW)


def a_sandbox(freelancer: str = POOLED, *, pool: str = "pol-1", **metadata: str) -> dict[str, Any]:
    return {"metadata": metadata, "spec": {"freelancer": freelancer, "pool": pool}}


def test_a_pool_is_woken_by_what_waits_and_what_is_claimed_and_not_by_the_claimed_ones() -> None:
    index, key, pool = PoolIndex(), ("client-a", "sbx-1"), ("client-a", "pol-1")

    def woken(obj: dict[str, Any] | None) -> set[tuple[str, str]]:
        return set(index.take(key, obj))

    assert woken(a_sandbox()) == {pool}
    assert woken(a_sandbox()) == {pool}, "its status may have changed"
    assert index.waiting(pool) == {"sbx-1"}
    assert woken(a_sandbox("ada")) == {pool}
    assert (index.waiting(pool), index.claimed(pool)) == (frozenset(), 1)
    assert woken(a_sandbox("ada")) == set()
    assert woken(None) == {pool}
    assert index.claimed(pool) == 0
    assert woken(a_sandbox("ada", pool="")) == set()
    woken(a_sandbox())
    assert woken(a_sandbox(deletionTimestamp=NOW)) == {pool}
    assert index.waiting(pool) == frozenset()


@asynccontextmanager
async def a_board(kube: FakeKube) -> AsyncIterator[KubernetesPoolBoard]:
    installation = Installation(instance="test", namespace_prefix="client-", template="mine")
    board = KubernetesPoolBoard(kube, installation)
    following = asyncio.create_task(board.run())
    try:
        yield board
    finally:
        following.cancel()


async def test_the_board_shows_what_the_rows_say_puts_it_back_and_takes_away_what_is_no_more() -> None:
    kube, pool = FakeKube(), a_pool(target=2, most=3)
    async with a_board(kube) as board:

        async def shows(*pools: ShownPool) -> list[dict[str, Any]]:
            await board.show(pools, recipe="r1")
            return [one["spec"] for one in kube.all("sandboxpools")]

        async def until(wanted: list[dict[str, Any]], *pools: ShownPool) -> None:
            async def so() -> bool:
                return await shows(*pools) == wanted

            await eventually(so)

        spec = {
            "client": pool.client,
            "template": "mine",
            "tier": "basic",
            "min": 0,
            "target": 2,
            "max": 3,
            "wanted": 2,
            "recipe": "r1",
        }
        await until([spec], ShownPool(pool=pool, wanted=2))
        (namespace,) = kube.all("namespaces")
        assert namespace["metadata"]["labels"]["sandboxd.dev/instance"] == "test"

        (obj,) = kube.all("sandboxpools")
        await kube.put("sandboxpools", {**obj, "spec": {**spec, "target": 3}})  # as kubectl scale does
        await until([spec], ShownPool(pool=pool, wanted=2))
        await until([{**spec, "wanted": 0}], ShownPool(pool=pool, wanted=0))

        kube.requests.clear()
        await until([{**spec, "wanted": 0}], ShownPool(pool=pool, wanted=0))
        assert [method for method, _ in kube.requests if method not in ("GET", "WATCH")] == []
        await until([])
