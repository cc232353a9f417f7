import copy
from typing import Any

import pytest

from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.operator.builders import Json
from sandboxd.operator.plan import Create, Delete, Patch, PlanSettings, Step
from sandboxd.operator.prepull import ImagesWorld, daemon_set, images_name, images_status, plan_images
from sandboxd.operator.template import Template
from tests.operator_world import INSTANCE, NETWORK, NOW, SETTINGS, seen

NAMESPACE = NETWORK.own_namespace
OFF = PlanSettings(instance=INSTANCE, network=NETWORK, prepull=False)
SPEC: Json = {"image": "registry.example/sandbox@sha256:1", "agentImage": "registry.example/agent@sha256:2"}
GPU: Json = {**SPEC, "nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
COPIED: Json = {**SPEC, "agentDelivery": "InitCopy", "imagePullSecrets": ["registry"], "runtimeClassName": "kata"}


def a_template(spec: Json = SPEC, *, instance: str = INSTANCE, **metadata: Any) -> Json:
    made = {"metadata": {"name": "default", "labels": {INSTANCE_LABEL: instance}}, "spec": spec}
    return seen(made, uid="uid-template", **metadata)


LEAVING: Json = {"deletionTimestamp": NOW}


def a_set(spec: Json = SPEC, *, desired: int = 2, ready: int = 2, **metadata: Any) -> Json:
    read = Template.from_mapping(spec)
    built = daemon_set("default", read, uid="uid-template", instance=INSTANCE, namespace=NAMESPACE)
    made = seen(built, uid="uid-set", **metadata)
    made["status"] = {
        "observedGeneration": 1,
        "desiredNumberScheduled": desired,
        "updatedNumberScheduled": desired,
        "numberReady": ready,
    }
    return made


def a_world(resource: Json | None = None, found: Json | None = None, **more: Any) -> ImagesWorld:
    return ImagesWorld(name="default", resource=resource, daemon_set=found, **more)


def changed(found: Json, **pod: Any) -> Json:
    made = copy.deepcopy(found)
    made["spec"]["template"]["spec"] |= pod
    return made


def words(steps: list[Step]) -> list[str]:
    return [f"{type(one).__name__.lower()} {one.name}" for one in steps if isinstance(one, Create | Patch | Delete)]


MADE, PATCHED, DELETED = (f"{verb} sandboxd-images-default" for verb in ("create", "patch", "delete"))
FOREIGN = a_set(labels={})

TABLE = {
    "a template's images are pulled": (a_world(a_template()), SETTINGS, [MADE]),
    "what is there is enough": (a_world(a_template(), a_set()), SETTINGS, []),
    "with everything a template can say, too": (a_world(a_template(COPIED), a_set(COPIED)), SETTINGS, []),
    "another image is pulled": (a_world(a_template({**SPEC, "image": "other@sha256:3"}), a_set()), SETTINGS, [PATCHED]),
    "another agent is pulled": (
        a_world(a_template({**SPEC, "agentImage": "a@sha256:3"}), a_set()),
        SETTINGS,
        [PATCHED],
    ),
    "other nodes are taken": (a_world(a_template(GPU), a_set()), SETTINGS, [PATCHED]),
    "a selector that is wanted no more goes": (a_world(a_template(), a_set(GPU)), SETTINGS, [PATCHED]),
    "another delivery changes the pods": (a_world(a_template(COPIED), a_set()), SETTINGS, [PATCHED]),
    "drift is repaired": (a_world(a_template(), changed(a_set(), hostUsers=True)), SETTINGS, [PATCHED]),
    "somebody else's DaemonSet is left alone": (a_world(a_template({**SPEC, "image": "b"}), FOREIGN), SETTINGS, []),
    "that of a former template of this name waits for the collector": (
        a_world(a_template(), a_set(ownerReferences=[{"uid": "uid-former"}])),
        SETTINGS,
        [],
    ),
    "another installation's template is left alone": (a_world(a_template(instance="other")), SETTINGS, []),
    "a template that is gone takes its DaemonSet along": (a_world(None, a_set()), SETTINGS, [DELETED]),
    "one that is leaving, too": (a_world(a_template(**LEAVING), a_set()), SETTINGS, [DELETED]),
    "one that goes is not deleted twice": (a_world(None, a_set(**LEAVING)), SETTINGS, []),
    "switched off, nothing is pulled": (a_world(a_template()), OFF, []),
    "switched off later, it goes": (a_world(a_template(), a_set()), OFF, [DELETED]),
}


@pytest.mark.parametrize(("world", "settings", "wanted"), TABLE.values(), ids=TABLE.keys())
def test_the_plan_for_a_templates_images(world: ImagesWorld, settings: PlanSettings, wanted: list[str]) -> None:
    assert words(list(plan_images(world, settings))) == wanted


def test_a_patch_names_what_is_to_go() -> None:
    (step,) = plan_images(a_world(a_template(), a_set(GPU)), SETTINGS)

    assert isinstance(step, Patch)
    pod = step.body["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == (None, None)


def test_a_patch_names_the_keys_of_a_selector_that_are_to_go() -> None:
    moved = {**GPU, "nodeSelector": {"zone": "a"}}
    (step,) = plan_images(a_world(a_template(moved), a_set(GPU)), SETTINGS)

    assert isinstance(step, Patch)
    assert step.body["spec"]["template"]["spec"]["nodeSelector"] == {"pool": None, "zone": "a"}


@pytest.mark.parametrize("spec", [SPEC, COPIED, GPU])
def test_the_pods_name_both_images_ask_for_nothing_and_do_nothing(spec: Json) -> None:
    pod = a_set(spec)["spec"]["template"]["spec"]

    containers = [*pod["containers"], *pod.get("initContainers", [])]
    named = {one["image"] for one in containers} | {one["image"]["reference"] for one in pod.get("volumes", [])}
    assert named == {SPEC["image"], SPEC["agentImage"]}
    assert pod["containers"][0]["command"] == ["sleep", "infinity"]
    assert all(one["resources"]["requests"] == {"cpu": "1m", "memory": "4M"} for one in containers)
    assert all(one["securityContext"]["runAsNonRoot"] for one in containers)
    assert pod["automountServiceAccountToken"] is False
    assert pod.get("nodeSelector", {}) == spec.get("nodeSelector", {})
    assert pod.get("tolerations", []) == spec.get("tolerations", [])


def test_names_stay_short_and_apart() -> None:
    one, other = images_name("a" * 200), images_name("a" * 201)

    assert images_name("default") == "sandboxd-images-default"
    assert one != other
    assert max(len(one), len(other)) <= 52


def a_failing_pod() -> Json:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    return {"spec": {"nodeName": "node1"}, "status": {"containerStatuses": [{"name": "sandbox", "state": waiting}]}}


@pytest.mark.parametrize(
    ("world", "settings", "wanted"),
    [
        (a_world(a_template(), a_set()), SETTINGS, ("True", "Pulled", 2, 2)),
        (a_world(a_template(), a_set(ready=1)), SETTINGS, ("False", "Pulling", 2, 1)),
        (a_world(a_template(), a_set(ready=1), pods=[a_failing_pod()]), SETTINGS, ("False", "PullFailed", 2, 1)),
        (a_world(a_template(), a_set(generation=2)), SETTINGS, ("False", "Pulling", 2, 0)),
        (a_world(a_template(), a_set(desired=0, ready=0)), SETTINGS, ("False", "NoNode", 0, 0)),
        (a_world(a_template()), SETTINGS, ("False", "Pulling", 0, 0)),
        (a_world(a_template(), FOREIGN), SETTINGS, ("False", "ObjectForeign", 2, 2)),
        (a_world(a_template(), refusal="denied"), SETTINGS, ("False", "Refused", 0, 0)),
    ],
)
def test_the_status_of_a_template(world: ImagesWorld, settings: PlanSettings, wanted: tuple[object, ...]) -> None:
    status = images_status(world, settings, now=NOW)

    assert status is not None
    (condition,) = status["conditions"]
    assert (condition["status"], condition["reason"], status["nodes"], status["readyNodes"]) == wanted


def test_a_failed_pull_is_told_with_its_node_and_the_kubelets_words() -> None:
    status = images_status(a_world(a_template(), a_set(ready=1), pods=[a_failing_pod()]), SETTINGS, now=NOW)

    assert status is not None
    assert status["conditions"][0]["message"] == "node1: ImagePullBackOff: not found"


def test_a_status_is_written_when_it_is_new_and_by_its_own_installation_alone() -> None:
    told = images_status(a_world(a_template(), a_set()), SETTINGS, now=NOW)
    template = {**a_template(), "status": told}

    assert images_status(a_world(template, a_set()), SETTINGS, now="later") is None
    assert images_status(a_world(a_template(instance="other")), SETTINGS, now=NOW) is None
    assert images_status(a_world(a_template()), OFF, now=NOW) is None
    off = images_status(a_world(template), OFF, now=NOW)
    assert off is not None
    assert (off["conditions"][0]["reason"], off["nodes"]) == ("PrepullOff", 0)
