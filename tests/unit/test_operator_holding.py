"""A start is written down where somebody waits for it, and not at each of its steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from sandboxd.kubeapi.ports import Json
from sandboxd.model.cluster import sandbox_resource
from sandboxd.model.cluster_status import Condition, ConditionType, PlacedState, PlacedStatus, Reason
from sandboxd.operator.holding import HOLD_SECONDS, may_wait
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership, LeaseSettings
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.ports import AgentIdentity
from sandboxd.operator.reconciler import Reconciler
from sandboxd.operator.writing import Writer
from tests.eventually import eventually
from tests.fakes.controllers import FakeCluster
from tests.fakes.manager import FakeClock
from tests.operator_world import INSTANCE, NAMESPACE, SANDBOX, SETTINGS, a_claim, a_namespace, a_pod, a_spec

KEY = WorkKey(namespace=NAMESPACE, sandbox=SANDBOX)
S, R, C = PlacedState, Reason, ConditionType
KINDS = {"pods": Kind.POD, "persistentvolumeclaims": Kind.CLAIM, "sandboxes": Kind.SANDBOX}


class IdleCluster(FakeCluster):
    """Nothing happens by itself: the test is kubelet, scheduler and controllers."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: list[PlacedStatus] = []
        """Of the sandbox, as they were written."""

    @override
    async def patch(self, path: str, body: Any, **options: Any) -> Json:  # Any: the port's own arguments
        if path.endswith("/status"):
            self.statuses.append(PlacedStatus.from_mapping(body["status"]))
        return await super().patch(path, body, **options)

    @override
    async def _work(self) -> None:
        return


class Identities:
    def issue(self, incarnation: str) -> AgentIdentity:
        return AgentIdentity(certificate=b"certificate", key=b"key", authority=b"authority")


@dataclass(kw_only=True)
class Scene:
    cluster: IdleCluster
    mirrors: Mirrors
    reconciler: Reconciler
    clock: FakeClock
    later: list[float] = field(default_factory=list)

    async def see(self, kind: str, obj: Json) -> None:
        """Let something happen, and the operator pass once over what it sees of it."""
        put = await self.cluster.put(kind, obj)
        name, version = put["metadata"]["name"], put["metadata"]["resourceVersion"]

        def known() -> bool:
            found = self.mirrors.get(KINDS[kind], NAMESPACE, name)
            return found is not None and found["metadata"]["resourceVersion"] == version

        await eventually(known)
        await self.reconciler.reconcile(KEY)

    async def begin(self) -> None:
        """`serve` wants a sandbox, and the operator has made what it makes."""
        resource = sandbox_resource(SANDBOX, a_spec(), namespace=NAMESPACE, instance=INSTANCE)
        resource["metadata"] |= {"uid": "uid-sandbox", "generation": 1}
        await self.see("sandboxes", resource)
        await self.again()

    async def again(self) -> None:
        """Another pass, when the operator has seen its own writes."""
        wanted = self.cluster.objects["sandboxes", NAMESPACE, SANDBOX]["metadata"]["resourceVersion"]
        await eventually(lambda: self._version() == wanted)
        await self.reconciler.reconcile(KEY)

    def _version(self) -> str:
        found = self.mirrors.get(Kind.SANDBOX, NAMESPACE, SANDBOX)
        return "" if found is None else str(found["metadata"]["resourceVersion"])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    cluster, clock = IdleCluster(), FakeClock()
    await cluster.put("namespaces", {"metadata": {"name": "own"}})
    await cluster.put("namespaces", a_namespace())
    await cluster.put("nodes", {"metadata": {"name": "node1"}, "status": {"conditions": [_true("Ready")]}})
    template = {"image": "registry.example/sandbox@sha256:1", "agentImage": "registry.example/agent@sha256:2"}
    await cluster.put("sandboxtemplates", {"metadata": {"name": "default"}, "spec": template})
    lease = LeaseSettings(namespace="own", instance=INSTANCE, identity="one", duration=timedelta(seconds=10))
    leadership = Leadership(cluster, lease, clock=clock)
    mirrors = Mirrors(cluster, instance=INSTANCE, namespace="own", wake=lambda _: None)
    writer = Writer(
        cluster,
        mirrors=mirrors,
        leadership=leadership,
        identities=Identities(),
        instance=INSTANCE,
        metrics=OperatorMetrics(CollectorRegistry()),
    )
    later = list[float]()
    reconciler = Reconciler(
        cluster,
        mirrors=mirrors,
        writer=writer,
        settings=SETTINGS,
        clock=clock,
        reporter="one",
        later=lambda _, seconds: later.append(seconds),
    )
    tasks = [asyncio.create_task(leadership.run()), asyncio.create_task(mirrors.run())]
    await mirrors.wait_synced()
    await eventually(lambda: leadership.leads)
    yield Scene(cluster=cluster, mirrors=mirrors, reconciler=reconciler, clock=clock, later=later)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _true(kind: str) -> Json:
    return {"type": kind, "status": "True"}


def unscheduled() -> Json:
    pod = a_pod(state={}, ready=False)
    del pod["spec"]["nodeName"]
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "unbound claims"}
    pod["status"] |= {"phase": "Pending", "podIP": "", "conditions": [why], "containerStatuses": []}
    return pod


def being_made(message: str) -> Json:
    return a_pod(state={"waiting": {"reason": "ContainerCreating", "message": message}}, ready=False)


async def test_a_start_is_written_where_somebody_waits_and_what_lies_between_goes_with_it(scene: Scene) -> None:
    await scene.begin()
    begun = len(scene.cluster.statuses)

    await scene.see("persistentvolumeclaims", a_claim("home", "2G", phase="Pending"))
    await scene.see("pods", unscheduled())
    await scene.see("persistentvolumeclaims", a_claim("home", "2G"))
    await scene.see("persistentvolumeclaims", a_claim("workspace", "8G"))
    assert len(scene.cluster.statuses) == begun
    assert scene.later
    await scene.see("pods", being_made(""))
    await scene.again()
    await scene.see("pods", a_pod(ready=False))
    await scene.again()
    await scene.see("pods", a_pod())
    await scene.again()

    written = scene.cluster.statuses[begun:]
    assert [one.state for one in written] == [S.STARTING, S.STARTING, S.RUNNING]
    assert [_of(one, C.SCHEDULED) for one in written] == [True, True, True]
    assert [_of(one, C.AGENT_STARTED) for one in written] == [False, True, True]
    assert _of(written[0], C.VOLUMES_BOUND)


async def test_what_a_start_waits_for_is_written_after_half_a_second_at_most(scene: Scene) -> None:
    await scene.begin()
    begun = len(scene.cluster.statuses)
    await scene.see("persistentvolumeclaims", a_claim("home", "2G", phase="Pending"))
    await scene.see("pods", unscheduled())
    assert len(scene.cluster.statuses) == begun

    scene.clock.advance(HOLD_SECONDS)
    await scene.again()

    (written,) = scene.cluster.statuses[begun:]
    assert (written.state, written.reason) == (S.PENDING, R.VOLUME_PENDING)
    assert 0 < min(scene.later) <= max(one for one in scene.later if one <= HOLD_SECONDS)


def _of(status: PlacedStatus, kind: ConditionType) -> bool | None:
    found = status.find(kind)
    assert found is not None
    return found.status


def a_status(**changes: Any) -> PlacedStatus:
    conditions = tuple(Condition(type=kind, status=False, reason=R.STARTING) for kind in C)
    made = PlacedStatus(
        state=S.STARTING, reason=R.STARTING, incarnation="inc", observed_generation=3, conditions=conditions
    )
    return replace(made, **changes)


def _with(kind: ConditionType) -> tuple[Condition, ...]:
    return tuple(replace(one, status=one.type is kind) for one in a_status().conditions)


@pytest.mark.parametrize(
    "after",
    [
        a_status(state=S.RUNNING, reason=R.AS_DESIRED),
        a_status(state=S.FAILED, reason=R.POD_DELETED),
        a_status(state=S.STOPPING, reason=R.STOPPING),
        a_status(state=S.PENDING, reason=R.IMAGE_MISSING),
        a_status(state=S.PENDING, reason=R.QUOTA_EXCEEDED),
        a_status(incarnation="another"),
        a_status(observed_generation=4),
        a_status(pod_uid="uid"),
        *(a_status(conditions=_with(kind)) for kind in C if kind is not C.VOLUMES_BOUND),
    ],
)
def test_what_somebody_waits_for_never_waits(after: PlacedStatus) -> None:
    assert not may_wait(a_status(), after)


@pytest.mark.parametrize(
    "after",
    [
        a_status(message="The pod is being made."),
        a_status(node="node1", pod_ip="10.0.0.1"),
        a_status(state=S.PENDING, reason=R.VOLUME_PENDING),
        a_status(conditions=_with(C.VOLUMES_BOUND)),
    ],
)
def test_how_far_a_start_is_between_two_steps_may_wait(after: PlacedStatus) -> None:
    assert may_wait(a_status(), after)
