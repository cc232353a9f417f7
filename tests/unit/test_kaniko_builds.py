"""Builds by kaniko as Jobs: what they are made of, how their ends are told, and that none is left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from sandboxd.backends.kubernetes.kaniko_builds import (
    BUILD_LABEL,
    BuildPlace,
    KubernetesKanikoBuilds,
    arguments,
    build_job,
    job_name,
)
from sandboxd.backends.kubernetes.refusals import ClusterUnavailableError, PlacementError
from sandboxd.images.kaniko import KanikoOrder
from sandboxd.images.ports import ImageReference
from sandboxd.kubeapi.errors import KubeForbiddenError, KubeUnavailableError
from sandboxd.kubeapi.ports import Json
from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import SandboxId
from tests.eventually import eventually
from tests.fakes.kube import FakeKube

DIGEST = f"sha256:{'a' * 64}"
PLACE = BuildPlace(
    namespace="builds",
    instance="one",
    image="registry.test/kaniko@sha256:1",
    agent_image="registry.test/agent@sha256:2",
    secret="account",
    registry="registry.pods:5000",
)
ORDER = KanikoOrder(
    sandbox=SandboxId("sbx-1"),
    generation=3,
    base=ImageReference(registry="registry.pods:5000", repository="base", digest=DIGEST),
    handover=ImageReference(registry="registry.test", repository="own", digest=f"sha256:{'b' * 64}"),
    repository="own",
    tag="g000003",
    labels={"dev.sandboxd.client": "acme"},
    raw_bytes=1000,
)
SOON = timedelta(seconds=30)
PUSHED = {"terminated": {"exitCode": 0, "message": f'{{"name":"x","digest":"{DIGEST}"}}\n'}}


class Nodes(FakeKube):
    """Makes a pod of each Job in the state that a test says, and takes it away with the Job."""

    def __init__(self, status: Json | None) -> None:
        super().__init__()
        self.objects["namespaces", "", "builds"] = {"metadata": {"name": "builds"}}
        self.status = status
        """None: no pod is made."""
        self.made: list[Json] = []

    @override
    async def create(self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None) -> Json:
        answer = await super().create(path, body, field_manager=field_manager, timeout=timeout)
        self.made.append(body)
        if self.status is not None:
            labels = body["spec"]["template"]["metadata"]["labels"]
            name = f"{body['metadata']['name']}-{len(self.made)}"
            meta = {"name": name, "namespace": "builds", "labels": labels}
            await self.put("pods", {"metadata": meta, "status": self.status})
        return answer

    @override
    async def delete(self, path: str, **given: Any) -> Json:  # Any: as the port has them
        answer = await super().delete(path, **given)
        for pod in self.all("pods"):
            await self.drop("pods", "builds", pod["metadata"]["name"])
        return answer

    def nothing_left(self) -> bool:
        return not self.all("jobs") and not self.all("pods")


def builds(nodes: Nodes) -> KubernetesKanikoBuilds:
    short = timedelta(seconds=0.3)
    return KubernetesKanikoBuilds(nodes, place=PLACE, image_patience=short, pod_patience=short)


def container(state: Mapping[str, object], phase: str = "Pending") -> Json:
    return {"phase": phase, "containerStatuses": [{"name": "kaniko", "state": dict(state)}]}


async def test_the_digest_is_what_the_pod_says_and_the_job_goes() -> None:
    nodes = Nodes(container(PUSHED, "Succeeded"))

    digest = await builds(nodes).run(ORDER, timeout=SOON)

    assert digest == DIGEST
    assert nodes.nothing_left()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            container({"terminated": {"exitCode": 1, "reason": "Error", "message": "bad\nend\x1b"}}, "Failed"),
            "bad / end",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "no disk"}, "Evicted: no disk"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "DeadlineExceeded"),
        (container({"terminated": {"exitCode": 0, "message": ""}}, "Succeeded"), "names no image"),
        (container({"waiting": {"reason": "ImagePullBackOff", "message": "denied"}}), "ImagePullBackOff: denied"),
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]},
            "0/1 nodes",
        ),
        (None, "makes no pod"),
    ],
    ids=["failed", "evicted", "late", "silent", "no image", "no room", "no pod"],
)
async def test_what_comes_to_no_image_is_told_and_nothing_is_left(status: Json | None, words: str) -> None:
    nodes = Nodes(status)

    with pytest.raises(PlacementError, match="was not built") as caught:
        await builds(nodes).run(ORDER, timeout=SOON)

    assert words in caught.value.message
    assert "-n builds" in caught.value.message
    assert nodes.nothing_left()


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_job_whose_making_was_not_answered_is_left_by_nobody(how: str) -> None:
    made = asyncio.Event()

    class Silent(Nodes):
        @override
        async def create(
            self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None
        ) -> Json:
            await super().create(path, body, field_manager=field_manager, timeout=timeout)
            made.set()
            if how == "is cancelled":
                await asyncio.Event().wait()
            raise KubeUnavailableError("The API server does not answer.")

    nodes = Silent(container({"running": {}}, "Running"))
    building = asyncio.create_task(builds(nodes).run(ORDER, timeout=SOON))
    await made.wait()
    if how == "is cancelled":
        building.cancel()

    with pytest.raises((asyncio.CancelledError, ClusterUnavailableError)):
        await building

    assert nodes.nothing_left()


async def test_a_build_that_runs_is_waited_for_until_its_time_is_over() -> None:
    nodes = Nodes(container({"running": {}}, "Running"))

    with pytest.raises(DeadlineError):
        await builds(nodes).run(ORDER, timeout=timedelta(seconds=1))

    assert nodes.nothing_left()


async def test_a_caller_that_leaves_ends_it() -> None:
    nodes = Nodes(container({"running": {}}, "Running"))
    running = asyncio.create_task(builds(nodes).run(ORDER, timeout=SOON))
    await eventually(lambda: bool(nodes.all("pods")))

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert nodes.nothing_left()


async def test_one_that_somebody_has_left_is_ended_before_it_can_push_after_this_one() -> None:
    nodes = Nodes(container({"running": {}}, "Running"))
    await nodes.create("/apis/batch/v1/namespaces/builds/jobs", build_job(job_name(ORDER), ORDER, PLACE, timeout=SOON))
    nodes.status = container(PUSHED, "Succeeded")

    await builds(nodes).run(ORDER, timeout=SOON)

    methods = [method for method, path in nodes.requests if "/jobs" in path]
    assert methods[:4] == ["POST", "POST", "DELETE", "GET"]
    assert nodes.nothing_left()


async def test_one_that_somebody_removes_is_told() -> None:
    nodes = Nodes(None)
    running = asyncio.create_task(builds(nodes).run(ORDER, timeout=SOON))
    await eventually(lambda: bool(nodes.all("jobs")))
    await nodes.drop("jobs", "builds", job_name(ORDER))

    with pytest.raises(PlacementError, match="removed the build"):
        await running


async def test_what_the_cluster_refuses_is_an_error_of_ours() -> None:
    nodes = Nodes(None)
    nodes.refuse = lambda method, path: KubeForbiddenError("no rights", status=403) if method == "POST" else None

    with pytest.raises(ClusterUnavailableError, match="no rights"):
        await builds(nodes).run(ORDER, timeout=SOON)


def test_its_pod_has_no_token_no_privilege_and_ends_by_itself() -> None:
    job = build_job("image-1", ORDER, PLACE, timeout=timedelta(seconds=90))

    spec = job["spec"]["template"]["spec"]
    (only,) = spec["containers"]
    assert job["spec"]["activeDeadlineSeconds"] == 90
    assert job["spec"]["backoffLimit"] == 0
    assert job["metadata"]["labels"][BUILD_LABEL] == "image-1"
    assert (spec["automountServiceAccountToken"], spec["hostUsers"]) == (False, False)
    security = only["securityContext"]
    assert (security["privileged"], security["allowPrivilegeEscalation"]) == (False, False)
    assert security["capabilities"]["drop"] == ["ALL"]
    assert {one["mountPath"]: one["readOnly"] for one in only["volumeMounts"]} == {
        "/kaniko/difference": True,
        "/kaniko/agent": True,
        "/kaniko/.docker": True,
    }
    references = [one["image"]["reference"] for one in spec["volumes"] if "image" in one]
    assert references == [str(ORDER.handover), PLACE.agent_image]


def test_without_an_account_it_has_no_secret_and_arguments_say_how_the_registry_is_reached() -> None:
    bare = replace(PLACE, secret="", plain=True, zstd=False)

    spec = build_job("image-1", ORDER, bare, timeout=SOON)["spec"]["template"]["spec"]

    assert "imagePullSecrets" not in spec
    assert not [one for one in spec["volumes"] if "secret" in one]
    given = arguments(ORDER, bare)
    assert "--destination=registry.pods:5000/own:g000003" in given
    assert "--label=dev.sandboxd.client=acme" in given
    assert {"--insecure", "--insecure-pull", "--compression=gzip"} <= set(given)
    trusting = arguments(ORDER, replace(PLACE, authority=True))
    assert "--registry-certificate=registry.pods:5000=/kaniko/.docker/ca.crt" in trusting
    assert not {"--insecure", "--insecure-pull"} & set(trusting)


def test_two_generations_and_two_sandboxes_have_jobs_of_their_own() -> None:
    names = {job_name(ORDER), job_name(replace(ORDER, generation=4)), job_name(replace(ORDER, sandbox=SandboxId("x")))}

    assert len(names) == 3
    assert all(len(name) <= 63 for name in names)
