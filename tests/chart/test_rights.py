"""What our service accounts may do in a cluster is what the committed lists say, and no list holds a skeleton key."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import NO_HELM, TRIAL, find_helm, render
from tests.chart.rights import EVERYWHERE, committed_rights, rendered_rights

COMPONENTS = ("serve", "gateway", "operator", "prepare")


@pytest.mark.skipif(find_helm() is None, reason=NO_HELM)
@pytest.mark.parametrize("component", COMPONENTS)
def test_the_chart_gives_each_part_what_its_list_says(component: str) -> None:
    objects = render(release="sandboxd", namespace="system")

    assert rendered_rights(objects, f"sandboxd-{component}") == committed_rights(component)


@pytest.mark.skipif(find_helm() is None, reason=NO_HELM)
@pytest.mark.parametrize("values", [{"method": "snapshots"}, {"snapshots": {"enabled": True}}])
def test_with_snapshots_the_operator_may_do_what_their_own_list_says_and_nobody_else_more(values: Any) -> None:
    objects = render({**TRIAL, "backups": values}, release="sandboxd", namespace="system")

    more = rendered_rights(objects, "sandboxd-operator") - committed_rights("operator")
    assert more == committed_rights("operator-snapshots")
    for component in ("serve", "gateway", "prepare"):
        assert rendered_rights(objects, f"sandboxd-{component}") == committed_rights(component)


@pytest.mark.parametrize("component", [*COMPONENTS, "operator-snapshots"])
def test_no_part_may_do_everything_run_commands_or_widen_its_rights(component: str) -> None:
    rights = committed_rights(component)

    assert not [line for line in rights if "*" in line]
    for word in ("pods/exec", "pods/attach", "pods/portforward", "roles", "rolebindings", "serviceaccounts", "nodes/"):
        assert not [line for line in rights if word in line], word


def test_the_gateway_may_do_nothing() -> None:
    assert committed_rights("gateway") == set()


def test_serve_reads_one_secret_and_the_operator_no_claim_away() -> None:
    secrets = {line for line in committed_rights("serve") if " secrets" in line}

    assert secrets == {
        "own namespace: get secrets/sandboxd-api-keys",
        "own namespace: update secrets/sandboxd-api-keys",
    }
    assert f"{EVERYWHERE}: delete persistentvolumeclaims" not in committed_rights("operator")
    # Those of probes are the operator's (docs/adr/0041); it makes StatefulSets anyway, which make any pod.
    assert f"{EVERYWHERE}: create pods" not in committed_rights("serve")
    assert f"{EVERYWHERE}: create statefulsets.apps" in committed_rights("operator")
