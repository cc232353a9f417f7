import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.kubeapi.access import KubeConfigError, load_access
from sandboxd.kubeapi.kubeconfig import read_plain
from tests.certificates import Authority


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")


def a_kubeconfig(directory: Path, *, cluster: dict[str, Any], user: dict[str, Any], name: str = "config") -> Path:
    path = directory / name
    content = {
        "current-context": "here",
        "contexts": [{"name": "other"}, {"name": "here", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "one", "cluster": {"server": "https://127.0.0.1:6443/", **cluster}}],
        "users": [{"name": "me", "user": user}],
    }
    path.write_text(json.dumps(content))
    return path


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def bearer(path: Path) -> str:
    access = await load_access(path)
    return (await access.headers()).get("authorization", "")


async def test_certificates_in_the_file_or_beside_it_are_used_and_the_library_stays_away(
    tmp_path: Path, authority: Authority
) -> None:
    mine = authority.issue("client")
    beside = mine.write(tmp_path, "mine")
    authority.write(tmp_path, "ca.crt")
    inside = {"client-certificate-data": encoded(mine.certificate), "client-key-data": encoded(mine.key)}
    names = {"client-certificate": "mine.pem", "client-key": str(beside.key)}
    loaded = set(sys.modules)

    one = await load_access(
        a_kubeconfig(tmp_path, cluster={"certificate-authority-data": encoded(authority.pem)}, user=inside)
    )
    two = await load_access(a_kubeconfig(tmp_path, cluster={"certificate-authority": "ca.crt"}, user=names))

    assert one.host == two.host == "https://127.0.0.1:6443"
    for access in (one, two):
        assert access.ssl.check_hostname
        assert len(access.ssl.get_ca_certs()) == 1, "the cluster's authority, and no other"
        assert await access.headers() == {}
    assert not {name for name in set(sys.modules) - loaded if name.startswith("kubernetes_asyncio")}


async def test_a_token_is_shown_and_one_in_a_file_is_read_each_time(tmp_path: Path, authority: Authority) -> None:
    cluster = {"certificate-authority-data": encoded(authority.pem)}
    (tmp_path / "token").write_text("first\n")
    access = await load_access(a_kubeconfig(tmp_path, cluster=cluster, user={"tokenFile": "token"}))

    assert await access.headers() == {"authorization": "Bearer first"}
    (tmp_path / "token").write_text("second\n")
    assert await access.headers() == {"authorization": "Bearer second"}
    assert await bearer(a_kubeconfig(tmp_path, cluster=cluster, user={"token": "word"})) == "Bearer word"


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ({}, {"exec": {"command": "aws"}}),
        ({}, {"auth-provider": {"name": "oidc"}}),
        ({}, {"username": "me", "password": "word"}),
        ({"insecure-skip-tls-verify": True}, {}),
        ({"tls-server-name": "api"}, {}),
        ({"server": "http://127.0.0.1:8080"}, {}),
    ],
)
def test_what_is_not_plain_is_left_to_the_library(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any]
) -> None:
    assert read_plain(a_kubeconfig(tmp_path, cluster=cluster, user=user)) is None


def test_several_files_are_left_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = a_kubeconfig(tmp_path, cluster={}, user={"token": "word"})

    monkeypatch.setenv("KUBECONFIG", f"{one}:{one}")
    assert read_plain(None) is None
    monkeypatch.setenv("KUBECONFIG", str(one))
    assert read_plain(None) is not None


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "a: b", "current-context: none\ncontexts: []\nclusters: []\nusers: []"]
)
async def test_what_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)

    with pytest.raises(KubeConfigError, match=str(path)):
        await load_access(path)


async def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    path = a_kubeconfig(tmp_path, cluster={"certificate-authority": "gone.crt"}, user={})

    with pytest.raises(KubeConfigError, match=r"gone\.crt"):
        await load_access(path)


@pytest.mark.parametrize("content", ["", "\n"])
async def test_an_empty_authority_is_refused_and_not_the_systems_taken(tmp_path: Path, content: str) -> None:
    (tmp_path / "ca.crt").write_text(content)
    path = a_kubeconfig(tmp_path, cluster={"certificate-authority": "ca.crt"}, user={"token": "word"})

    with pytest.raises(KubeConfigError, match="authority is empty"):
        await load_access(path)


async def test_a_pod_uses_its_service_account_whose_token_the_kubelet_renews(
    tmp_path: Path, authority: Authority, in_a_pod: None
) -> None:
    authority.write(tmp_path, "ca.crt")
    (tmp_path / "token").write_text("first\n")

    access = await load_access(None, service_account=tmp_path)

    assert (access.host, len(access.ssl.get_ca_certs())) == ("https://[fd00::1]:443", 1)
    assert await access.headers() == {"authorization": "Bearer first"}
    (tmp_path / "token").write_text("second\n")
    assert await access.headers() == {"authorization": "Bearer second"}


@pytest.mark.parametrize(("missing", "told"), [("token", "token"), ("ca.crt", "ca.crt"), ("", "authority is empty")])
async def test_a_service_account_that_cannot_be_used_is_named(
    tmp_path: Path, authority: Authority, in_a_pod: None, missing: str, told: str
) -> None:
    authority.write(tmp_path, "ca.crt")
    (tmp_path / "token").write_text("word")
    if missing:
        (tmp_path / missing).unlink()
    else:
        (tmp_path / "ca.crt").write_text("")

    with pytest.raises(KubeConfigError, match=f"the service account in {tmp_path}.*{told}"):
        await load_access(None, service_account=tmp_path)
