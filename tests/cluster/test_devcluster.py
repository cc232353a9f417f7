import json

import pytest

from sandboxd.model.cluster import INSTANCE_LABEL
from tests.cluster.scaling import need_metrics
from tests.eventually import eventually
from tests.kube import Cluster


async def test_a_pod_of_an_image_in_the_registry_becomes_ready(cluster: Cluster, instance: str) -> None:
    if cluster.places is None:
        pytest.skip("only the development cluster has a registry that holds this image")
    labels = {INSTANCE_LABEL: instance}
    container = {"name": "pause", "image": "localhost:5000/pause:1"}
    await cluster.apply(
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": instance, "labels": labels}},
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "still", "namespace": instance},
                "spec": {"containers": [container], "hostUsers": False, "automountServiceAccountToken": False},
            },
        ]
    )

    await cluster.kubectl("wait", "-n", instance, "pod/still", "--for=condition=Ready", "--timeout=50s")

    found = await cluster.get("pod", "still", "-n", instance)
    assert found["status"]["phase"] == "Running", json.dumps(found["status"])


async def test_the_cluster_says_how_much_of_a_processor_its_pods_use(cluster: Cluster) -> None:
    await need_metrics(cluster)

    async def dns() -> list[str]:
        told = await cluster.kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/kube-system/pods")
        return [
            container["usage"]["cpu"]
            for pod in json.loads(told)["items"]
            for container in pod["containers"]
            if container["name"] == "coredns"
        ]

    (used,) = await eventually(dns, within=90, every=2)

    assert used.rstrip("num").isdigit()
