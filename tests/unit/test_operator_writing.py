"""What a refusal ends, and what goes on in spite of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from sandboxd.kubeapi.errors import KubeError, KubeForbiddenError
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership, LeaseSettings
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.mirrors import Mirrors
from sandboxd.operator.plan import Delete, Patch, Step
from sandboxd.operator.ports import AgentIdentity
from sandboxd.operator.writing import Writer
from tests.eventually import eventually
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeClock
from tests.operator_world import INSTANCE, NAMESPACE, SANDBOX, a_claim, a_pod

CLAIM = f"workspace-{SANDBOX}-0"


class NoIdentities:
    def issue(self, incarnation: str) -> AgentIdentity:
        raise AssertionError(incarnation)


@dataclass
class Scene:
    kube: FakeKube
    writer: Writer

    def names(self, kind: str) -> list[str]:
        return [one["metadata"]["name"] for one in self.kube.all(kind)]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    kube = FakeKube()
    for name in ("own", NAMESPACE):
        await kube.put("namespaces", {"metadata": {"name": name}})
    await kube.put("pods", a_pod())
    await kube.put("persistentvolumeclaims", a_claim("workspace", "8G"))
    settings = LeaseSettings(namespace="own", instance=INSTANCE, identity="one", duration=timedelta(seconds=10))
    leadership = Leadership(kube, settings, clock=FakeClock())
    standing = asyncio.create_task(leadership.run())
    await eventually(lambda: leadership.leads)
    writer = Writer(
        kube,
        mirrors=Mirrors(kube, instance=INSTANCE, namespace="own", wake=lambda _: None),
        leadership=leadership,
        identities=NoIdentities(),
        instance=INSTANCE,
        metrics=OperatorMetrics(CollectorRegistry()),
    )

    def refuse(method: str, path: str) -> KubeError | None:
        if method == "PATCH" and "persistentvolumeclaims" in path:
            return KubeForbiddenError("exceeded quota: sandboxd", status=403, reason="Forbidden")
        return None

    kube.refuse = refuse
    yield Scene(kube=kube, writer=writer)
    standing.cancel()
    await asyncio.gather(standing, return_exceptions=True)


def on_the_claim(**body: object) -> Patch:
    return Patch(kind=Kind.CLAIM, namespace=NAMESPACE, name=CLAIM, body=body, resource_version="")


DELETE_THE_POD: Step = Delete(kind=Kind.POD, namespace=NAMESPACE, name=f"{SANDBOX}-0", uid=a_pod()["metadata"]["uid"])


async def test_a_volume_that_may_not_grow_does_not_keep_the_former_pod_from_being_replaced(scene: Scene) -> None:
    growth = on_the_claim(spec={"resources": {"requests": {"storage": "40G"}}})

    refusals = await scene.writer.carry_out([[growth], [DELETE_THE_POD]])

    assert [(one.kind, one.growth) for one in refusals] == [(Kind.CLAIM, True)], "it is told, and tried again"
    assert scene.names("pods") == []


async def test_a_claim_that_could_not_be_labelled_as_kept_ends_the_plan(scene: Scene) -> None:
    label = on_the_claim(metadata={"labels": {"sandboxd.dev/kept": "true"}})

    refusals = await scene.writer.carry_out([[label], [DELETE_THE_POD]])

    assert [(one.kind, one.growth) for one in refusals] == [(Kind.CLAIM, False)]
    assert scene.names("pods") == [f"{SANDBOX}-0"]
