"""The operator against a real API server, scheduler and kubelet. What the agent does is a stand-in's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.model.cluster import Mode, claims_of
from sandboxd.model.cluster_status import ConditionType, PlacedState, Reason
from sandboxd.model.quantity import parse_quantity
from sandboxd.model.sandbox import Tier
from tests.cluster.operator_stage import Stage, a_stage, an_incarnation, leads
from tests.eventually import eventually
from tests.kube import Cluster, KubectlError

S, R = PlacedState, Reason
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def stage(cluster: Cluster, instance: str, tmp_path: Path) -> Stage:
    return await a_stage(cluster, instance, tmp_path)


async def test_a_sandbox_is_made_from_nothing_and_kubectl_tells_of_it(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()

    async with stage.operator():
        await stage.write(sandbox, spec)
        status = await stage.reaches(sandbox, S.RUNNING)

        pod = await stage.get("pod", f"{sandbox}-0")
        assert (status.pod_uid, status.pod_ip) == (pod["metadata"]["uid"], pod["status"]["podIP"])
        assert (status.incarnation, status.node) == (spec.incarnation, pod["spec"]["nodeName"])
        assert pod["spec"]["hostUsers"] is False
        conditions = {one.type: one.status for one in status.conditions}
        assert conditions == {
            ConditionType.READY: True,
            ConditionType.SCHEDULED: True,
            ConditionType.VOLUMES_BOUND: True,
            ConditionType.AGENT_STARTED: True,
            ConditionType.RESIZE_PENDING: False,
            ConditionType.DEGRADED: False,
        }
        shown = (await stage.kubectl("get", "sbx")).splitlines()
        assert shown[0].split() == ["NAME", "STATE", "TIER", "NODE", "REASON", "AGE"]
        assert shown[1].split()[:5] == [sandbox, "Running", "basic", status.node, "AsDesired"]
        namespace = await stage.cluster.get("namespace", stage.namespace)
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
        for kind, name in (
            ("resourcequota", "sandboxd"),
            ("limitrange", "sandboxd"),
            ("networkpolicy", "sandboxd-deny"),
            ("networkpolicy", "sandboxd-allow"),
        ):
            assert await stage.exists(kind, name)

        async def told() -> bool:
            return "Running" in await stage.told(sandbox)

        await eventually(told)


async def test_what_somebody_changes_is_put_right_and_what_is_not_ours_is_left_alone(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": {"podSelector": {}}}
    theirs = {**policy, "metadata": {"name": "theirs", "namespace": stage.namespace}}
    await stage.cluster.apply([theirs])
    before = await stage.get("networkpolicy", "theirs")

    async with stage.operator():
        await stage.write(sandbox, spec)
        first = await stage.reaches(sandbox, S.RUNNING)
        retention = '{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenDeleted":"Delete"}}}'
        await stage.kubectl("patch", "sts", sandbox, "--type=merge", f"-p={retention}")
        await stage.kubectl("delete", "secret", f"{sandbox}-agent")
        await stage.kubectl("delete", "networkpolicy", "sandboxd-deny")
        opened = '{"spec":{"egress":[{}]}}'
        await stage.kubectl("patch", "networkpolicy", "sandboxd-allow", "--type=merge", f"-p={opened}")

        async def right() -> bool:
            found = await stage.get("sts", sandbox)
            allow = await stage.get("networkpolicy", "sandboxd-allow")
            return (
                found["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
                and len(allow["spec"]["egress"]) > 1
                and await stage.exists("secret", f"{sandbox}-agent")
                and await stage.exists("networkpolicy", "sandboxd-deny")
            )

        await eventually(right, within=20, every=0.2)
        assert (await stage.status(sandbox)).pod_uid == first.pod_uid
        assert "DriftRepaired" in await stage.told(sandbox)
        assert await stage.get("networkpolicy", "theirs") == before


async def test_an_object_of_somebody_else_with_our_name_is_never_touched(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()
    labels = {"app": "theirs"}
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": sandbox, "namespace": stage.namespace},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "theirs", "image": "localhost:5000/pause:1"}]},
            },
        },
    }
    await stage.cluster.apply([theirs])
    before = await stage.get("sts", sandbox)

    async with stage.operator():
        await stage.write(sandbox, spec)
        status = await stage.reaches(sandbox, R.OBJECT_FOREIGN)
        degraded = status.find(ConditionType.DEGRADED)
        await stage.kubectl("delete", "sandbox", sandbox, "--wait=false")

        async def gone() -> bool:
            return not await stage.exists("sandbox", sandbox)

        await eventually(gone, within=30, every=0.1)

    assert degraded is not None
    assert (status.state, degraded.status) == (S.PENDING, True)
    after = await stage.get("sts", sandbox)
    assert (after["metadata"]["uid"], after["spec"]) == (before["metadata"]["uid"], before["spec"])


async def test_one_of_two_operators_is_active_and_the_other_takes_over_from_a_killed_one(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox(mode=Mode.STOPPED)
    other, other_spec = stage.a_sandbox(mode=Mode.STOPPED)

    async with stage.operator("one") as one, stage.operator("two") as two:

        async def exactly_one() -> bool:
            return (await leads(one)) != (await leads(two))

        await eventually(exactly_one, within=30, every=0.05)
        await stage.write(sandbox, spec)
        await stage.reaches(sandbox, S.STOPPED)
        leader, follower = (one, two) if await leads(one) else (two, one)
        assert "operator.leading" not in follower.log

        await leader.kill()
        await stage.write(other, other_spec)

        await stage.reaches(other, S.STOPPED)
        assert await leads(follower)
        lease = await stage.cluster.get(
            "lease", f"sandboxd-operator-{stage.instance}", "-n", f"{stage.instance}-system"
        )
        assert lease["spec"]["leaseTransitions"] == 1


async def test_an_operator_that_is_asked_to_end_is_followed_at_once(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox(mode=Mode.STOPPED)
    patient = {"SANDBOXD_OPERATOR_LEASE_SECONDS": "120"}

    async with stage.operator("one", **patient) as one:

        async def first_leads() -> bool:
            return await leads(one)

        await eventually(first_leads, within=30, every=0.05)
        await one.stop()
        async with stage.operator("two", **patient):
            await stage.write(sandbox, spec)

            await stage.reaches(sandbox, S.STOPPED)


async def test_deletion_keeps_both_claims_and_nothing_else(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()

    async with stage.operator():
        await stage.write(sandbox, spec)
        await stage.reaches(sandbox, S.RUNNING)
        await stage.kubectl("delete", "sandbox", sandbox, "--wait=false")

        async def gone() -> bool:
            kinds = (("sandbox", sandbox), ("sts", sandbox), ("secret", f"{sandbox}-agent"), ("pod", f"{sandbox}-0"))
            return not any([await stage.exists(kind, name) for kind, name in kinds])

        await eventually(gone, within=60, every=0.1)

    for name in claims_of(sandbox).values():
        claim = await stage.get("pvc", name)
        assert claim["metadata"]["labels"]["sandboxd.dev/kept"] == "true"
        assert claim["status"]["phase"] == "Bound"
        assert "ownerReferences" not in claim["metadata"]


async def test_a_sandbox_stops_starts_and_changes_its_incarnation_on_the_same_volumes(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()

    async with stage.operator():
        await stage.write(sandbox, spec)
        first = await stage.reaches(sandbox, S.RUNNING)
        volumes = [(await stage.get("pvc", name))["spec"]["volumeName"] for name in claims_of(sandbox).values()]

        await stage.write(sandbox, replace(spec, mode=Mode.STOPPED))
        await stage.reaches(sandbox, S.STOPPED)
        assert not await stage.exists("pod", f"{sandbox}-0")

        started = replace(spec, incarnation=an_incarnation())
        await stage.write(sandbox, started)
        second = await stage.reaches(sandbox, S.RUNNING, started.incarnation)
        assert second.pod_uid != first.pod_uid

        replaced = replace(spec, incarnation=an_incarnation())
        await stage.write(sandbox, replaced)
        third = await stage.reaches(sandbox, S.RUNNING, replaced.incarnation)
        assert third.pod_uid not in (first.pod_uid, second.pod_uid)

        pod = await stage.get("pod", f"{sandbox}-0")
        secret = await stage.get("secret", f"{sandbox}-agent")
        for obj in (pod, secret):
            assert obj["metadata"]["annotations"]["sandboxd.dev/incarnation"] == replaced.incarnation
        after = [(await stage.get("pvc", name))["spec"]["volumeName"] for name in claims_of(sandbox).values()]
        assert after == volumes
        # One node is all there is: that the scheduler takes the wish as it is meant shows in its being no demand.
        (wish,) = pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert wish["preference"]["matchFields"][0]["values"] == [third.last_node] == [second.node]
        assert first.last_node == ""


async def test_a_sandbox_shrinks_grows_and_changes_its_tier_without_a_restart(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()

    async with stage.operator():
        await stage.write(sandbox, spec)
        first = await stage.reaches(sandbox, S.RUNNING)

        await stage.write(sandbox, replace(spec, mode=Mode.HIBERNATED))
        await stage.reaches(sandbox, S.HIBERNATED)
        pod = await stage.get("pod", f"{sandbox}-0")
        asleep = pod["spec"]["containers"][0]["resources"]
        assert asleep["requests"]["cpu"] == "5m"

        bigger = replace(spec.resources, cpu="1", memory="128M", workspace="4G")
        await stage.write(sandbox, replace(spec, tier=Tier.STANDARD, resources=bigger))
        await stage.reaches(sandbox, S.RUNNING)

        async def grown() -> bool:
            found = await stage.get("pod", f"{sandbox}-0")
            given = found["status"]["containerStatuses"][0]["resources"]
            return parse_quantity(given["limits"]["memory"]) == 128_000_000 and given["requests"]["cpu"] == "100m"

        await eventually(grown, within=30, every=0.2)
        status = await stage.status(sandbox)
        resize = status.find(ConditionType.RESIZE_PENDING)
        assert (status.pod_uid, status.restarts) == (first.pod_uid, 0)
        assert resize is not None
        assert "DriftRepaired" not in await stage.told(sandbox)
        assert (resize.status, resize.reason) == (True, R.EXPANSION_UNSUPPORTED)  # the class of this cluster cannot

        huge = replace(bigger, cpu="500")
        await stage.write(sandbox, replace(spec, resources=huge))

        async def infeasible() -> bool:
            found = (await stage.status(sandbox)).find(ConditionType.RESIZE_PENDING)
            return found is not None and found.reason is R.RESIZE_INFEASIBLE

        await eventually(infeasible, within=30, every=0.2)
        assert (await stage.status(sandbox)).pod_uid == first.pod_uid


async def test_a_lost_incarnation_is_told_and_only_another_one_starts(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()

    async def start() -> None:
        nonlocal spec
        spec = replace(spec, incarnation=an_incarnation())
        await stage.write(sandbox, spec)
        await stage.reaches(sandbox, S.RUNNING, spec.incarnation)

    async with stage.operator():
        await start()
        await stage.kubectl("delete", "pod", f"{sandbox}-0", "--wait=false")
        await stage.reaches(sandbox, S.FAILED, R.POD_DELETED)

        await start()
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": f"{sandbox}-0", "namespace": stage.namespace},
        }
        path = f"/api/v1/namespaces/{stage.namespace}/pods/{sandbox}-0/eviction"
        await stage.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        await stage.reaches(sandbox, S.FAILED, R.POD_EVICTED)

        await start()
        await stage.tell_agent(await stage.status(sandbox), b"x")
        status = await stage.reaches(sandbox, S.FAILED, R.CONTAINER_RESTARTED)
        assert "exit code 3" in status.message

        await start()
        await stage.tell_agent(await stage.status(sandbox), b"m")
        await stage.reaches(sandbox, S.FAILED, R.OUT_OF_MEMORY)

        async def ended() -> bool:
            return not await stage.exists("pod", f"{sandbox}-0")

        await eventually(ended, within=60, every=0.2)
        assert {"PodDeleted", "PodEvicted", "ContainerRestarted", "OutOfMemory"} <= await stage.told(sandbox)

        await start()


async def test_a_missing_image_is_told_and_a_corrected_template_starts(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()
    await stage.template(image="localhost:5000/tests/no-such-image:1")

    async with stage.operator():
        await stage.write(sandbox, spec)
        status = await stage.reaches(sandbox, S.PENDING, R.IMAGE_MISSING)
        assert "no-such-image" in status.message

        await stage.template()

        await stage.reaches(sandbox, S.RUNNING)
        assert "ImageMissing" in await stage.told(sandbox)


async def test_a_full_namespace_is_told_and_more_room_starts(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()
    quota = "sandboxd.dev/quota"
    await stage.cluster.kubectl("annotate", "namespace", stage.namespace, f"{quota}=pods=0")

    async with stage.operator():
        await stage.write(sandbox, spec)
        status = await stage.reaches(sandbox, S.PENDING, R.QUOTA_EXCEEDED)
        assert "exceeded quota" in status.message

        await stage.cluster.kubectl("annotate", "--overwrite", "namespace", stage.namespace, f"{quota}=pods=5")

        await stage.reaches(sandbox, S.RUNNING, within=90)  # the StatefulSet's controller backs off


async def test_volumes_that_do_not_come_are_told(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()
    await stage.template(storageClassName="no-such-class")

    async with stage.operator():
        await stage.write(sandbox, spec)

        status = await stage.reaches(sandbox, S.PENDING, R.VOLUME_PENDING)
        assert f"home-{sandbox}-0" in status.message


async def test_a_namespace_that_is_deleted_ends_its_sandboxes_and_does_not_hang(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox()

    async with stage.operator():
        await stage.write(sandbox, spec)
        await stage.reaches(sandbox, S.RUNNING)
        await stage.cluster.kubectl("delete", "namespace", stage.namespace, "--wait=false")

        async def gone() -> bool:
            found = await stage.cluster.get("namespaces")
            return stage.namespace not in {one["metadata"]["name"] for one in found["items"]}

        await eventually(gone, within=90, every=0.5)


async def test_the_schema_refuses_what_must_not_change(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox(mode=Mode.STOPPED)
    await stage.write(sandbox, spec)

    for patch, message in (
        ({"client": "umbrella"}, "a sandbox stays with its client"),
        ({"freelancer": "eve"}, "a sandbox stays with its freelancer"),
        ({"resources": {"workspace": "1G"}}, "storage never shrinks"),
        ({"resources": {"cpu": "much"}}, "spec.resources.cpu"),
        ({"mode": "Paused"}, "Unsupported value"),
        ({"incarnation": "next"}, "spec.incarnation"),
    ):
        with pytest.raises(KubectlError, match=message):
            await stage.kubectl("patch", "sandbox", sandbox, "--type=merge", f"-p={json.dumps({'spec': patch})}")
    await stage.kubectl("patch", "sandbox", sandbox, "--type=merge", '-p={"spec":{"resources":{"workspace":"3G"}}}')
