"""A pool that is being filled changes with each of its members; what is written of it does so once a second."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from sandboxd.model.cluster import POOL_LABEL, sandbox_resource
from sandboxd.model.cluster_pool import PlacedPool, pool_resource
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.pool import POOLED, PoolId
from sandboxd.model.sandbox import Tier
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership, LeaseSettings
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.pools import WRITE_SECONDS, PoolKeeper
from sandboxd.operator.ports import AgentIdentity
from sandboxd.operator.writing import Writer
from tests.eventually import eventually
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeClock
from tests.operator_world import INSTANCE, NAMESPACE, a_spec

POOL = PoolId("pol-01jd0000000000000000000000")
KEY = WorkKey(namespace=NAMESPACE, pool=POOL)


class NoIdentities:
    def issue(self, incarnation: str) -> AgentIdentity:
        raise AssertionError(incarnation)


def a_member(number: int) -> dict[str, Any]:
    spec = a_spec(freelancer=FreelancerId(POOLED), pool=POOL)
    made = sandbox_resource(
        SandboxId(f"sbx-01jd000000000000000000000{number}"), spec, namespace=NAMESPACE, instance=INSTANCE
    )
    assert made["metadata"]["labels"][POOL_LABEL] == POOL
    return made


async def test_a_pools_status_is_written_at_once_and_then_once_a_second_with_the_last_counts() -> None:
    kube, clock, later = FakeKube(), FakeClock(), list[tuple[WorkKey, float]]()
    for name in ("own", NAMESPACE):
        await kube.put("namespaces", {"metadata": {"name": name}})
    placed = PlacedPool(
        pool=POOL, client=ClientId("acme"), template="default", tier=Tier.BASIC, min=3, target=3, max=3, wanted=3
    )
    await kube.put("sandboxpools", pool_resource(placed, namespace=NAMESPACE, instance=INSTANCE))
    settings = LeaseSettings(namespace="own", instance=INSTANCE, identity="one", duration=timedelta(seconds=10))
    leadership = Leadership(kube, settings, clock=clock)
    mirrors = Mirrors(kube, instance=INSTANCE, namespace="own", wake=lambda _: None)
    writer = Writer(
        kube,
        mirrors=mirrors,
        leadership=leadership,
        identities=NoIdentities(),
        instance=INSTANCE,
        metrics=OperatorMetrics(CollectorRegistry()),
    )
    keeper = PoolKeeper(
        mirrors=mirrors,
        writer=writer,
        instance=INSTANCE,
        clock=clock,
        reporter="test",
        later=lambda key, seconds: later.append((key, seconds)),
    )

    def replicas() -> object:
        return kube.objects["sandboxpools", NAMESPACE, POOL].get("status", {}).get("replicas")

    async def given_member(number: int) -> None:
        await kube.put("sandboxes", a_member(number))
        await eventually(lambda: len(list(mirrors.all(Kind.SANDBOX))) == number)

    running = [asyncio.create_task(work) for work in (leadership.run(), mirrors.run())]
    try:
        await eventually(lambda: leadership.leads)
        await mirrors.wait_synced()
        await given_member(1)
        await keeper.reconcile(KEY)
        assert replicas() == 1

        for number in (2, 3):
            await given_member(number)
            await keeper.reconcile(KEY)

        assert replicas() == 1
        assert later[-1] == (KEY, WRITE_SECONDS)
        clock.advance(WRITE_SECONDS)
        await keeper.reconcile(KEY)
        assert replicas() == 3
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
