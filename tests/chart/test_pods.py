"""Every pod of the chart's own: unprivileged, bounded, and with a token of the API only where it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.chart.helm import NO_HELM, TRIAL, Object, find_helm, makers_of_pods, of_kind, pod_of, render

pytestmark = pytest.mark.skipif(find_helm() is None, reason=NO_HELM)

EVERYTHING: Mapping[str, Any] = {
    **TRIAL,
    "sweep": {"enabled": True},
    "callers": {"platformAuthority": "platform"},
    "serve": {"autoscaling": {"enabled": True}},
    "keptImages": {"registry": "registry.test", "credentials": {"existingSecret": "robot"}},
    "sandboxTemplates": {"default": {"image": "sandbox@sha256:1"}},
    "headroom": {"basic": {"replicas": 2}, "premium": {"replicas": 1}},
    "metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}},
}
WITH_TOKEN = {"serve", "operator", "sweep", "prepare"}


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render(EVERYTHING)


def component(made: Object) -> str:
    return str(made["metadata"]["labels"]["app.kubernetes.io/component"])


def test_every_pod_satisfies_the_restricted_standard(objects: list[Object]) -> None:
    for made in makers_of_pods(objects):
        pod = pod_of(made)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all("hostPath" not in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_every_container_has_requests_and_a_limit_of_memory(objects: list[Object]) -> None:
    for made in makers_of_pods(objects):
        for container in pod_of(made)["containers"]:
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_only_those_that_talk_to_the_api_server_have_a_token(objects: list[Object]) -> None:
    with_token = {component(made) for made in makers_of_pods(objects) if pod_of(made)["automountServiceAccountToken"]}

    assert with_token == WITH_TOKEN
    assert all(account["automountServiceAccountToken"] is False for account in of_kind(objects, "ServiceAccount"))


def test_the_gateway_alone_mounts_the_api_keys(objects: list[Object]) -> None:
    mounting = {
        component(made)
        for made in makers_of_pods(objects)
        for volume in pod_of(made)["volumes"]
        if volume.get("secret", {}).get("secretName") == "t-sandboxd-api-keys"
    }

    assert mounting == {"gateway"}


def test_no_role_has_rights_for_the_gateway(objects: list[Object]) -> None:
    bound = {
        subject["name"]
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for binding in of_kind(objects, kind)
        for subject in binding["subjects"]
    }

    assert bound == {"t-sandboxd-serve", "t-sandboxd-operator", "t-sandboxd-prepare"}


def test_api_keys_are_mounted_as_a_directory_that_follows_changes(objects: list[Object]) -> None:
    gateway = next(made for made in of_kind(objects, "Deployment") if component(made) == "gateway")

    mounts = [mount for mount in pod_of(gateway)["containers"][0]["volumeMounts"] if mount["name"] == "api-keys"]

    assert [("subPath" in mount, mount["readOnly"]) for mount in mounts] == [(False, True)]


def test_no_secret_is_part_of_a_release(objects: list[Object]) -> None:
    assert of_kind(objects, "Secret") == []


def test_a_selector_has_nothing_that_changes_with_a_version(objects: list[Object]) -> None:
    for made in of_kind(objects, "Deployment") + of_kind(objects, "StatefulSet"):
        assert made["spec"]["selector"]["matchLabels"].keys() == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }


def test_a_service_finds_the_pods_that_it_is_for(objects: list[Object]) -> None:
    makers = makers_of_pods(objects)
    for service in of_kind(objects, "Service"):
        selector = service["spec"]["selector"].items()
        found = [
            made
            for made in makers
            if made["kind"] != "CronJob" and selector <= made["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(found) == 1
        names = {port["name"] for container in pod_of(found[0])["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names | {5432}


def test_serve_has_time_to_drain_before_it_is_killed(objects: list[Object]) -> None:
    serve = next(made for made in of_kind(objects, "Deployment") if component(made) == "serve")
    pod = pod_of(serve)
    variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}

    waits = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pod["terminationGracePeriodSeconds"] >= waits + int(variables["SANDBOXD_DRAIN_SECONDS"]) + 5
