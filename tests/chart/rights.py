"""What a service account may do, one line each, by the rules that a chart renders or that a cluster answers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.chart.helm import Object, of_kind

LISTS: Final = Path(__file__).parent / "rights"
"""The committed lists, `<component>.txt`: what an installation trusts its parts with."""
EVERYWHERE: Final = "all namespaces"
OWN: Final = "own namespace"

Rule = Mapping[str, Any]
"""Any: JSON."""


def lines_of(rules: Iterable[Rule]) -> set[str]:
    """Return one line for each verb on each resource."""
    return {
        f"{verb} {resource}{f'.{group}' if group else ''}{f'/{name}' if name else ''}"
        for rule in rules
        for group in rule.get("apiGroups") or ()
        for resource in rule.get("resources") or ()
        for name in rule.get("resourceNames") or ("",)
        for verb in rule["verbs"]
    }


def rendered_rights(objects: Sequence[Object], account: str) -> set[str]:
    """What the chart's bindings give an account; what holds in its own namespace alone says so."""
    found = set()
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        for binding in of_kind(objects, kind):
            if all(subject["name"] != account for subject in binding["subjects"]):
                continue
            role = of_kind(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])[0]
            where = OWN if kind == "RoleBinding" else EVERYWHERE
            found |= {f"{where}: {line}" for line in lines_of(role["rules"])}
    return found


def committed_rights(component: str) -> set[str]:
    """Read the committed list."""
    lines = (LISTS / f"{component}.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}
