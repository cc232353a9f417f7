"""Load on an installation's `serve`, and what an autoscaler makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from tests.cluster.release import Release
from tests.kube import Cluster, KubectlError

CALLERS: Final = 8
METRICS: Final = "/apis/metrics.k8s.io/v1beta1/nodes"
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
"""Of a Deployment's pods the one whose end costs least goes first."""


async def need_metrics(cluster: Cluster) -> None:
    """Skip where the cluster does not know what its pods use. The development cluster does."""
    try:
        await cluster.kubectl("get", "--raw", METRICS)
    except KubectlError as error:
        if cluster.places is not None:
            raise
        pytest.skip(f"this cluster has no metrics API: {error}")


@asynccontextmanager
async def load(release: Release, client: str, sandbox: str) -> AsyncIterator[None]:
    """While the block runs, ask `serve` for a sandbox again and again, as fast as it answers."""
    async with release.client(client) as caller, asyncio.TaskGroup() as tasks:

        async def ask() -> None:
            while True:
                await caller.get(sandbox)

        asking = [tasks.create_task(ask(), name=f"load-{number}") for number in range(CALLERS)]
        try:
            yield
        finally:
            for task in asking:
                task.cancel()


async def ready(release: Release) -> list[str]:
    """Names of the pods of `serve` that are ready and are to stay."""
    return [
        pod["metadata"]["name"]
        for pod in await release.pods("serve")
        if any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))
    ]


async def owner_of(release: Release, sandbox: str) -> str:
    """The replica that owns a sandbox's conversation, as the database has it; empty for none."""
    query = f"SELECT owner FROM conversations WHERE sandbox = '{sandbox.rpartition('/')[2]}'"
    shell = f'$(ls -d /usr/lib/postgresql/*/bin | tail -1)/psql -h /tmp -U postgres -At sandboxd -c "{query}"'
    told = await release.cluster.run_in(release.namespace, f"{release.full}-postgresql-0", "sh", "-c", shell)
    pods = [pod["metadata"]["name"] for pod in await release.pods("serve")]
    return next((pod for pod in pods if told.strip().startswith(pod)), "")


async def let_go_first(release: Release, pod: str) -> None:
    """Let this pod be the one that goes when there are to be fewer."""
    for other in await release.pods("serve"):
        name = other["metadata"]["name"]
        cost = f"{DELETION_COST}={-100 if name == pod else 100}"
        await release.cluster.kubectl("annotate", "--overwrite", "pod", name, cost, "-n", release.namespace)


async def said(release: Release) -> str:
    """What the autoscaler says of itself, for who reads a failure."""
    return await release.cluster.kubectl("describe", "hpa", "-n", release.namespace)
