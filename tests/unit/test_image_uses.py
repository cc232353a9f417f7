"""Which images a cluster's objects name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from sandboxd.backends.kubernetes.image_uses import KubernetesImageUses
from sandboxd.kubeapi.errors import KubeForbiddenError, KubeUnavailableError
from sandboxd.kubeapi.ports import Json
from sandboxd.model.errors import UnavailableError
from tests.fakes.kube import FakeKube

SOON = timedelta(seconds=5)
DIGESTS = {name: f"sha256:{number:064}" for number, name in enumerate("abcdef")}


def image(name: str) -> str:
    return f"registry.test/acme/gemini-cli-user-ada@{DIGESTS[name]}"


def named(name: str, **more: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "acme", "uid": name}, **more}


@pytest.fixture
async def kube() -> FakeKube:
    kube = FakeKube()
    template = {"spec": {"containers": [{"image": image("b")}]}}
    await kube.put("sandboxes", named("sbx-1", spec={"image": image("a")}))
    await kube.put("statefulsets", named("sbx-1", spec={"template": template}))
    former = {"spec": {"template": {"spec": {"containers": [{"image": image("c")}]}}}}
    await kube.put("controllerrevisions", named("sbx-1-7d9", data=former, revision=1))
    running = {"containerStatuses": [{"image": "a-tag", "imageID": image("e")}]}
    await kube.put("pods", named("sbx-1-0", spec={"containers": [{"image": image("d")}]}, status=running))
    await kube.put("pods", named("other-0", spec={"containers": [{"image": "docker.io/library/busybox:1"}]}))
    return kube


async def test_pods_sets_their_revisions_and_resources_name_images(kube: FakeKube) -> None:
    found = await KubernetesImageUses(kube).named(timeout=SOON)

    assert found == {
        DIGESTS["a"]: "Sandbox acme/sbx-1",
        DIGESTS["b"]: "StatefulSet acme/sbx-1",
        DIGESTS["c"]: "ControllerRevision acme/sbx-1-7d9",
        DIGESTS["d"]: "Pod acme/sbx-1-0",
        DIGESTS["e"]: "Pod acme/sbx-1-0",
    }


async def test_every_page_is_read(kube: FakeKube) -> None:
    class Paged(FakeKube):
        @override
        async def get(
            self, path: str, *, query: Mapping[str, str] | None = None, timeout: timedelta | None = None
        ) -> Json:
            whole = await super().get(path)
            at = int((query or {}).get("continue", "0"))
            more = {"continue": str(at + 1)} if at + 1 < len(whole["items"]) else {}
            return {"metadata": more, "items": whole["items"][at : at + 1]}

    paged = Paged()
    paged.objects = kube.objects

    assert await KubernetesImageUses(paged).named(timeout=SOON) == await KubernetesImageUses(kube).named(timeout=SOON)


@pytest.mark.parametrize("kind", ["sandboxes", "statefulsets", "controllerrevisions", "pods"])
async def test_one_kind_that_cannot_be_read_is_an_error_and_no_shorter_answer(kube: FakeKube, kind: str) -> None:
    kube.refuse = lambda _, path: KubeForbiddenError("no", status=403) if path.endswith(kind) else None

    with pytest.raises(UnavailableError, match="cannot be read"):
        await KubernetesImageUses(kube).named(timeout=SOON)


async def test_a_cluster_that_is_away_is_an_error(kube: FakeKube) -> None:
    kube.away = KubeUnavailableError("away")

    with pytest.raises(UnavailableError):
        await KubernetesImageUses(kube).named(timeout=SOON)
