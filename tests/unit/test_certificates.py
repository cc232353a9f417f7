"""The authority between agents and the service: what its certificates say, and how its files are made."""

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from sandboxd.backends.certificates import REPLICA_NAME, SERVICE_NAME, CertificateAuthority, Identity, agent_name
from sandboxd.model.ids import IncarnationId
from tests.fakes.manager import FakeClock

INCARNATION = IncarnationId("inc-01kb0000000000000000000000")


def names(identity: Identity) -> list[str]:
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


def usages(identity: Identity) -> list[x509.ObjectIdentifier]:
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_an_agents_certificate_names_its_incarnation_and_can_only_serve(tmp_path: Path) -> None:
    identity = CertificateAuthority.open(tmp_path, clock=FakeClock()).issue_agent(INCARNATION)

    assert names(identity) == [agent_name(INCARNATION)] == [f"{INCARNATION}.agent.sandboxd.internal"]
    assert usages(identity) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_services_certificate_names_the_service_and_can_only_call(tmp_path: Path) -> None:
    identity = CertificateAuthority.open(tmp_path, clock=FakeClock()).issue_service()

    assert names(identity) == [SERVICE_NAME]
    assert usages(identity) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_replicas_certificate_serves_and_calls_under_a_name_that_no_agent_has(tmp_path: Path) -> None:
    identity = CertificateAuthority.open(tmp_path, clock=FakeClock()).issue_replica()

    assert names(identity) == [REPLICA_NAME]
    assert usages(identity) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def test_certificates_are_signed_by_the_authority_and_valid_from_a_little_before(tmp_path: Path) -> None:
    clock = FakeClock()
    authority = CertificateAuthority.open(tmp_path, clock=clock)
    signer = x509.load_pem_x509_certificate(authority.certificate)

    made = x509.load_pem_x509_certificate(authority.issue_agent(INCARNATION).certificate)

    made.verify_directly_issued_by(signer)
    assert made.not_valid_before_utc < clock.now() < made.not_valid_after_utc
    assert made.not_valid_after_utc - clock.now() > timedelta(days=30)


def test_an_authority_that_was_made_is_opened_again(tmp_path: Path) -> None:
    first = CertificateAuthority.open(tmp_path, clock=FakeClock())

    assert CertificateAuthority.open(tmp_path, clock=FakeClock()).certificate == first.certificate


def test_services_that_start_at_once_get_one_authority(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: CertificateAuthority.open(tmp_path, clock=FakeClock()), range(8)))

    assert len({authority.certificate for authority in opened}) == 1


def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    directory = tmp_path / "pki"
    CertificateAuthority.open(directory, clock=FakeClock())

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_crash_before_the_certificate_was_written_is_repaired(tmp_path: Path) -> None:
    CertificateAuthority.open(tmp_path, clock=FakeClock())
    (tmp_path / "authority.pem").unlink()

    CertificateAuthority.open(tmp_path, clock=FakeClock()).issue_service()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    CertificateAuthority.open(tmp_path / "a", clock=FakeClock())
    CertificateAuthority.open(tmp_path / "b", clock=FakeClock())
    (tmp_path / "a" / "authority.key").write_bytes((tmp_path / "b" / "authority.key").read_bytes())

    with pytest.raises(ValueError, match="one authority"):
        CertificateAuthority.open(tmp_path / "a", clock=FakeClock())


def test_a_key_is_not_printed(tmp_path: Path) -> None:
    identity = CertificateAuthority.open(tmp_path, clock=FakeClock()).issue_service()

    assert "PRIVATE" not in repr(identity)
