"""Who may write what of a Sandbox, on a real API server with the chart's policies."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_backup import BackupAction, PlacedBackup, backup_resource
from sandboxd.model.cluster_pool import PlacedPool, pool_resource
from sandboxd.model.cluster_probe import PlacedProbe, probe_resource
from sandboxd.model.ids import ClientId
from sandboxd.model.pool import PoolId
from sandboxd.model.sandbox import Tier
from tests.chart.helm import NO_HELM, TRIAL, find_helm, render
from tests.cluster.operator_stage import Stage, a_stage
from tests.eventually import eventually
from tests.kube import Cluster, KubectlError

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(find_helm() is None, reason=NO_HELM),
]
POLICIES = "validatingadmissionpolicies,validatingadmissionpolicybindings"


@pytest.fixture
async def stage(cluster: Cluster, instance: str, tmp_path: Path) -> Any:
    stage = await a_stage(cluster, instance, tmp_path)
    objects = [
        one
        for one in render(
            values={**TRIAL, "instance": instance, "namespacePrefix": f"{instance}-"},
            release=instance,
            namespace=f"{instance}-system",
        )
        if one["kind"].startswith("ValidatingAdmission")
    ]
    assert len(objects) == 14
    await cluster.apply(objects)
    yield stage
    await cluster.kubectl("delete", POLICIES, f"--selector=sandboxd.dev/instance={instance}")


def account(stage: Stage, role: str) -> list[str]:
    """Speak as a role's account; the group passes RBAC, so that admission alone decides."""
    name = f"system:serviceaccount:{stage.instance}-system:{stage.instance}-sandboxd-{role}"
    return [f"--as={name}", "--as-group=system:masters"]


async def refused(stage: Stage, service: str, *words: str) -> None:
    """Wait until a call is refused with the name of the RPC to use: each policy comes into force for itself, a moment
    after it was made. Only tried, so that what is let through until then changes nothing."""

    async def tried() -> bool:
        try:
            await stage.kubectl(*words, "--dry-run=server")
        except KubectlError as error:
            return f"sandboxd.v1.{service}" in str(error)
        return False

    await eventually(tried, within=30, every=0.3, what=f"refused: {' '.join(words)}")


async def test_serve_alone_writes_the_spec_and_the_operator_alone_the_status(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox(mode=Mode.STOPPED)
    await stage.write(sandbox, spec, *account(stage, "serve"))  # the policies may be in force by now
    to_run = ("patch", "sbx", sandbox, "--type=merge", '-p={"spec":{"mode":"Running"}}')
    to_lie = ("patch", "sbx", sandbox, "--subresource=status", "--type=merge", '-p={"status":{"state":"Running"}}')

    await refused(stage, "SandboxService", *to_run)
    for words, who in (
        (to_run, "operator"),
        (("delete", "sbx", sandbox), "operator"),
        (("label", "--overwrite", "sbx", sandbox, "sandboxd.dev/instance=another"), "operator"),
        (to_lie, "serve"),
    ):
        await refused(stage, "SandboxService", *words, *account(stage, who))

    await stage.kubectl(*to_run, *account(stage, "serve"))
    await stage.kubectl(*to_lie, *account(stage, "operator"))
    await stage.kubectl("annotate", "sbx", sandbox, "somebody.example/note=fine")
    assert (await stage.get("sbx", sandbox))["spec"]["mode"] == "Running"


async def test_a_pool_is_changed_by_serve_alone_and_kubectl_scale_names_the_call(stage: Stage) -> None:
    name = "pol-01jd0000000000000000000000"
    placed = PlacedPool(
        pool=PoolId(name),
        client=ClientId("acme"),
        template=stage.instance,
        tier=Tier.BASIC,
        min=0,
        target=1,
        max=5,
        wanted=1,
    )
    made = pool_resource(placed, namespace=stage.namespace, instance=stage.instance)
    create = ("create", "-f", "-", *account(stage, "serve"))
    await stage.cluster.kubectl(*create, stdin=json.dumps(made))
    to_grow = ("patch", "sbxp", name, "--type=merge", '-p={"spec":{"target":2}}')
    to_lie = ("patch", "sbxp", name, "--subresource=status", "--type=merge", '-p={"status":{"ready":9}}')

    await refused(stage, "PoolService", "scale", "sbxp", name, "--replicas=3")
    for words, who in ((to_grow, "operator"), (("delete", "sbxp", name), "operator"), (to_lie, "serve")):
        await refused(stage, "PoolService", *words, *account(stage, who))

    await stage.kubectl(*to_grow, *account(stage, "serve"))
    await stage.kubectl(*to_lie, *account(stage, "operator"))
    assert (await stage.get("sbxp", name))["spec"]["target"] == 2


async def test_an_image_is_tried_by_serve_alone_once_and_the_operator_alone_says_what_came_of_it(stage: Stage) -> None:
    sandbox, spec = stage.a_sandbox(mode=Mode.STOPPED)
    await stage.write(sandbox, spec, *account(stage, "serve"))
    image = f"localhost:5000/acme/gemini-cli-user-ada@sha256:{'0' * 64}"
    probe = PlacedProbe(sandbox=sandbox, image=image, deadline=timedelta(seconds=60))
    uid = (await stage.get("sbx", sandbox))["metadata"]["uid"]

    def made(name: str) -> str:
        return json.dumps(
            probe_resource(name, probe, namespace=stage.namespace, instance=stage.instance, owner_uid=uid)
        )

    async def stopped() -> bool:
        create = ("create", "--dry-run=server", "-f", "-", *account(stage, "operator"))
        try:
            await stage.cluster.kubectl(*create, stdin=made("probe-theirs"))
        except KubectlError as error:
            return "SandboxService: Commit" in str(error)
        return False

    await eventually(stopped, within=30, every=0.3, what="only serve makes probes")
    create = ("create", "-f", "-", *account(stage, "serve"))
    await stage.cluster.kubectl(*create, stdin=made("probe-ours"))
    to_lie = ("--subresource=status", "--type=merge", '-p={"status":{"state":"Booted"}}')
    await refused(stage, "SandboxService", "patch", "sbxprobe", "probe-ours", *to_lie, *account(stage, "serve"))
    await stage.kubectl("patch", "sbxprobe", "probe-ours", *to_lie, *account(stage, "operator"))
    longer = '-p={"spec":{"deadlineSeconds":3600}}'
    with pytest.raises(KubectlError, match="does not change"):
        await stage.kubectl("patch", "sbxprobe", "probe-ours", "--type=merge", longer, *account(stage, "serve"))
    await stage.kubectl("delete", "sbxprobe", "probe-ours", *account(stage, "operator"))


async def test_work_on_backups_is_asked_for_by_serve_alone_and_the_operator_alone_says_what_came_of_it(
    stage: Stage,
) -> None:
    sandbox, spec = stage.a_sandbox(mode=Mode.STOPPED)
    await stage.write(sandbox, spec, *account(stage, "serve"))
    work = PlacedBackup(action=BackupAction.VERIFY, deadline=timedelta(seconds=60), template="none")

    def made(name: str) -> str:
        return json.dumps(backup_resource(name, work, namespace=stage.namespace, instance=stage.instance))

    async def stopped() -> bool:
        create = ("create", "--dry-run=server", "-f", "-", *account(stage, "operator"))
        try:
            await stage.cluster.kubectl(*create, stdin=made("backup-theirs"))
        except KubectlError as error:
            return "BackupService: CreateBackup" in str(error)
        return False

    await eventually(stopped, within=30, every=0.3, what="only serve asks for work on backups")
    await stage.cluster.kubectl("create", "-f", "-", *account(stage, "serve"), stdin=made("backup-ours"))
    to_lie = ("--subresource=status", "--type=merge", '-p={"status":{"state":"Done"}}')
    await refused(stage, "SandboxService", "patch", "sbxbackup", "backup-ours", *to_lie, *account(stage, "serve"))
    longer = '-p={"spec":{"deadlineSeconds":3600}}'
    with pytest.raises(KubectlError, match="does not change"):
        await stage.kubectl("patch", "sbxbackup", "backup-ours", "--type=merge", longer, *account(stage, "serve"))
    await stage.kubectl("delete", "sbxbackup", "backup-ours", *account(stage, "operator"))


async def test_serve_deletes_namespaces_of_its_clients_alone(stage: Stage) -> None:
    other = f"{stage.instance}-system"
    await stage.cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}])
    try:

        async def tried() -> bool:
            try:
                await stage.cluster.kubectl("delete", "ns", other, "--dry-run=server", *account(stage, "serve"))
            except KubectlError as error:
                return "namespaces of its clients alone" in str(error)
            return False

        await eventually(tried, within=30, every=0.3, what="refused: a namespace of somebody else")
        await stage.cluster.kubectl("delete", "ns", stage.namespace, "--dry-run=server", *account(stage, "serve"))
    finally:
        await stage.cluster.kubectl("delete", "ns", other, "--wait=false")


async def test_a_pod_without_a_user_namespace_is_refused_in_a_client_s_namespace_and_told_of(stage: Stage) -> None:
    def a_pod(*, host_users: bool) -> str:
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "theirs", "namespace": stage.namespace},
                "spec": {
                    "hostUsers": host_users,
                    "containers": [{"name": "theirs", "image": "localhost:5000/pause:1"}],
                },
            }
        )

    async def refused() -> bool:
        try:
            await stage.cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=a_pod(host_users=True))
        except KubectlError as error:
            return "hostUsers: false" in str(error)
        return False

    await eventually(refused, within=30, every=0.5, what="the policies are in force")
    await stage.cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=a_pod(host_users=False))
