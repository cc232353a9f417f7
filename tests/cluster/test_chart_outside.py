"""The chart with things of one's own: a PostgreSQL outside the release, and Secrets that somebody else keeps."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from sandboxd.dev.identity import DevIssuer
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.settings import load_settings
from tests.certificates import Authority
from tests.chart.helm import CHART, NO_HELM, Object, find_helm
from tests.cluster.release import API_KEY, Release, read_images
from tests.cluster.test_chart import IMAGES, Talk
from tests.kube import Cluster

pytestmark = [
    pytest.mark.skipif(find_helm() is None, reason=NO_HELM),
    pytest.mark.skipif(not IMAGES.exists(), reason="there are no images: `make images` builds them"),
    pytest.mark.timeout(600),
]
OWNERS = "SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname = 'public'"
USERS = (
    "SELECT string_agg(DISTINCT usename, ',') FROM pg_stat_activity "
    "WHERE datname = 'sandboxd' AND pid <> pg_backend_pid()"
)


@pytest.fixture
async def place(cluster: Cluster, instance: str, tmp_path: Path) -> AsyncIterator[Release]:
    made = Release(cluster=cluster, instance=instance, images=read_images(IMAGES), home=tmp_path)
    try:
        await made.prepare_place()
        yield made
    finally:
        await made.remove()


async def test_a_postgresql_outside_and_secrets_of_ones_own_are_used_and_nothing_is_made_beside_them(
    place: Release,
) -> None:
    passwords = {"owner": secrets.token_hex(8), "service": secrets.token_hex(8)}
    await place.cluster.apply(_postgresql(place, passwords))
    await place.cluster.kubectl(
        "wait", "pod/db", "--for=condition=Ready", "--timeout=90s", "-n", place.namespace, within=100
    )
    names = {name: f"my-{name}" for name in ("database", "serve", "gateway", "callers", "keys")}
    await place.cluster.apply(_secrets(place, names, passwords))
    place.overrides = {
        "database": {"existingSecret": names["database"], "bundled": {"enabled": False}},
        "tls": {one: {"existingSecret": names[one]} for one in ("serve", "gateway")},
        "callers": {"existingSecret": names["callers"]},
        "apiKeys": {"existingSecret": names["keys"]},
        "serve": {"replicas": 1},
        "operator": {"replicas": 1},
    }

    await place.install()
    await place.open(authority=names["serve"])
    async with place.client("acme") as caller:
        sandbox = await caller.create(display_name="first", freelancer="ada", approval_mode="yolo")
        async with caller.stream(sandbox.name) as stream:
            talk = Talk(stream=stream)
            await talk.say("run: printf 'the answer is %d' 0x2a > answer && cat answer")
        told = "\n".join([str(event) async for event in caller.history(stream.session)])

    assert (talk.turns, talk.failures) == (1, [])
    assert "the answer is 42" in told, told
    assert await _asked(place, OWNERS) == "sandboxd_owner", "the hook migrated as the owner"
    assert await _asked(place, USERS) == "sandboxd_service", "serve and gateway log in as who owns nothing"
    made = {one["metadata"]["name"] for one in (await place.get("secrets"))["items"]}
    assert set(names.values()) <= made
    assert not {f"{place.full}-{one}" for one in ("serve-tls", "gateway-tls", "callers", "postgresql")} & made
    jobs = [one["metadata"]["name"] for one in (await place.get("jobs"))["items"]]
    assert [name for name in jobs if "-sweep-" not in name] == [], "hooks that succeeded are taken away"


async def _asked(place: Release, query: str) -> str:
    shell = f'$(ls -d /usr/lib/postgresql/*/bin | tail -1)/psql -h /tmp -U postgres -At sandboxd -c "{query}"'
    return (await place.cluster.run_in(place.namespace, "db", "sh", "-c", shell)).strip()


def _secrets(place: Release, names: Mapping[str, str], passwords: Mapping[str, str]) -> list[Object]:
    authority = Authority("a company")
    issuer = DevIssuer.open(load_settings(data_dir=place.home))
    host = f"db.{place.namespace}.svc"
    entries: dict[str, dict[str, bytes]] = {
        "database": {
            f"{entry}": f"postgresql://sandboxd_{user}:{passwords[user]}@{host}/sandboxd".encode()
            for entry, user in (("url", "service"), ("owner-url", "owner"))
        },
        "callers": {"callers.json": json.dumps({"keys": [issuer.public_key()]}).encode()},
        "keys": {"default": API_KEY.encode()},
    }
    for component, hosts in (("serve", ("localhost",)), ("gateway", ())):
        full = f"{place.full}-{component}"
        issued = authority.issue(full, f"{full}.{place.namespace}.svc", *hosts)
        entries[component] = {"tls.crt": issued.certificate, "tls.key": issued.key, "ca.crt": authority.pem}
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls" if "tls.crt" in data else "Opaque",
            "metadata": {"name": names[name], "namespace": place.namespace},
            "data": {entry: base64.b64encode(value).decode() for entry, value in data.items()},
        }
        for name, data in entries.items()
    ]


def _postgresql(place: Release, passwords: Mapping[str, str]) -> list[Object]:
    """A PostgreSQL that no release knows, made by the script of the bundled one, with the roles of the docs."""
    where = {"namespace": place.namespace, "labels": {"app": "db", INSTANCE_LABEL: place.namespace}}
    script = (CHART / "files" / "postgresql.sh").read_text()
    volumes: dict[str, Object] = {
        "data": {"emptyDir": {}},
        "script": {"configMap": {"name": "db"}},
        "passwords": {"secret": {"secretName": "db", "defaultMode": 0o444}},
    }
    mounts = {"data": "/data", "script": "/etc/sandboxd/script", "passwords": "/etc/sandboxd/passwords"}
    container = {
        "name": "postgresql",
        "image": place.images.postgres,
        "command": ["/bin/sh", "/etc/sandboxd/script/start.sh"],
        "readinessProbe": {
            "exec": {"command": ["/bin/sh", "/etc/sandboxd/script/start.sh", "ready"]},
            "periodSeconds": 1,
        },
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "db", **where}, "data": {"start.sh": script}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db", **where}, "stringData": dict(passwords)},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "db", **where},
            "spec": {"selector": {"app": "db"}, "ports": [{"port": 5432}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "db", **where},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999},
                "containers": [container],
                "volumes": [{"name": name, **source} for name, source in volumes.items()],
            },
        },
    ]
