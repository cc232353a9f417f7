"""Certificate files that change: the newest good pair is used, whatever happens to the files."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.tls.contexts import load_context
from sandboxd.tls.files import Material, Reloaded, TlsFiles, TlsFilesError, read_material
from tests.certificates import Authority, Issued
from tests.fakes.manager import FakeClock


@pytest.fixture
def authority() -> Authority:
    return Authority()


class Watched:
    def __init__(self, files: TlsFiles) -> None:
        self.clock = FakeClock()
        self._reloaded = Reloaded(files, read_material, monotonic=self.clock.monotonic)

    def now(self) -> Material:
        self.clock.advance(2)
        return self._reloaded.get()


def test_a_new_pair_is_used_once_both_files_are_there(authority: Authority, tmp_path: Path) -> None:
    old, new = authority.issue("localhost"), authority.issue("localhost")
    files = old.write(tmp_path)
    watched = Watched(files)
    assert watched.now().certificate == old.certificate

    files.certificate.write_bytes(new.certificate)  # and the key is still the old one's
    assert watched.now().certificate == old.certificate
    files.key.write_bytes(new.key)
    assert watched.now() == read_material(files)
    assert watched.now().key == new.key


def test_the_files_are_looked_at_now_and_then_and_not_with_every_handshake(
    authority: Authority, tmp_path: Path
) -> None:
    old, new = authority.issue("localhost"), authority.issue("localhost")
    files, clock = old.write(tmp_path), FakeClock()
    reloaded = Reloaded(files, read_material, look_every=timedelta(seconds=10), monotonic=clock.monotonic)

    new.write(tmp_path)

    clock.advance(9)
    assert reloaded.get().certificate == old.certificate
    clock.advance(1)
    assert reloaded.get().certificate == new.certificate


BROKEN: dict[str, Callable[[TlsFiles, Issued, Authority], object]] = {
    "half a certificate": lambda files, new, _: files.certificate.write_bytes(new.certificate[:200]),
    "an empty certificate": lambda files, _new, _: files.certificate.write_bytes(b""),
    "no certificate": lambda files, _new, _: files.certificate.unlink(),
    "half a key": lambda files, new, _: files.key.write_bytes(new.key[:50]),
    "another one's key": lambda files, new, _: files.key.write_bytes(new.key),
    "no key": lambda files, _new, _: files.key.unlink(),
    "a moved key": lambda files, _new, _: files.key.rename(files.key.parent / "directory"),
    "an expired pair": lambda files, _new, authority: authority.issue("x", ends=timedelta(hours=-1)).write(
        files.key.parent
    ),
    "garbage": lambda files, _new, _: files.certificate.write_bytes(b"\x00\xff" * 500),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_keep_the_old_pair_and_are_told_once(
    case: str, authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = authority.issue("localhost"), authority.issue("localhost")
    files = old.write(tmp_path)
    watched = Watched(files)

    BROKEN[case](files, new, authority)

    for _ in range(3):
        assert watched.now().certificate == old.certificate
    assert capsys.readouterr().out.count("tls.files_refused") == 1
    with pytest.raises(TlsFilesError):
        load_context(files)
    new.write(tmp_path)
    assert watched.now().certificate == new.certificate


def test_an_authority_of_clients_is_read_anew_too(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("localhost").write(tmp_path)
    file = authority.write(tmp_path)
    files = TlsFiles(certificate=pair.certificate, key=pair.key, client_authority=file)
    watched = Watched(files)
    assert watched.now().client_authority == authority.pem

    other = Authority()
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    assert watched.now().client_authority == authority.pem
    other.write(tmp_path)
    assert watched.now().client_authority == other.pem


def test_the_words_of_a_refusal_name_the_file_and_hold_no_key(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue("localhost").write(tmp_path)
    files.key.write_bytes(authority.issue("localhost").key)

    with pytest.raises(TlsFilesError, match=r"server\.key is not that of the certificate") as refused:
        read_material(files)

    assert "PRIVATE" not in f"{refused.value} {read_material(authority.issue('x').write(tmp_path))!r}"
