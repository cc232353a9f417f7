"""A real API server accepts everything that the chart can render, strictly."""

from __future__ import annotations

import json

import pytest

from sandboxd.model.cluster import INSTANCE_LABEL
from tests.chart.helm import CHART, NO_HELM, TRIAL, find_helm, render
from tests.chart.test_pods import EVERYTHING
from tests.kube import Cluster

FOREIGN = {"PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, which this cluster does not have."""


@pytest.mark.skipif(find_helm() is None, reason=NO_HELM)
@pytest.mark.parametrize("values", [TRIAL, EVERYTHING], ids=["least", "everything"])
async def test_the_api_server_takes_every_object(cluster: Cluster, instance: str, values: dict[str, object]) -> None:
    labels = {INSTANCE_LABEL: instance, "pod-security.kubernetes.io/enforce": "restricted"}
    await cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": instance, "labels": labels}}])
    templates = {"sandboxTemplate": instance, "sandboxTemplates": {instance: {"image": "a", "agentImage": "b"}}}
    objects = render({**values, **templates}, release=instance, namespace=instance)

    for made in objects:
        if made["kind"] not in FOREIGN:
            await cluster.kubectl(
                "apply", "--dry-run=server", "--validate=strict", "-n", instance, "-f", "-", stdin=json.dumps(made)
            )


async def test_the_api_server_takes_the_definitions(cluster: Cluster) -> None:

    for file in sorted((CHART / "crds").glob("*.yaml")):
        await cluster.kubectl("apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", str(file))
