"""Whom a change wakes: thousands of sandboxes have one template, and its status changes with every node."""

from __future__ import annotations

import asyncio
from typing import Any

from sandboxd.model.cluster import INSTANCE_LABEL, sandbox_resource
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.prepull import IMAGES_LABEL, TEMPLATE_ANNOTATION
from tests.eventually import eventually
from tests.fakes.kube import FakeKube
from tests.operator_world import INSTANCE, NAMESPACE, SANDBOX, a_spec

OWN = "sandboxd-system"


def a_template(generation: int, **more: Any) -> dict[str, Any]:
    labels = {INSTANCE_LABEL: INSTANCE}
    return {"metadata": {"name": "default", "labels": labels, "generation": generation}, "spec": {}, **more}


async def test_a_templates_status_wakes_its_images_alone_and_its_spec_its_sandboxes_too() -> None:
    kube, woken = FakeKube(), list[WorkKey]()
    resource = sandbox_resource(SANDBOX, a_spec(), namespace=NAMESPACE, instance=INSTANCE)
    await kube.put("sandboxes", resource)
    await kube.put("sandboxtemplates", a_template(1))
    mirrors = Mirrors(kube, instance=INSTANCE, namespace=OWN, wake=woken.append)
    running = asyncio.create_task(mirrors.run())
    images = WorkKey(template="default")
    sandbox = WorkKey(namespace=NAMESPACE, sandbox=SANDBOX)
    try:
        await mirrors.wait_synced()
        assert {images, sandbox} <= set(mirrors.everything())
        await kube.put("sandboxtemplates", a_template(1, status={"readyNodes": 0}))
        await eventually(lambda: images in woken)
        woken.clear()

        await kube.put("sandboxtemplates", a_template(1, status={"readyNodes": 1}))
        await eventually(lambda: images in woken)
        assert sandbox not in woken

        await kube.put("sandboxtemplates", a_template(2))
        await eventually(lambda: sandbox in woken)

        woken.clear()
        labels = {INSTANCE_LABEL: INSTANCE, IMAGES_LABEL: "sandboxd-images-default"}
        names = {"name": "sandboxd-images-default-x", "namespace": OWN, "labels": labels}
        await kube.put("pods", {"metadata": {**names, "annotations": {TEMPLATE_ANNOTATION: "default"}}})
        await eventually(lambda: images in woken)

        woken.clear()
        gone = {"name": "sandboxd-images-default", "namespace": OWN, "labels": labels}
        await kube.put("daemonsets", {"metadata": gone})
        await eventually(lambda: images in woken)
        woken.clear()
        await kube.drop("daemonsets", OWN, "sandboxd-images-default")
        await eventually(lambda: images in woken)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
