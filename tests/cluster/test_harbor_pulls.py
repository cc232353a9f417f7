"""A real node pulls a client's image from a fake of Harbor, with the account that was made for that client alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.backends.kubernetes.pull_accounts import SecretPullAccounts
from sandboxd.backends.registry.harbor import HarborProjects, HarborRules
from sandboxd.backends.registry.harbor_api import HarborApi
from sandboxd.backends.registry.harbor_registry import HarborRegistry
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.kubeapi.client import KubeClient
from sandboxd.model.cluster import INSTANCE_LABEL, pod_of
from sandboxd.model.cluster_status import PlacedState
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.image_names import user_project, user_repository
from sandboxd.operator.pull_secrets import PULL_SECRET
from tests.cluster.operator_stage import a_stage, an_incarnation
from tests.harbor import a_harbor
from tests.harbor_state import SYSTEM
from tests.kube import Cluster
from tests.oci_images import an_image, entry, tar

SOON = timedelta(seconds=30)
ACME = ClientId("acme")
SECRET = "image-pulls"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("docker-registry") is None, reason="needs docker-registry (Debian: docker-registry)"
    ),
]


async def test_a_pod_of_a_clients_image_pulls_it_with_the_clients_account(
    cluster: Cluster, instance: str, tmp_path: Path
) -> None:
    stage = await a_stage(cluster, instance, tmp_path)
    metadata = {"name": SECRET, "namespace": f"{instance}-system", "labels": {INSTANCE_LABEL: instance}}
    await cluster.apply([{"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}])
    sandbox, spec = stage.a_sandbox()
    (tmp_path / "registry").mkdir()
    async with a_harbor(tmp_path / "registry") as harbor, KubeClient(cluster.kubeconfig) as api:
        host = f"localhost:{harbor.address.rpartition(':')[2]}"  # nodes speak HTTP with that name
        own = HarborApi(harbor.address, plain=True, authority=None, account=SYSTEM)
        accounts = SecretPullAccounts(api, namespace=f"{instance}-system", secret=SECRET, registry=host)
        projects = HarborProjects(own, rules=HarborRules(prefix="boxes"), accounts=accounts, clock=SystemClock())
        await projects.prepare(ACME, timeout=SOON)
        repository = user_repository(ACME, FreelancerId("ada"), prefix=user_project(ACME, prefix="boxes"))
        async with HarborRegistry(harbor.address, api=own, plain=True, account=SYSTEM) as registry:
            image = await an_image(tar(entry("bin/mark", instance.encode()))).push(registry, repository)
        harbor.let_in.clear()

        async with stage.operator(SANDBOXD_IMAGE_PULLS_SECRET=SECRET):
            wanted = replace(spec, image=f"{host}/{repository}@{image.digest}", incarnation=an_incarnation())
            await stage.write(sandbox, wanted)
            status = await stage.reaches(sandbox, PlacedState.RUNNING)
            pod = await stage.get("pod", pod_of(sandbox))

        kept = await accounts.get(ACME)
        assert kept is not None
        assert status.image == wanted.image
        assert {"name": PULL_SECRET} in pod["spec"]["imagePullSecrets"]
        assert harbor.let_in == {kept.name}, "the node has no other account"
        await projects.close()
