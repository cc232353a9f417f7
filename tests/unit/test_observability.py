"""The page of metrics, the rules for alerts and the dashboard: what they name exists, and every alert has a runbook."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxd.dev.node import ToolchainError
from sandboxd.gateway.metrics import FAMILIES, family_of
from tools import grafana, metrics_page, promtool
from tools.go_tool import BUILD_SECONDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
RULES = yaml.safe_load((DOCS / "observability" / "alerts.yaml").read_text())["groups"]
DASHBOARD = json.loads((DOCS / "observability" / "dashboard.json").read_text())
ALERTS = [rule for group in RULES for rule in group["rules"]]
FOUND = metrics_page.rows(metrics_page.registries())
ROWS: Mapping[str, metrics_page.Row] = {
    **FOUND,
    **{
        f"{name}{end}": row
        for name, row in FOUND.items()
        for end in ("_bucket", "_sum", "_count")
        if row.kind == "histogram"
    },
}
EVERYWHERE = {"le", "instance", "job"}
"""Labels that Prometheus, or the kind of metric, adds."""


def expressions() -> Iterator[Any]:
    for rule in ALERTS:
        yield pytest.param(rule["expr"], id=rule["alert"])
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")


def test_the_page_of_metrics_says_what_the_registries_say() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.render(), "run .venv/bin/python tools/metrics_page.py"


@pytest.mark.parametrize("name", [name for name in FOUND if not name.startswith("process_")])
def test_a_metric_is_named_and_labelled_as_the_house_does(name: str) -> None:
    row = FOUND[name]

    assert name.startswith("sandboxd_")
    assert row.kind != "counter" or name.endswith("_total")
    assert row.kind != "histogram" or name.endswith(("_seconds", "_entries", "_bytes"))
    assert row.meaning.endswith("."), "a sentence"
    assert not set(row.labels) & {"client", "sandbox", "session", "turn", "user", "freelancer", "id", "name", "error"}


@pytest.mark.parametrize("expr", list(expressions()))
def test_an_expression_names_metrics_and_labels_that_exist(expr: str) -> None:
    plain = re.sub(r'"[^"]*"', '""', expr)
    named = re.findall(r"\b((?:sandboxd|process)_\w+)(?:\{([^}]*)\})?", plain)
    allowed = set[str]()

    assert named
    for name, selectors in named:
        assert name in ROWS, f"{name} is on no page"
        allowed |= set(ROWS[name].labels)
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors))
        assert used <= set(ROWS[name].labels) | EVERYWHERE, f"{name} has no label {used}"
    for by in re.findall(r"\bby \(([^)]*)\)", plain):
        assert {label.strip() for label in by.split(",")} <= allowed | EVERYWHERE
    assert plain.count("(") == plain.count(")")
    assert plain.count("{") == plain.count("}")
    histograms = re.findall(r"histogram_quantile\([^,]+, sum by \(([^)]*)\) \(rate\((\w+)\[", plain)
    assert all(name.endswith("_bucket") and "le" in by for by, name in histograms)
    assert len(histograms) == plain.count("histogram_quantile")


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_whole_and_has_a_runbook(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (DOCS.parent / page).read_text(), re.MULTILINE)

    assert re.fullmatch(r"Sandboxd[A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"].endswith(".")
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings, "write its runbook into docs/operations.md"


def test_no_alert_is_there_twice_and_no_panel_either() -> None:
    names = [rule["alert"] for rule in ALERTS]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]

    assert len(names) == len(set(names))
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("model", "family"),
    [
        *((name, name) for name in FAMILIES),
        ("gemini-2.5-flash-practice", "gemini-2.5-flash"),
        ("gemini-2.5-flash-lite-preview-09-2025", "gemini-2.5-flash-lite"),
        ("gemini-3-pro-preview", "gemini-3-pro"),
        ("gemini-2.5-flashy", "other"),
        ("gemini-9-ultra", "other"),
        ("", "other"),
    ],
)
def test_a_model_is_counted_as_its_family_or_as_other(model: str, family: str) -> None:
    assert family_of(model) == family


@pytest.mark.timeout(BUILD_SECONDS)
def test_prometheus_reads_the_rules_and_queries_and_each_alert_fires_when_it_should() -> None:
    try:
        wrong = promtool.check()
    except ToolchainError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))

    assert wrong == ""


@pytest.mark.timeout(BUILD_SECONDS)
def test_grafanas_own_types_read_the_dashboard_and_refuse_what_they_do_not_know() -> None:
    wrong = [
        _changed(lambda found: found["panels"][1].update(gridpos=found["panels"][1].pop("gridPos"))),
        _changed(lambda found: found["panels"][1]["targets"][0].update(expression="up")),
        _changed(lambda found: found["panels"][1].update(type="timeserie")),
        _changed(lambda found: found["panels"][1]["fieldConfig"]["defaults"].update(unit=5)),
        _changed(lambda found: found["panels"][1].update(options={"legend": {"displayMode": "nowhere"}})),
    ]
    try:
        found = grafana.check(json.dumps(DASHBOARD))
        refused = [grafana.check(json.dumps(one)) for one in wrong]
    except ToolchainError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))

    assert found == ""
    assert all(refused), refused


def test_no_two_panels_cover_each_other_and_each_shows_something() -> None:
    taken: dict[tuple[int, int], int] = {}

    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, "Grafana's grid has 24 columns"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["id"]) == panel["id"], panel["title"]
        assert (panel["type"] == "row") != bool(panel.get("targets")), panel["title"]


def _changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(DASHBOARD))
    change(found)
    return found


def test_every_alert_has_a_test_of_its_rule() -> None:
    tested = promtool.RULE_TESTS.read_text()

    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tested] == []
