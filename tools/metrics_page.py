"""Writes docs/metrics.md from the registries of the roles; a test compares them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from sandboxd import __version__
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.rooms import build_rooms
from sandboxd.dev.identity import DevIssuer
from sandboxd.gateway.metrics import GatewayMetrics
from sandboxd.monitor.process_metrics import ProcessMetrics
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.persistence.engine import DatabaseSettings, make_engine
from sandboxd.persistence.metrics import DatabaseMetrics
from sandboxd.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
HEAD = """# Metrics

`serve` shows its metrics at `/metrics` of `SANDBOXD_WEB_LISTEN`, the gateway at `SANDBOXD_GATEWAY_WEB_LISTEN`, the
operator at `SANDBOXD_OPERATOR_WEB_LISTEN`. No such port needs a token: no metric tells anything about one client. Every
label's values are a closed set; no id, name, model or text is ever one. A test drives 500 sandboxes and fails where a
process has more than 3,900 series.

What to watch, and what to do about it: [operations.md](operations.md). Rules for alerts and a dashboard for Grafana:
[observability/](observability/alerts.yaml). Histograms add `_bucket`, `_sum` and `_count`.

This page is made by `.venv/bin/python tools/metrics_page.py`.

| Metric | Kind | Labels | Role | Meaning |
| --- | --- | --- | --- | --- |
"""


@dataclass(kw_only=True)
class Row:
    """One line of the page."""

    kind: str
    labels: tuple[str, ...]
    meaning: str
    roles: list[str] = field(default_factory=list)


def registries() -> Mapping[str, CollectorRegistry]:
    """Make the registry of each role, as the role itself makes it; nothing connects."""
    return asyncio.run(_make())


async def _make() -> Mapping[str, CollectorRegistry]:
    gateway = CollectorRegistry()
    GatewayMetrics(gateway)
    ProcessMetrics(gateway, role="gateway", version=__version__)
    operator = CollectorRegistry()
    OperatorMetrics(operator)
    ProcessMetrics(operator, role="operator", version=__version__)
    engine = make_engine(DatabaseSettings(url=NOWHERE))
    DatabaseMetrics(gateway, engine)
    await engine.dispose()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        program = home / "program"
        program.touch()
        settings = Settings(data_dir=home, node=program, gemini_cli=program, otlp_endpoint=None)
        await asyncio.to_thread(DevIssuer.open, settings)
        assert KeyFiles(home=settings.home).caller_keys.exists()
        rooms = build_rooms(settings, NOWHERE)
        await rooms.database.close()
        return {"serve": rooms.seen.registry, "gateway": gateway, "operator": operator}


def rows(made: Mapping[str, CollectorRegistry]) -> Mapping[str, Row]:
    """Return what is to be said of each metric."""
    found: dict[str, Row] = {}
    for role, registry in made.items():
        # The public way, `collect`, leaves out metrics whose labels were never used.
        for collector in list(registry._collector_to_names):  # noqa: SLF001
            labels = collector._labelnames if isinstance(collector, MetricWrapperBase) else ()  # noqa: SLF001
            described = collector.describe() if isinstance(collector, MetricWrapperBase) else collector.collect()
            for metric in described:
                name = f"{metric.name}_total" if metric.type == "counter" else metric.name
                row = found.setdefault(name, Row(kind=metric.type, labels=tuple(labels), meaning=metric.documentation))
                row.roles.append(role)
    return dict(sorted(found.items()))


def render() -> str:
    """Return the page."""
    lines = []
    for name, row in rows(registries()).items():
        labels = ", ".join(f"`{label}`" for label in row.labels)
        meaning = row.meaning.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{name}` | {row.kind} | {labels} | {', '.join(row.roles)} | {meaning} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render())
