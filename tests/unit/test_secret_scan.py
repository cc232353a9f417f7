"""Which keys and tokens are found in what would be kept, and what looks like one and is none."""

import time

import pytest

from sandboxd.images.secret_scan import SCANNED_BYTES, find_secret, is_scanned

# Put together here, so that no scanner of repositories takes them for real ones.
BODY = "Zm9vYmFyYmF6cXV4" * 8
FOUND = {
    "google": "AIza" + "SyA" + "b" * 32,
    "google-oauth": "ya29." + "a0Af" + "b" * 40,
    "google-client": "GOCSPX-" + "c" * 28,
    "google-refresh": "1//0" + "g" * 60,
    "github": "ghp_" + "A1" * 18,
    "github-fine": "github_pat_" + "A" * 22 + "_" + "b" * 59,
    "gitlab": "glpat-" + "x" * 20,
    "aws": "aws_access_key_id = AKIA" + "Q3EGRIYV" * 2,
    "anthropic": "sk-ant-" + "api03-" + "a" * 93,
    "openai": "sk-proj-" + "a" * 20 + "T3BlbkFJ" + "b" * 20,
    "huggingface": "hf_" + "a" * 34,
    "slack": "xoxb-" + "123456789012-" + "a" * 24,
    "stripe": "sk_live_" + "a" * 24,
    "sendgrid": "SG." + "a" * 22 + "." + "b" * 43,
    "digitalocean": "dop_v1_" + "0" * 64,
    "npm": "npm_" + "a" * 36,
    "pypi": "pypi-" + "AgEIcHlwaS5vcmc" + "a" * 60,
    "docker": "dckr_" + "pat_" + "a" * 27,
    "ours": "sbx-" + "token-" + "a" * 40,
    "jwt": "eyJhbGciOiJIUzI1NiJ9" + "." + "eyJzdWIiOiIxMjM0In0" + "." + "s" * 43,
    "rsa": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + BODY,
    "encrypted-rsa": "-----BEGIN RSA " + "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\n" + BODY,
    "openssh": "-----BEGIN OPENSSH " + "PRIVATE KEY-----\r\n" + BODY,
    "pgp": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----\n\n" + BODY,
    "service-account": '{"private_key": "-----BEGIN ' + "PRIVATE KEY-----\\n" + BODY + '"}',
    "age": "AGE-SECRET-KEY-1" + "Q" * 58,
}
NOTHING = {
    "empty": "",
    "public": "-----BEGIN PUBLIC KEY-----\n" + BODY,
    "certificate": "-----BEGIN CERTIFICATE-----\n" + BODY,
    "words": "password = secret\nurl = https://user:pass@example.com/",
    "a program that reads keys": 'if line == "-----BEGIN PRIVATE KEY-----": key = read()',
    "documentation of AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "a hash": "sha256:" + "0123456789abcdef" * 4,
    "too short": "ghp_short AIzaShort npm_x hf_transfer",
    "longer than a key": "AIza" + "a" * 80,
}


@pytest.mark.parametrize("content", FOUND.values(), ids=FOUND)
def test_keys_are_found_wherever_they_are_in_a_text(content: str) -> None:
    for text in (content, f"\xff first\nkey={content}\nlast", f"'{content}'"):
        assert find_secret(b"srv/app/.env", text.encode("latin-1")) == "token"


@pytest.mark.parametrize("content", NOTHING.values(), ids=NOTHING)
def test_what_only_looks_like_one_is_none(content: str) -> None:
    assert find_secret(b"srv/app/.env", content.encode()) is None


def test_what_is_no_text_is_not_searched() -> None:
    assert find_secret(b"srv/app", b"\x7fELF\0" + FOUND["github"].encode()) is None


def test_settings_with_credentials_are_a_secret_of_another_kind() -> None:
    assert find_secret(b"etc/pip.conf", b"index-url = https://me:word@pypi.example/simple") == "secret"
    assert find_secret(b"etc/pip.conf", b"index-url = https://pypi.example/simple") is None


@pytest.mark.parametrize(
    ("path", "scanned"),
    [
        (b"etc/app.conf", True),
        (b"root/notes", True),
        (b"srv/app/config.py", True),
        (b"usr/local/bin/deploy", True),
        (b"usr/local/etc/npmrc", True),
        (b"usr/lib/python3.11/test/key.pem", False),
        (b"usr/share/doc/x", False),
        (b"usr/local/lib/python3.12/dist-packages/jwt/api.py", False),
        (b"opt/venv/lib/python3.11/site-packages/PyJWT.dist-info/METADATA", False),
        (b"srv/app/node_modules/jose/README.md", False),
        (b"var/lib/dpkg/info/x.postinst", False),
        (b"etc/ssl/private/ssl-cert-snakeoil.key", False),
        (b"etc/ssl/private/shop.example.key", True),
    ],
)
def test_what_packages_bring_is_not_searched(path: bytes, *, scanned: bool) -> None:
    assert is_scanned(path) is scanned


def test_a_file_made_to_be_slow_is_not() -> None:
    hostile = [
        b"eyJ" + b"a" * 20 + b".",
        b"-----BEGIN PRIVATE KEY-----\n",
        b"AIza",
        b"a-b:",
        b"sk-" + b"a" * 50,
        b"1//0",
    ]
    began = time.process_time()

    for piece in hostile:
        find_secret(b"srv/x", (piece * (SCANNED_BYTES // len(piece) + 1))[:SCANNED_BYTES])
        find_secret(b"srv/x", (piece + b"a" * SCANNED_BYTES)[:SCANNED_BYTES] + b"T3BlbkFJ")

    assert time.process_time() - began < 10
