import json

import pytest

from sandboxd.model.cluster import INSTANCE_LABEL
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
