"""The page of metrics, the rules for alerts and the dashboard: what they name exists, and every alert has a runbook."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxd.dev.node import ToolchainError
from sandboxd.gateway.metrics import FAMILIES, family_of
from tools import metrics_page, promtool
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


def test_every_alert_has_a_test_of_its_rule() -> None:
    tested = promtool.RULE_TESTS.read_text()

    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tested] == []
