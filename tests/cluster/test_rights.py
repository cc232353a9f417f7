"""What the API server says that our service accounts may do is what the committed lists say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from sandboxd.model.cluster import INSTANCE_LABEL
from tests.chart.helm import NO_HELM, Object, find_helm, render
from tests.chart.rights import EVERYWHERE, OWN, committed_rights, lines_of
from tests.kube import Cluster

pytestmark = pytest.mark.skipif(find_helm() is None, reason=NO_HELM)

RIGHTS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


async def rules(cluster: Cluster, account: str, namespace: str) -> set[str]:
    review: Mapping[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    out = await cluster.kubectl(
        "create",
        "--validate=false",
        "-f",
        "-",
        "-o",
        "json",
        f"--as=system:serviceaccount:{account}",
        stdin=json.dumps(review),
    )
    return lines_of(json.loads(out)["status"]["resourceRules"])


def without_hooks(made: Object, instance: str) -> Object:
    labels = {**made["metadata"]["labels"], INSTANCE_LABEL: instance}
    return {**made, "metadata": {**made["metadata"], "labels": labels, "annotations": {}}}


@pytest.mark.parametrize("component", ["serve", "gateway", "operator", "prepare"])
async def test_the_api_server_allows_each_part_what_its_list_says_and_no_more(
    cluster: Cluster, instance: str, component: str
) -> None:
    release = f"{instance}-sandboxd"
    objects = [one for one in render(release=release, namespace=instance) if one["kind"] in RIGHTS]
    labels = {INSTANCE_LABEL: instance}
    namespaces: list[Object] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name in (instance, f"{instance}-other")
    ]
    nobody: Object = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "nobody", "namespace": instance},
    }
    await cluster.apply([*namespaces, nobody, *(without_hooks(one, instance) for one in objects)])
    account, everybody = f"{instance}:{release}-{component}", f"{instance}:nobody"

    own = await rules(cluster, account, instance) - await rules(cluster, everybody, instance)
    elsewhere = await rules(cluster, account, f"{instance}-other") - await rules(
        cluster, everybody, f"{instance}-other"
    )

    found = {f"{EVERYWHERE}: {line}" for line in elsewhere} | {f"{OWN}: {line}" for line in own - elsewhere}
    named = {line.replace(release, "sandboxd").replace(instance, "sandboxd") for line in found}
    assert named == committed_rights(component)
