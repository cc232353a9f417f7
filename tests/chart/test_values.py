"""The chart's values: each is documented by its own name and known to the schema; what is wrong is refused in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.chart.helm import CHART, NO_HELM, TRIAL, find_helm, refusal, render, run_helm

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
needs_helm = pytest.mark.skipif(find_helm() is None, reason=NO_HELM)


def test_each_value_has_a_comment_that_begins_with_its_name() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()

    undocumented = []
    for number, line in enumerate(lines):
        found = re.fullmatch(r"( *)(\w+):.*", line)
        if found is None or _inside_resources(lines, number, len(found[1])):
            continue
        above = number - 1
        while above >= 0 and lines[above].startswith(f"{found[1]}# "):
            above -= 1
        if not lines[above + 1].startswith(f"{found[1]}# {found[2]} "):
            undocumented.append(f"{number + 1}: {line}")

    assert undocumented == []


def _inside_resources(lines: list[str], number: int, indent: int) -> bool:
    """Requests and limits are Kubernetes' own words."""
    before = number
    while before >= 0 and (not lines[before].strip() or len(lines[before]) - len(lines[before].lstrip()) >= indent):
        before -= 1
    return before >= 0 and lines[before].strip() == "resources:"


def test_the_schema_knows_each_value_and_no_other() -> None:
    assert set(_paths(VALUES, SCHEMA)) == set(_properties(SCHEMA)) - {"global"}


def _paths(values: Mapping[str, Any], schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for name, value in values.items():
        inner = _resolved(schema["properties"][name])
        if isinstance(value, dict) and "properties" in inner and name != "resources":
            yield from _paths(value, inner, f"{at}{name}.")
        else:
            yield f"{at}{name}"


def _properties(schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for name, value in schema["properties"].items():
        inner = _resolved(value)
        if "properties" in inner and name != "resources":
            assert inner["additionalProperties"] is False, f"{at}{name} takes anything"
            yield from _properties(inner, f"{at}{name}.")
        else:
            yield f"{at}{name}"


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    return SCHEMA["$defs"][reference.rsplit("/", 1)[1]] if reference else schema


@needs_helm
def test_the_chart_passes_lint_without_a_warning() -> None:
    done = run_helm("lint", str(CHART), "--strict", "--kube-version", "1.36.0", values=TRIAL)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@needs_helm
@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "database.existingSecret"),
        ({"database": {"existingSecret": "a", "bundled": {"enabled": True}}}, "exclude each other"),
        ({**TRIAL, "srve": {}}, "srve"),
        ({**TRIAL, "serve": {"replica": 3}}, "replica"),
        ({**TRIAL, "serve": {"replicas": 0}}, "replicas"),
        ({**TRIAL, "image": {"digest": "latest"}}, "digest"),
        ({**TRIAL, "callers": {"jwksUrl": "http://issuer.example"}}, "jwksUrl"),
        ({**TRIAL, "serve": {"autoscaling": {"enabled": True, "minReplicas": 7}}}, "minReplicas"),
        (
            {**TRIAL, "serve": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}},
            "serve.resources.requests.cpu",
        ),
        ({**TRIAL, "serve": {"settings": {"SANDBOXD_MAX_STREAMS": "5"}}}, "SANDBOXD_MAX_STREAMS"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_their_name(values: Mapping[str, Any], word: str) -> None:
    assert word in refusal(values)


@needs_helm
def test_the_least_values_render() -> None:
    assert render(TRIAL)


@needs_helm
def test_a_rollback_runs_no_hook_so_that_neither_definitions_nor_schema_go_back() -> None:
    events = {(one["metadata"].get("annotations") or {}).get("helm.sh/hook") for one in render(TRIAL)} - {None}

    assert events == {"pre-install,pre-upgrade"}
