"""What the chart makes of `registryGarbageCollection`: nothing collects before pushes are held, nor after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

from sandboxd.ctl.app import app
from tests.chart.helm import NO_HELM, TRIAL, Object, find_helm, of_kind, pod_of, refusal, render

pytestmark = pytest.mark.skipif(find_helm() is None, reason=NO_HELM)
COLLECT: Mapping[str, Any] = {
    "enabled": True,
    "image": "registry:2",
    "maxMinutes": 60,
    "waitMinutes": 20,
    "config": {"existingConfigMap": "registry"},
    "storage": {"existingClaim": "registry"},
    "credentials": {"tokenSecret": "platform-token"},
}


def rendered(more: Mapping[str, Any] | None = None, **values: Any) -> list[Object]:  # Any: values of the chart
    return render({**TRIAL, **values, "registryGarbageCollection": {**COLLECT, **(more or {})}})


def job_of(objects: list[Object]) -> Object:
    (made,) = of_kind(objects, "CronJob", "t-sandboxd-collect")
    return made


def policy_of(objects: list[Object], name: str) -> Object:
    (made,) = of_kind(objects, "NetworkPolicy", f"t-sandboxd-{name}")
    spec: Object = made["spec"]
    return spec


def test_it_is_off_by_default() -> None:
    assert of_kind(render(), "CronJob", "t-sandboxd-collect") == []


def test_the_hold_stands_before_the_collection_and_outlasts_it_and_is_what_sandboxctl_takes() -> None:
    pod = pod_of(job_of(rendered()))
    (hold,), (collect,) = pod["initContainers"], pod["containers"]

    assert hold["restartPolicy"] == "Always", "a sidecar, which the kubelet ends after the other"
    assert hold["startupProbe"]["exec"]["command"][-1] == hold["args"][-1]
    assert hold["startupProbe"]["periodSeconds"] * hold["startupProbe"]["failureThreshold"] > 20 * 60
    assert hold["args"][3:5] == ["--for", "60m"]
    assert pod["activeDeadlineSeconds"] + pod["terminationGracePeriodSeconds"] < 60 * 60
    assert pod["restartPolicy"] == "Never"
    assert job_of(rendered())["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert job_of(rendered())["spec"]["concurrencyPolicy"] == "Forbid"
    assert collect["args"] == ["garbage-collect", "--delete-untagged", "/etc/registry/config.yml"]
    taken = CliRunner().invoke(app, [*hold["args"], "--help"])
    assert taken.exit_code == 0, taken.output
    options = {one for one in hold["args"] if one.startswith("--")}
    assert all(one in taken.output for one in options)


def test_each_container_sees_no_more_than_it_needs() -> None:
    pod = pod_of(job_of(rendered()))
    (hold,), (collect,) = pod["initContainers"], pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in (hold, collect):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
    assert {one["name"] for one in hold["volumeMounts"]} == {"hold", "serve-authority", "credentials"}
    assert {one["name"] for one in collect["volumeMounts"]} == {"config", "tmp", "storage"}
    assert not any("hostPath" in one for one in pod["volumes"])


def test_it_reaches_serve_alone_and_serve_lets_it_in() -> None:
    s3 = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 9000}]}
    callers = [{"namespaceSelector": {"matchLabels": {"team": "platform"}}}]
    objects = rendered({"egress": [s3]}, networkPolicy={"callersFrom": callers})
    names, serve, storage = policy_of(objects, "collect")["egress"]

    assert policy_of(objects, "collect")["ingress"] == []
    assert {one["port"] for one in names["ports"]} == {53}
    assert serve["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "serve"
    assert serve["ports"] == [{"port": "grpc", "protocol": "TCP"}]
    assert storage == s3
    calls = policy_of(objects, "serve")["ingress"][0]["from"]
    assert calls[0] == callers[0]
    assert calls[1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "collect"
    assert (
        policy_of(render({**TRIAL, "networkPolicy": {"callersFrom": callers}}), "serve")["ingress"][0]["from"]
        == callers
    )


def test_with_a_certificate_it_calls_the_platform_s_port_and_with_s3_it_mounts_nothing() -> None:
    more = {
        "credentials": {"certificateSecret": "platform"},
        "storage": {},
        "config": {"existingSecret": "registry"},
        "environmentSecret": "s3",
        "deleteUntagged": False,
        "command": ["docker-registry"],
    }
    pod = pod_of(job_of(rendered(more, callers={"platformAuthority": "platform-ca"})))
    (hold,), (collect,) = pod["initContainers"], pod["containers"]
    told = {one["name"]: one.get("value") for one in hold["env"]}

    assert told["SANDBOXCTL_ADDRESS"] == "t-sandboxd-serve.sys.svc:50053"
    assert told["SANDBOXCTL_CERT_KEY"] == "/etc/sandboxd/collect/tls.key"
    assert "SANDBOXCTL_TOKEN_FILE" not in told
    assert collect["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert (collect["command"], collect["args"]) == (
        ["docker-registry"],
        ["garbage-collect", "/etc/registry/config.yml"],
    )
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert "storage" not in volumes
    assert volumes["config"]["secret"]["secretName"] == "registry"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"image": ""}, "image"),
        ({"config": {}}, "config"),
        ({"config": {"existingConfigMap": "a", "existingSecret": "b"}}, "config"),
        ({"credentials": {}}, "credentials"),
        ({"credentials": {"certificateSecret": "a"}}, "platformAuthority"),
        ({"waitMinutes": 60}, "waitMinutes"),
        ({"maxMinutes": 361}, "maxMinutes"),
        ({"user": 0}, "user"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_name(more: Mapping[str, Any], word: str) -> None:
    assert word in refusal({**TRIAL, "registryGarbageCollection": {**COLLECT, **more}})


def test_harbor_collects_by_itself() -> None:
    kept = {"registry": "r.test", "kind": "harbor", "credentials": {"existingSecret": "robot"}}
    assert "Harbor" in refusal({**TRIAL, "keptImages": kept, "registryGarbageCollection": COLLECT})
