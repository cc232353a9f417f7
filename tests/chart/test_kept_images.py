"""What the chart makes of `keptImages`: settings that sandboxd takes, an account from a Secret, room, and a way out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sandboxd.images.signing import SignaturePolicy
from sandboxd.settings import load_settings, unknown_variables
from tests.chart.helm import NO_HELM, TRIAL, Object, find_helm, makers_of_pods, of_kind, pod_of, refusal, render
from tests.chart.rights import lines_of, rendered_rights

pytestmark = pytest.mark.skipif(find_helm() is None, reason=NO_HELM)
KEPT: Mapping[str, Any] = {
    "registry": "registry.test:5000",
    "address": "registry.registries.svc:5001",
    "repositoryPrefix": "sandboxes",
    "credentials": {"existingSecret": "robot"},
    "authority": {"existingSecret": "ca"},
    "signing": {"existingSecret": "signing", "trustSecret": "trust", "policy": "require"},
    "spoolGibibytes": 7,
    "cacheGibibytes": 2,
}


def component(made: Object) -> str:
    return str(made["metadata"]["labels"]["app.kubernetes.io/component"])


def pods_of(objects: list[Object]) -> dict[str, Object]:
    return {component(made): pod_of(made) for made in makers_of_pods(objects)}


def test_serve_and_the_sweep_get_settings_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pods = pods_of(render({**TRIAL, "keptImages": KEPT, "sweep": {"enabled": True}}))

    for role in ("serve", "sweep"):
        environment = {
            one["name"]: one.get("value", "robot")
            for one in pods[role]["containers"][0]["env"]
            if one["name"].startswith("SANDBOXD_IMAGES")
        }
        assert unknown_variables(environment) == []
        for name, file in (("AUTHORITY_FILE", "ca.crt"), ("PASSWORD_FILE", "password")):
            (tmp_path / file).write_text("x")
            environment[f"SANDBOXD_IMAGES_REGISTRY_{name}"] = str(tmp_path / file)
        (tmp_path / "signing.pem").write_text("x")
        environment["SANDBOXD_IMAGES_SIGNING_KEY_FILE"] = str(tmp_path / "signing.pem")
        environment["SANDBOXD_IMAGES_SIGNING_TRUST_DIR"] = str(tmp_path)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = load_settings()
        assert (settings.images_registry, settings.images_registry_address) == (KEPT["registry"], KEPT["address"])
        assert (settings.images_registry_user, settings.images_repository_prefix) == ("robot", "sandboxes")
        assert settings.images_signatures is SignaturePolicy.REQUIRE
        assert (settings.images_spool_bytes, settings.images_cache_bytes) == (7 << 30, 2 << 30)
    assert not any("IMAGES" in one["name"] for one in pods["gateway"]["containers"][0]["env"])


def test_the_volume_has_more_room_than_what_is_put_there_and_secrets_are_mounted_by_entry() -> None:
    serve = pods_of(render({**TRIAL, "keptImages": KEPT}))["serve"]

    volumes = {one["name"]: one for one in serve["volumes"]}
    mounts = {one["name"]: one for one in serve["containers"][0]["volumeMounts"]}
    assert volumes["images"] == {"name": "images", "emptyDir": {"sizeLimit": "13Gi"}}
    assert volumes["images-registry"]["secret"]["items"] == [{"key": "password", "path": "password"}]
    assert volumes["images-authority"]["secret"]["secretName"] == "ca"
    assert volumes["images-signing"]["secret"]["items"] == [{"key": "signing.pem", "path": "signing.pem"}]
    assert volumes["images-trust"]["secret"]["secretName"] == "trust"
    assert mounts["images-signing"]["readOnly"]
    assert mounts["images-trust"]["readOnly"]
    assert [mounts[name].get("readOnly", False) for name in ("images", "images-registry", "images-authority")] == [
        False,
        True,
        True,
    ]


def test_without_a_registry_there_is_nothing_of_it_and_without_an_account_no_secret() -> None:
    for values, names in (
        ({}, set()),
        ({"keptImages": {"registry": "registry.test", "plain": True}}, {"images"}),
    ):
        serve = pods_of(render({**TRIAL, **values}))["serve"]
        assert {one["name"] for one in serve["volumes"] if one["name"].startswith("images")} == names
        told = {one["name"] for one in serve["containers"][0]["env"] if one["name"].startswith("SANDBOXD_IMAGES")}
        assert bool(told) == bool(names)
        assert not {name for name in told if "PASSWORD" in name or "USER" in name or "AUTHORITY" in name}


@pytest.mark.parametrize(
    ("changes", "port"),
    [({}, 5001), ({"address": ""}, 5000), ({"registry": "r.test", "address": ""}, 443)],
)
def test_serve_and_the_sweep_may_reach_the_registry(changes: Mapping[str, str], port: int) -> None:
    policies = of_kind(render({**TRIAL, "keptImages": {**KEPT, **changes}}), "NetworkPolicy")

    allowed = {
        component(one) for one in policies if {"ports": [{"port": port, "protocol": "TCP"}]} in one["spec"]["egress"]
    }
    assert {"serve", "sweep"} <= allowed
    assert "operator" not in allowed


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"registry": "https://registry.test"}, "registry"),
        ({"repositoryPrefix": "/a"}, "repositoryPrefix"),
        ({"secrets": "ignore"}, "secrets"),
        ({"spoolGibibytes": "20Gi"}, "spoolGibibytes"),
        ({"password": "p"}, "password"),
        ({"kind": "quay"}, "kind"),
        ({"harbor": {"accountDays": 1}}, "accountDays"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: Mapping[str, Any], word: str) -> None:
    assert word in refusal({**TRIAL, "keptImages": values})


HARBOR: Mapping[str, Any] = {**KEPT, "kind": "harbor", "harbor": {"projectGigabytes": 30, "accountDays": 60}}
PULLS = "t-sandboxd-image-pulls"


def test_with_harbor_serve_keeps_accounts_in_a_secret_and_the_operator_finds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = render({**TRIAL, "keptImages": HARBOR})

    pods = pods_of(objects)
    told = {
        role: {one["name"]: str(one.get("value", "robot")) for one in pods[role]["containers"][0]["env"]}
        for role in ("serve", "operator")
    }
    assert told["serve"]["SANDBOXD_IMAGE_PULLS_SECRET"] == told["operator"]["SANDBOXD_IMAGE_PULLS_SECRET"] == PULLS
    own = f"own namespace: get secrets/{PULLS}", f"own namespace: update secrets/{PULLS}"
    assert set(own) <= rendered_rights(objects, "t-sandboxd-serve")
    plan = next(one for one in of_kind(objects, "ConfigMap") if "imagePulls" in str(one.get("data")))
    assert f'"imagePulls":{{"given":false,"secret":"{PULLS}"}}' in str(plan["data"])
    (tmp_path / "password").write_text("x")
    for name, value in told["serve"].items():
        if "HARBOR" in name or name.endswith(("_KIND", "_REGISTRY", "_USER", "_PREFIX", "PULLS_SECRET")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("SANDBOXD_IMAGES_REGISTRY_PASSWORD_FILE", str(tmp_path / "password"))
    settings = load_settings()
    assert (settings.images_registry_kind, settings.images_harbor_project_bytes) == ("harbor", 30 * 10**9)
    assert (settings.images_harbor_untagged_days, settings.images_harbor_account_days) == (7, 60)


@pytest.mark.parametrize("values", [KEPT, {**HARBOR, "harbor": {"pullAccounts": False}}, {**HARBOR, "registry": ""}])
def test_without_accounts_to_pull_with_there_is_no_secret_of_them(values: Mapping[str, Any]) -> None:
    objects = render({**TRIAL, "keptImages": values})

    assert not any("image-pulls" in str(one) or "IMAGE_PULLS" in str(one) for one in objects)


def test_harbor_without_an_account_is_refused() -> None:
    assert "credentials" in refusal({**TRIAL, "keptImages": {**HARBOR, "credentials": {"existingSecret": ""}}})


KANIKO: Mapping[str, Any] = {
    **KEPT,
    "builder": "kaniko",
    "kaniko": {"image": "registry.test:5000/kaniko", "agentImage": "registry.test:5000/agent", "secret": "robot"},
}


def test_builds_by_kaniko_get_a_namespace_where_serve_may_make_jobs_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = render({**TRIAL, "keptImages": KANIKO})

    place = next(one for one in of_kind(objects, "Namespace") if component(one) == "kaniko")["metadata"]
    own = [one for one in objects if one["metadata"].get("namespace") == "sys-images"]
    assert place["name"] == "sys-images"
    assert place["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    assert {one["kind"] for one in own} == {"Role", "RoleBinding", "ResourceQuota", "NetworkPolicy"}
    assert lines_of(next(one for one in own if one["kind"] == "Role")["rules"]) == {
        "create jobs.batch",
        "get jobs.batch",
        "delete jobs.batch",
        "list pods",
    }
    policy = next(one for one in own if one["kind"] == "NetworkPolicy")["spec"]
    assert (policy["ingress"], policy["egress"][-1]) == ([], {"ports": [{"port": 5000, "protocol": "TCP"}]})
    told = {one["name"]: one.get("value") for one in pods_of(objects)["serve"]["containers"][0]["env"]}
    kaniko = {name: value for name, value in told.items() if "IMAGES_KANIKO" in name or name.endswith("IMAGES_BUILDER")}
    assert unknown_variables(kaniko) == []
    for name, value in {**kaniko, "SANDBOXD_BACKEND": "kubernetes", "SANDBOXD_IMAGES_REGISTRY": "r.test"}.items():
        monkeypatch.setenv(name, str(value))
    settings = load_settings()
    assert (settings.images_builder, settings.images_kaniko_namespace) == ("kaniko", "sys-images")
    assert (settings.images_kaniko_secret, settings.images_kaniko_host_users) == ("robot", False)


def test_without_kaniko_there_is_no_namespace_of_it() -> None:
    objects = render({**TRIAL, "keptImages": {**KEPT, "kaniko": KANIKO["kaniko"]}})

    assert [one for one in objects if one["metadata"].get("namespace") == "sys-images"] == []
    assert "kaniko" not in {component(one) for one in of_kind(objects, "Namespace")}


@pytest.mark.parametrize("missing", ["image", "agentImage"])
def test_kaniko_without_an_image_is_refused(missing: str) -> None:
    values = {**KANIKO, "kaniko": {**KANIKO["kaniko"], missing: ""}}

    assert f"keptImages.kaniko.{missing}" in refusal({**TRIAL, "keptImages": values})
