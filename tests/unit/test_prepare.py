"""The chart's hook: what it makes is made once, belongs together, and can be used from read-only files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sandboxd.api.callers.key_set import FileKeys
from sandboxd.backends.certificates import CertificateAuthority
from sandboxd.bootstrap.installation_keys import CERTIFICATE_LIFETIME, Certificate, ServerAuthority
from sandboxd.bootstrap.prepare import Place, Plan, PlanError, Preparation, ServerPlace
from sandboxd.gateway.key_files import DirectoryVerifyingKeys, ensure_token_keys
from sandboxd.gateway.key_hashes import ensure_secret
from sandboxd.persistence.audit_keys import FileAuditKeys
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeClock

NAMESPACE = "system"
SERVERS = ["serve", "serve.system.svc"]


def place(secret: str, *, given: bool = False, host: str = "") -> Place:
    return Place(secret=secret, given=given, host=host)


PLAN = Plan(
    namespace=NAMESPACE,
    labels={"app.kubernetes.io/part-of": "sandboxd"},
    agent_authority=place("agents"),
    signing=place("signing"),
    token_trust=place("token-trust"),
    audit_trust=place("audit-trust"),
    api_keys=place("api-keys"),
    callers=place("callers"),
    tls_authority=place("tls-authority"),
    postgresql=place("postgresql", host="db.system.svc"),
    certificates=[ServerPlace(place=place("serve-tls"), names=SERVERS)],
)


@pytest.fixture
async def kube() -> FakeKube:
    made = FakeKube()
    await made.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    return made


def entries(kube: FakeKube, secret: str) -> Mapping[str, bytes]:
    found = kube.objects["secrets", NAMESPACE, secret]
    return {name: base64.b64decode(value) for name, value in found["data"].items()}


def mounted(kube: FakeKube, secret: str, directory: Path) -> Path:
    """As the kubelet does it: files that nobody may write."""
    directory.mkdir()
    for name, value in entries(kube, secret).items():
        (directory / name).write_bytes(value)
        (directory / name).chmod(0o440)
    directory.chmod(0o550)
    return directory


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for made in tmp_path.iterdir():
        made.chmod(0o750)


async def test_where_accounts_to_pull_with_are_made_there_is_a_secret_for_them_which_is_never_emptied(
    kube: FakeKube,
) -> None:
    await Preparation(kube, PLAN).run()
    assert ("secrets", NAMESPACE, "image-pulls") not in kube.objects

    plan = replace(PLAN, image_pulls=place("image-pulls"))
    await Preparation(kube, plan).run()
    assert entries(kube, "image-pulls") == {}
    kube.objects["secrets", NAMESPACE, "image-pulls"]["data"]["acme"] = "eA=="
    await Preparation(kube, plan).run()

    assert entries(kube, "image-pulls") == {"acme": b"x"}


async def test_what_is_there_stays_as_it_is(kube: FakeKube) -> None:
    await Preparation(kube, PLAN).run()
    before = {key: made["data"] for key, made in kube.objects.items() if key[0] == "secrets"}

    await Preparation(kube, PLAN).run()

    assert {key: made["data"] for key, made in kube.objects.items() if key[0] == "secrets"} == before


async def test_an_entry_that_is_missing_is_added_and_the_others_stay(kube: FakeKube) -> None:
    await Preparation(kube, PLAN).run()
    whole = dict(entries(kube, "signing"))
    del kube.objects["secrets", NAMESPACE, "signing"]["data"]["audit.pem"]

    await Preparation(kube, PLAN).run()

    now = entries(kube, "signing")
    assert now.keys() == whole.keys()
    assert now["audit.pem"] != whole["audit.pem"]
    assert {name: value for name, value in now.items() if name != "audit.pem"} == {
        name: value for name, value in whole.items() if name != "audit.pem"
    }
    assert len(entries(kube, "audit-trust")) == 2  # what the former key signed is still believed


async def test_every_role_can_use_what_was_made_from_read_only_files(kube: FakeKube, mounts: Path) -> None:
    await Preparation(kube, PLAN).run()
    signing = mounted(kube, "signing", mounts / "signing")
    audit_trust = mounted(kube, "audit-trust", mounts / "audit-trust")
    token_trust = mounted(kube, "token-trust", mounts / "token-trust")

    authority = CertificateAuthority.open(mounted(kube, "agents", mounts / "pki"), clock=FakeClock())
    _, key_id = ensure_token_keys(private_file=signing / "sandbox-tokens.pem", public_directory=mounts / "own")
    audit = FileAuditKeys(private_file=signing / "audit.pem", public_directory=audit_trust)

    assert authority.issue_service().certificate
    assert DirectoryVerifyingKeys(token_trust).find(key_id) is not None
    assert audit.check(audit.key_id, b"head", audit.sign(b"head")) is True
    assert len(ensure_secret(signing / "key-hashes.secret")) == 32
    load_pem_private_key((signing / "erasure-proofs.pem").read_bytes(), password=None)
    FileKeys(mounted(kube, "callers", mounts / "callers") / "callers.json")


async def test_the_database_has_two_users_and_the_addresses_name_them(kube: FakeKube) -> None:
    await Preparation(kube, PLAN).run()

    made = {name: value.decode() for name, value in entries(kube, "postgresql").items()}
    assert made["url"] == f"postgresql://sandboxd_service:{made['service-password']}@db.system.svc:5432/sandboxd"
    assert made["owner-url"] == f"postgresql://sandboxd_owner:{made['owner-password']}@db.system.svc:5432/sandboxd"
    assert made["service-password"] != made["owner-password"]


async def test_a_secret_that_somebody_keeps_is_never_written(kube: FakeKube) -> None:
    plan = replace(PLAN, signing=place("theirs", given=True))
    await kube.create(
        f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": "theirs"}, "data": {"audit.pem": "eA=="}}
    )

    with pytest.raises(PlanError, match=r"system/theirs.*lacks erasure-proofs\.pem, key-hashes\.secret"):
        await Preparation(kube, plan).run()

    assert kube.objects["secrets", NAMESPACE, "theirs"]["data"] == {"audit.pem": "eA=="}


async def test_a_secret_that_the_values_name_and_that_is_not_there_is_said(kube: FakeKube) -> None:
    with pytest.raises(PlanError, match="system/theirs.*does not exist"):
        await Preparation(kube, replace(PLAN, agent_authority=place("theirs", given=True))).run()


def test_a_certificate_is_made_anew_for_new_names_and_before_it_ends() -> None:
    clock = FakeClock()
    authority = ServerAuthority(clock).missing({})
    first = Certificate(authority, names=SERVERS, clock=clock).missing({})

    assert Certificate(authority, names=SERVERS, clock=clock).missing(first) == {}
    assert Certificate(authority, names=[*SERVERS, "api.example"], clock=clock).missing(first)
    clock.advance(CERTIFICATE_LIFETIME.total_seconds() * 0.7)
    renewed = Certificate(authority, names=SERVERS, clock=clock).missing(first)

    assert renewed["ca.crt"] == first["ca.crt"]
    ends = x509.load_pem_x509_certificate(renewed["tls.crt"]).not_valid_after_utc
    assert ends - clock.now() > CERTIFICATE_LIFETIME - timedelta(days=1)


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="plan"):
        Plan.read(json.dumps({"namespace": "a"}))
