"""The mirror of a collection: what it shows after lists, changes, cuts and versions that are too old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandboxd.kubeapi.errors import KubeForbiddenError, KubeGoneError, KubeUnavailableError
from sandboxd.kubeapi.ports import Json
from sandboxd.kubeapi.reflector import Reflector
from tests.eventually import eventually
from tests.fakes.kube import FakeKube

PATH = "/api/v1/configmaps"


def a_map(name: str, **data: str) -> Json:
    return {"metadata": {"name": name, "namespace": "here", "uid": name}, "data": data}


@pytest.fixture
async def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
async def mirror(kube: FakeKube) -> AsyncIterator[Reflector]:
    reflector = Reflector(kube, PATH)
    running = asyncio.create_task(reflector.run())
    yield reflector
    running.cancel()


async def test_what_was_there_and_what_comes_later_is_seen(kube: FakeKube, mirror: Reflector) -> None:
    await kube.put("configmaps", a_map("first"))
    await mirror.wait_synced()
    seen: list[tuple[str, bool]] = []
    mirror.listen(lambda key, obj: seen.append((key[1], obj is not None)))

    await kube.put("configmaps", a_map("second"))
    await kube.drop("configmaps", "here", "first")

    await eventually(lambda: mirror.get(("here", "first")) is None and mirror.get(("here", "second")) is not None)
    assert seen[-2:] == [("second", True), ("first", False)]


async def test_a_cut_is_followed_by_what_was_missed_without_another_list(kube: FakeKube, mirror: Reflector) -> None:
    await mirror.wait_synced()
    kube.away = KubeUnavailableError("away")
    await kube.cut_watches()
    await eventually(lambda: mirror.problem is not None)
    await kube.put("configmaps", a_map("missed"))

    kube.away = None

    await eventually(lambda: mirror.get(("here", "missed")) is not None)
    assert mirror.problem is None
    assert mirror.lists == 1


async def test_a_version_that_is_too_old_ends_in_a_new_list_that_also_tells_what_is_gone(
    kube: FakeKube, mirror: Reflector
) -> None:
    await kube.put("configmaps", a_map("doomed"))
    await eventually(lambda: mirror.get(("here", "doomed")) is not None)
    gone: list[str] = []
    mirror.listen(lambda key, obj: gone.append(key[1]) if obj is None else None)
    refusals = iter([KubeGoneError("too old", status=410)])
    kube.refuse = lambda method, _: next(refusals, None) if method == "WATCH" else None

    kube.objects.pop(("configmaps", "here", "doomed"))
    await kube.cut_watches()

    await eventually(lambda: gone == ["doomed"])
    assert mirror.lists == 2


async def test_a_refusal_is_tried_again_and_told_meanwhile(kube: FakeKube) -> None:
    kube.away = KubeForbiddenError("not you", status=403)
    mirror = Reflector(kube, PATH)
    running = asyncio.create_task(mirror.run())
    await eventually(lambda: isinstance(mirror.problem, KubeForbiddenError))
    assert not mirror.synced

    kube.away = None

    await mirror.wait_synced()
    running.cancel()
