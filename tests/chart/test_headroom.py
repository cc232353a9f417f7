"""Room that placeholders hold: below sandboxes in priority, as large as a sandbox of their tier asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sandboxd.model.quantity import parse_quantity, scale_bytes, scale_cpu
from sandboxd.operator.template import Template
from tests.chart.helm import NO_HELM, TRIAL, find_helm, of_kind, pod_of, refusal, render

pytestmark = pytest.mark.skipif(find_helm() is None, reason=NO_HELM)

TEMPLATE: Mapping[str, Any] = {
    "image": "sandbox@sha256:1",
    "agentImage": "agent@sha256:2",
    "nodeSelector": {"pool": "sandboxes"},
    "tolerations": [{"key": "sandboxes", "operator": "Exists"}],
}
VALUES: Mapping[str, Any] = {
    **TRIAL,
    "sandboxTemplates": {"default": TEMPLATE, "low": {**TEMPLATE, "priorityClassName": "their-own"}},
    "headroom": {"basic": {"replicas": 3}, "premium": {"replicas": 1}},
}
LIMITS = {"basic": ("1", "2G"), "standard": ("2", "4G"), "premium": ("4", "8G")}


def test_placeholders_have_the_lower_priority_and_push_nobody_away() -> None:
    classes = {one["metadata"]["name"]: one for one in of_kind(render(VALUES), "PriorityClass")}

    placeholders, sandboxes = classes["sys-t-sandboxd-placeholders"], classes["sys-t-sandboxd-sandboxes"]
    assert placeholders["value"] < 0 <= sandboxes["value"]
    assert placeholders["preemptionPolicy"] == "Never"
    assert not any(one.get("globalDefault") for one in classes.values())


def test_templates_get_the_priority_of_sandboxes_unless_they_name_another() -> None:
    templates = {one["metadata"]["name"]: one["spec"] for one in of_kind(render(VALUES), "SandboxTemplate")}

    named = {name: spec["priorityClassName"] for name, spec in templates.items()}
    assert named == {"default": "sys-t-sandboxd-sandboxes", "low": "their-own"}
    off = render({**VALUES, "headroom": {}, "sandboxPriority": {"enabled": False}})
    assert "priorityClassName" not in of_kind(off, "SandboxTemplate", "default")[0]["spec"]
    assert not of_kind(off, "PriorityClass")


def test_a_placeholder_holds_what_a_sandbox_of_its_tier_requests_where_the_template_puts_it() -> None:
    values = {**VALUES, "headroom": {tier: {"replicas": 2} for tier in LIMITS}}
    read = Template.from_mapping(TEMPLATE)
    made = {one["metadata"]["name"].rpartition("-")[2]: one for one in of_kind(render(values), "Deployment")}

    for tier, (cpu, memory) in LIMITS.items():
        pod = pod_of(made[tier])
        (container,) = pod["containers"]
        requests = container["resources"]["requests"]
        assert made[tier]["spec"]["replicas"] == 2
        assert parse_quantity(requests["cpu"]) == parse_quantity(scale_cpu(cpu, read.cpu_factor))
        assert parse_quantity(requests["memory"]) == parse_quantity(scale_bytes(memory, read.memory_factor))
        assert (pod["nodeSelector"], pod["tolerations"]) == (TEMPLATE["nodeSelector"], TEMPLATE["tolerations"])
        assert container["image"] == TEMPLATE["image"]
        assert pod["priorityClassName"] == "sys-t-sandboxd-placeholders"
        assert pod["terminationGracePeriodSeconds"] == 0


def test_without_replicas_there_is_neither_placeholder_nor_their_class() -> None:
    objects = render({**TRIAL, "sandboxTemplates": {"default": TEMPLATE}})

    assert [one["metadata"]["name"] for one in of_kind(objects, "PriorityClass")] == ["sys-t-sandboxd-sandboxes"]
    assert not [one for one in of_kind(objects, "Deployment") if "headroom" in one["metadata"]["name"]]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({**VALUES, "sandboxTemplate": "elsewhere"}, "headroom.image"),
        ({**VALUES, "sandboxPriority": {"value": -20}}, "headroom.priority"),
        ({**VALUES, "headroom": {"priority": 0}}, "priority"),
        ({**VALUES, "headroom": {"basic": {"memory": "lots"}}}, "memory"),
    ],
)
def test_headroom_that_could_not_work_is_refused(values: Mapping[str, Any], word: str) -> None:
    assert word in refusal(values)
