"""What the chart makes of `backups`: the operator has the keys, serve knows the place, nobody else anything."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sandboxd.bootstrap.operator import operator_settings
from sandboxd.model.backup_retention import BackupRetention
from sandboxd.operator.tenancy import Allowed
from sandboxd.settings import load_settings, unknown_variables
from tests.chart.helm import NO_HELM, TRIAL, find_helm, makers_of_pods, pod_of, refusal, render

pytestmark = pytest.mark.skipif(find_helm() is None, reason=NO_HELM)
BACKUPS: Mapping[str, Any] = {
    "location": "s3:https://storage.test/bucket/prefix",
    "addresses": ["10.20.0.7/32:443"],
    "credentials": {"existingSecret": "storage"},
    "uploadKibibytes": 2048,
}


def environments(values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {
        str(made["metadata"]["labels"]["app.kubernetes.io/component"]): {
            one["name"]: one["value"]
            for one in pod_of(made)["containers"][0].get("env", ())
            if "BACKUP" in one["name"] or "SNAPSHOT" in one["name"]
        }
        for made in makers_of_pods(render({**TRIAL, **values}))
    }


def test_the_operator_gets_settings_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"repository": "registry.test/server", "digest": f"sha256:{'a' * 64}"}
    environment = environments(
        {"backups": {**BACKUPS, "resources": {"limits": {"cpu": 2, "memory": "3Gi"}}}, "image": image}
    )["operator"]
    assert unknown_variables(environment) == []
    (tmp_path / "credentials").write_text("keys")
    environment["SANDBOXD_BACKUPS_S3_CREDENTIALS_FILE"] = str(tmp_path / "credentials")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    plan = operator_settings(load_settings()).plan

    assert plan.backups is not None
    assert plan.backups.image == f"registry.test/server@sha256:{'a' * 64}"
    assert (plan.backups.location, plan.backups.upload_kibibytes) == (BACKUPS["location"], 2048)
    assert plan.backups.credentials() == b"keys"
    assert plan.backups.resources["limits"] == {"cpu": "2", "memory": "3Gi", "ephemeral-storage": "4G"}
    assert plan.network.storage == (Allowed(range="10.20.0.7/32", port=443),)
    assert plan.network.storage_named


def test_serve_knows_the_place_and_has_no_key() -> None:
    made = environments({"backups": BACKUPS})

    assert made["serve"]["SANDBOXD_BACKUPS_LOCATION"] == BACKUPS["location"]
    assert made["gateway"] == {}
    for one in makers_of_pods(render({**TRIAL, "backups": BACKUPS})):
        names = [volume.get("secret", {}).get("secretName") for volume in pod_of(one).get("volumes", ())]
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        assert ("storage" in names) == (component == "operator"), component


def test_what_is_made_and_kept_is_said_to_serve_in_settings_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = {"everySeconds": 31_536_000, "afterTerminate": False, "atOnce": 5}
    keeps = {"keepLast": 0, "keepDaily": 10_000, "keepWeekly": 1, "immutableSeconds": 315_360_000}
    drills = {"drillEverySeconds": 0, "drillBytes": 1 << 50}
    environment = environments({"backups": {**BACKUPS, **policy, **keeps, **drills}})["serve"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    settings = load_settings()

    assert unknown_variables(environment) == []
    assert (settings.backups_every_seconds, settings.backups_after_terminate, settings.backups_at_once) == (
        31_536_000,
        False,
        5,
    )
    assert (settings.backups_drill_every_seconds, settings.backups_drill_bytes) == (0, 1 << 50)
    assert settings.backup_retention == BackupRetention(
        keep_last=0, keep_daily=10_000, keep_weekly=1, immutable_for=timedelta(days=3650)
    )


def test_by_itself_the_chart_says_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = load_settings()
    for component, environment in environments({"backups": BACKUPS}).items():
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        made = load_settings()
        assert made.backup_retention == installed.backup_retention, component
        assert (made.backups_every_seconds, made.backups_after_terminate, made.backups_at_once) == (
            installed.backups_every_seconds,
            installed.backups_after_terminate,
            installed.backups_at_once,
        )
        assert (made.backups_drill_every_seconds, made.backups_drill_bytes) == (
            installed.backups_drill_every_seconds,
            installed.backups_drill_bytes,
        )
        assert (made.kubernetes_backup_cpu, made.kubernetes_backup_memory_request) == (
            installed.kubernetes_backup_cpu,
            installed.kubernetes_backup_memory_request,
        )


def test_snapshots_need_no_place_and_both_know_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"repository": "registry.test/server", "digest": f"sha256:{'a' * 64}"}
    made = environments({"backups": {"method": "snapshots", "snapshots": {"class": "retained"}}, "image": image})
    for name, value in made["operator"].items():
        monkeypatch.setenv(name, value)

    plan = operator_settings(load_settings()).plan

    assert plan.backups is None
    assert plan.snapshots is not None
    assert (plan.snapshots.image, plan.snapshots.snapshot_class) == (
        f"registry.test/server@sha256:{'a' * 64}",
        "retained",
    )
    assert made["serve"] == {"SANDBOXD_BACKUPS_METHOD": "snapshots", "SANDBOXD_KUBERNETES_SNAPSHOTS": "true"}
    assert made["gateway"] == {}


def test_older_snapshots_are_known_beside_files() -> None:
    made = environments({"backups": {**BACKUPS, "snapshots": {"enabled": True}}})

    for component in ("serve", "operator"):
        assert made[component]["SANDBOXD_BACKUPS_METHOD"] == "files", component
        assert made[component]["SANDBOXD_KUBERNETES_SNAPSHOTS"] == "true", component
        assert made[component]["SANDBOXD_BACKUPS_LOCATION"] == BACKUPS["location"], component


def test_without_a_place_nothing_is_said_of_backups() -> None:
    assert all(found == {} for found in environments({}).values())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"location": "/a/directory"}, "location"),
        ({"addresses": []}, "addresses"),
        ({"addresses": ["storage.test:443"]}, "addresses"),
        ({"credentials": {"existingSecret": ""}}, "existingSecret"),
        ({"uploadKibibytes": -1}, "uploadKibibytes"),
        ({"bucket": "x"}, "bucket"),
        ({"keepDaily": 10_001}, "keepDaily"),
        ({"immutableSeconds": -1}, "immutableSeconds"),
        ({"drillEverySeconds": -1}, "drillEverySeconds"),
        ({"drillEverySeconds": 31_536_001}, "drillEverySeconds"),
        ({"drillBytes": 0}, "drillBytes"),
        ({"drillBytes": "10Gi"}, "drillBytes"),
        ({"everySeconds": "daily"}, "everySeconds"),
        ({"resources": {"limits": {"memory": "much"}}}, "memory"),
        ({"method": "tapes"}, "method"),
        ({"snapshots": {"class": "Not A Name"}}, "class"),
    ],
)
def test_what_cannot_work_is_refused(change: Mapping[str, Any], word: str) -> None:
    assert word in refusal({**TRIAL, "backups": {**BACKUPS, **change}})
