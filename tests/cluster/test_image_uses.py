"""What a real cluster's objects name: also the revision of a StatefulSet that it no longer has, and a waiting pod."""

from __future__ import annotations

import json
import secrets
from datetime import timedelta
from typing import Any

from sandboxd.backends.kubernetes.image_uses import KubernetesImageUses
from sandboxd.kubeapi.client import KubeClient
from sandboxd.model.cluster import INSTANCE_LABEL
from tests.eventually import eventually
from tests.kube import Cluster

SOON = timedelta(seconds=30)


def a_digest() -> str:
    return f"sha256:{secrets.token_hex(32)}"


def a_set(digest: str, *, client: str) -> dict[str, Any]:  # Any: JSON
    """A StatefulSet as the operator's are: it replaces no pod by itself. Nothing can be pulled from there."""
    container = {"name": "main", "image": f"127.0.0.1:1/acme/gemini-cli-user-ada@{digest}"}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "sbx-1", "namespace": client},
        "spec": {
            "replicas": 1,
            "serviceName": "",
            "selector": {"matchLabels": {"a": "b"}},
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
            },
        },
    }


async def test_a_pod_and_both_revisions_of_its_set_name_their_images_until_they_are_gone(
    cluster: Cluster, instance: str
) -> None:
    former, later = a_digest(), a_digest()
    namespace = f"uses-{instance}"
    labels = {INSTANCE_LABEL: instance}
    async with KubeClient(cluster.kubeconfig) as api:
        uses = KubernetesImageUses(api)
        await api.create("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
        try:
            await cluster.kubectl("apply", "-f", "-", stdin=json.dumps(a_set(former, client=namespace)))

            async def has_pod() -> bool:
                return "sbx-1-0" in await cluster.kubectl("get", "pods", "-n", namespace, "-o", "name")

            await eventually(has_pod, within=30)
            await cluster.kubectl("apply", "-f", "-", stdin=json.dumps(a_set(later, client=namespace)))

            async def named_by_a_revision() -> bool:
                found = await cluster.kubectl("get", "controllerrevisions", "-n", namespace, "-o", "json")
                return former in found and later in found

            await eventually(named_by_a_revision, within=30)

            named = await uses.named(timeout=SOON)
            await cluster.kubectl("scale", "statefulset/sbx-1", "-n", namespace, "--replicas=0")

            async def gone() -> bool:
                return "sbx-1-0" not in await cluster.kubectl("get", "pods", "-n", namespace, "-o", "name")

            await eventually(gone, within=60)
            without_pod = await uses.named(timeout=SOON)
        finally:
            await cluster.kubectl("delete", "namespace", namespace, "--wait=false")

        assert named[later] == f"StatefulSet {namespace}/sbx-1"
        assert named[former].startswith(f"ControllerRevision {namespace}/sbx-1-")
        assert without_pod[later] == named[later]

        async def nothing_left() -> bool:
            return not {former, later} & (await uses.named(timeout=SOON)).keys()

        await eventually(nothing_left, within=90)
