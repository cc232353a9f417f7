"""What a pod prefers of nodes, and that it changes with the next incarnation and not before."""

from dataclasses import replace
from typing import Any

import pytest

from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_status import PlacedState, PlacedStatus
from sandboxd.operator.builders import Json, stateful_set, wanted_of
from sandboxd.operator.comparing import says
from sandboxd.operator.concluding import conclude
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import last_node_of
from sandboxd.operator.plan import Create, Patch, plan
from sandboxd.operator.template import Packing, Template
from tests.operator_world import (
    FIRST,
    NAMESPACE,
    NOW,
    SANDBOX,
    SECOND,
    SETTINGS,
    TEMPLATE,
    UID,
    a_desired,
    a_pod,
    a_set,
    a_spec,
    an_observed,
    bound,
    running,
    seen,
)

FRESH = PlacedStatus()
MOVED = bound(incarnation=SECOND, node="node2", last_node="node1")


@pytest.mark.parametrize(
    ("wanted", "status", "node"),
    [
        (FIRST, FRESH, ""),
        (FIRST, bound(), ""),
        (SECOND, bound(), "node1"),
        (SECOND, bound(state=PlacedState.STOPPED, pod_uid=""), "node1"),
        (SECOND, bound(incarnation=SECOND, node="node1", last_node="node1", pod_uid=""), "node1"),
        (SECOND, MOVED, "node1"),
        (FIRST, MOVED, "node2"),
    ],
    ids=[
        "the first has none",
        "nor while it runs",
        "the next prefers where the former ran",
        "also after a stop",
        "also while it waits for a node",
        "also once it runs elsewhere",
        "and the one after that prefers where it ran then",
    ],
)
def test_the_last_node(wanted: Any, status: PlacedStatus, node: str) -> None:
    assert last_node_of(a_desired(incarnation=wanted, status=status)) == node


def preferred(body: Json) -> list[str]:
    node = body["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in node
    terms = node.get("preferredDuringSchedulingIgnoredDuringExecution", [])
    return [field["values"][0] for term in terms for field in term["preference"]["matchFields"]]


def test_the_first_start_prefers_no_node_and_the_next_the_last_one() -> None:
    first = [step for wave in plan(a_desired(), an_observed(), SETTINGS) for step in wave if isinstance(step, Create)]
    again = a_desired(incarnation=SECOND, status=bound(state=PlacedState.STOPPED, pod_uid=""))
    there = running(stateful_set=a_set(replicas=0), pod=None)
    second = [step for wave in plan(again, there, SETTINGS) for step in wave if isinstance(step, Patch)]

    assert [preferred(step.body) for step in first] == [[]]
    assert [preferred(step.body) for step in second] == [["node1"]]


def test_the_operator_remembers_the_last_node_from_the_first_status_of_an_incarnation_on() -> None:
    desired = a_desired(incarnation=SECOND, status=bound())
    waiting = conclude(desired, running(pod=None), SETTINGS, now=NOW)
    pod = a_pod(incarnation=SECOND)
    pod["spec"]["nodeName"] = "node2"
    placed = conclude(a_desired(incarnation=SECOND, status=waiting), running(pod=pod), SETTINGS, now=NOW)

    assert (waiting.last_node, waiting.node) == ("node1", "node1")
    assert (placed.last_node, placed.node) == ("node1", "node2")


def test_a_pod_that_has_got_another_node_than_the_last_one_stays_as_it_was_made() -> None:
    desired = a_desired(incarnation=SECOND, status=MOVED)
    there = running(stateful_set=a_set(incarnation=SECOND, last_node="node1"), pod=a_pod(incarnation=SECOND))

    changes = [step for wave in plan(desired, there, SETTINGS) for step in wave if isinstance(step, Patch)]
    assert changes == []


def built(template: Template, *, last_node: str = "") -> Json:
    return stateful_set(
        SANDBOX, a_spec(), template, namespace=NAMESPACE, uid=UID, instance="test", replicas=1, last_node=last_node
    )


def test_packing_prefers_nodes_with_sandboxes_less_than_the_last_node() -> None:
    pod = built(replace(TEMPLATE, packing=Packing.PACK), last_node="node1")["spec"]["template"]["spec"]

    (node,) = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (beside,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert node["weight"] > beside["weight"]
    assert beside["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"


def test_the_template_names_scheduler_and_priority() -> None:
    template = Template.from_mapping(
        {"image": "i", "agentImage": "a", "schedulerName": "packing", "priorityClassName": "low", "packing": "Pack"}
    )

    pod = built(template)["spec"]["template"]["spec"]
    assert (pod["schedulerName"], pod["priorityClassName"], "podAffinity" in pod["affinity"]) == (
        "packing",
        "low",
        True,
    )


@pytest.mark.parametrize(
    "before",
    [
        replace(TEMPLATE, priority_class="low"),
        replace(TEMPLATE, packing=Packing.PACK),
        replace(TEMPLATE, scheduler="packing"),
        replace(TEMPLATE, tolerations=({"key": "gpu"},)),
        replace(TEMPLATE, node_selector={"pool": "gpu"}),
    ],
    ids=["priority", "packing", "scheduler", "tolerations", "selector"],
)
def test_what_a_template_says_no_more_is_taken_away(before: Template) -> None:
    found, wanted = seen(built(before, last_node="node1")), wanted_of(built(TEMPLATE, last_node="node1"))

    assert not says(found, wanted)
    assert says(seen(built(TEMPLATE, last_node="node1")), wanted)


def test_a_key_that_a_selector_has_no_more_is_taken_away() -> None:
    before = replace(TEMPLATE, node_selector={"pool": "gpu", "zone": "a"})
    after = replace(TEMPLATE, node_selector={"zone": "b"})
    found = seen(built(before))

    (patch,) = [
        step
        for wave in plan(a_desired(status=bound()), replace(running(stateful_set=found), template=after), SETTINGS)
        for step in wave
        if isinstance(step, Patch) and step.kind is Kind.STATEFUL_SET
    ]

    assert patch.body["spec"]["template"]["spec"]["nodeSelector"] == {"pool": None, "zone": "b"}


def test_a_sandbox_that_stays_stopped_keeps_its_last_node_in_its_status() -> None:
    desired = a_desired(mode=Mode.STOPPED, status=bound())
    status = conclude(desired, running(stateful_set=a_set(replicas=0), pod=None), SETTINGS, now=NOW)

    assert (status.state, status.node) == (PlacedState.STOPPED, "node1")
