"""Tokens and key sets: which are good, and the word that each bad one is refused with."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK
from typing_extensions import override

from sandboxd.api.callers.claims import ClaimRules
from sandboxd.api.callers.key_set import FileKeys, Keys, KeySet, KeySetError, parse_key_set
from sandboxd.api.callers.proof import acting_for
from sandboxd.api.callers.tokens import BearerTokens
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId
from tests.fakes.manager import FakeClock
from tests.issuers import AUDIENCE, ISSUER, TokenIssuer, a_key, jwk_of, key_set, part, signed_by_hmac


class FixedKeys(Keys):
    def __init__(self, keys: KeySet) -> None:
        self.keys = keys
        self.renewals = 0

    @override
    def find(self, key_id: str | None) -> PyJWK | None:
        return self.keys.find(key_id)

    @override
    async def renew(self) -> None:
        self.renewals += 1


class Fixture:
    def __init__(self, *issuers: TokenIssuer, rules: ClaimRules | None = None) -> None:
        self.clock = FakeClock()
        self.issuers = issuers or (TokenIssuer(),)
        self.keys = FixedKeys(parse_key_set(key_set(*[issuer.jwk for issuer in self.issuers])))
        self.tokens = BearerTokens(
            keys=self.keys, rules=rules or ClaimRules(issuer=ISSUER, audience=AUDIENCE), clock=self.clock
        )

    def claims(self, **changes: Any) -> dict[str, Any]:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": self.now + 300,
            "sub": "ada",
            "client": "acme",
            "role": "freelancer",
        } | changes
        return {name: value for name, value in claims.items() if value is not ...}

    @property
    def now(self) -> int:
        return int(self.clock.now().timestamp())

    def token(self, **changes: Any) -> str:
        return self.issuers[0].sign(self.claims(**changes))

    async def check(self, token: str) -> Caller:
        return (await self.tokens.check(f"Bearer {token}")).caller

    async def reason(self, token: str) -> str:
        with pytest.raises(SandboxdError) as refused:
            await self.check(token)
        assert token not in f"{refused.value.message}{refused.value.metadata}" or not token
        return refused.value.reason


@pytest.mark.parametrize("algorithm", ["EdDSA", "RS256", "ES256"])
async def test_a_token_of_each_algorithm_says_who_calls(algorithm: str) -> None:
    fixture = Fixture(TokenIssuer(algorithm=algorithm))

    caller = await fixture.check(fixture.token())

    assert caller == Caller(client=ClientId("acme"), subject="ada", role=Role.FREELANCER)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 0}, "TOKEN_EXPIRED"),
        ({"exp": ...}, "TOKEN_CLAIM_INVALID"),
        ({"exp": "tomorrow"}, "TOKEN_CLAIM_INVALID"),
        ({"exp": True}, "TOKEN_CLAIM_INVALID"),
        ({"exp": 10**400}, "TOKEN_CLAIM_INVALID"),
        ({"exp": float("inf")}, "TOKEN_CLAIM_INVALID"),
        ({"exp": float("nan")}, "TOKEN_CLAIM_INVALID"),
        ({"exp": -5}, "TOKEN_CLAIM_INVALID"),
        ({"nbf": 4e9}, "TOKEN_NOT_YET_VALID"),
        ({"iat": 4e9}, "TOKEN_NOT_YET_VALID"),
        ({"nbf": "now"}, "TOKEN_CLAIM_INVALID"),
        ({"iss": "https://other"}, "TOKEN_ISSUER_UNKNOWN"),
        ({"iss": [ISSUER]}, "TOKEN_ISSUER_UNKNOWN"),
        ({"iss": ...}, "TOKEN_ISSUER_UNKNOWN"),
        ({"aud": "other"}, "TOKEN_AUDIENCE_WRONG"),
        ({"aud": ["a", "b"]}, "TOKEN_AUDIENCE_WRONG"),
        ({"aud": {AUDIENCE: 1}}, "TOKEN_AUDIENCE_WRONG"),
        ({"aud": ...}, "TOKEN_AUDIENCE_WRONG"),
        ({"sub": ...}, "TOKEN_CLAIM_INVALID"),
        ({"sub": "Ada Lovelace"}, "TOKEN_CLAIM_INVALID"),
        ({"sub": "a" * 64}, "TOKEN_CLAIM_INVALID"),
        ({"client": ...}, "TOKEN_CLAIM_INVALID"),
        ({"client": ""}, "TOKEN_CLAIM_INVALID"),
        ({"client": "../x"}, "TOKEN_CLAIM_INVALID"),
        ({"client": ["acme"]}, "TOKEN_CLAIM_INVALID"),
        ({"client": "", "role": "platform"}, "TOKEN_CLAIM_INVALID"),
        ({"role": "root"}, "TOKEN_CLAIM_INVALID"),
        ({"role": ["platform"]}, "TOKEN_CLAIM_INVALID"),
        ({"role": ...}, "TOKEN_CLAIM_INVALID"),
    ],
)
async def test_a_genuine_token_with_wrong_claims_is_refused_and_told_what_is_wrong(
    changes: dict[str, Any], reason: str
) -> None:
    fixture = Fixture()

    assert await fixture.reason(fixture.token(**changes)) == reason


def tampered(fixture: Fixture) -> str:
    header, _, signature = fixture.token().split(".")
    return f"{header}.{part(fixture.claims(role='platform'))}.{signature}"


def signed_by_a_stranger(fixture: Fixture) -> str:
    return TokenIssuer().sign(fixture.claims())


def with_the_public_key_as_a_secret(fixture: Fixture) -> str:
    public = fixture.issuers[0].key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return signed_by_hmac(public, fixture.claims(), kid="one")


FORGERIES = {
    "changed after it was signed": (tampered, "TOKEN_INVALID"),
    "signed by a stranger under a known kid": (signed_by_a_stranger, "TOKEN_INVALID"),
    "alg none": (lambda f: f"{part({'alg': 'none', 'kid': 'one'})}.{part(f.claims())}.", "TOKEN_INVALID"),
    "alg None": (lambda f: f"{part({'alg': 'None', 'kid': 'one'})}.{part(f.claims())}.AA", "TOKEN_INVALID"),
    "HMAC with the public key": (with_the_public_key_as_a_secret, "TOKEN_INVALID"),
    "another algorithm than the key's": (
        lambda f: TokenIssuer(algorithm="RS256").sign(f.claims(), alg="RS256"),
        "TOKEN_INVALID",
    ),
    "its own key in the header": (
        lambda f: (stranger := TokenIssuer()).sign(f.claims(), jwk=stranger.jwk),
        "TOKEN_INVALID",
    ),
    "an address of keys in the header": (
        lambda f: TokenIssuer().sign(f.claims(), jku="http://127.0.0.1:1/keys"),
        "TOKEN_INVALID",
    ),
    "an extension that it calls critical": (
        lambda f: f.issuers[0].sign(f.claims(), crit=["exp"], exp=1),
        "TOKEN_INVALID",
    ),
    "a kid that nobody has": (lambda f: f.issuers[0].sign(f.claims(), kid="two"), "TOKEN_KEY_UNKNOWN"),
    "a kid that is no text": (lambda f: f"{part({'alg': 'EdDSA', 'kid': 1})}.{part(f.claims())}.AA", "TOKEN_INVALID"),
    "a huge kid": (lambda f: f.issuers[0].sign(f.claims(), kid="k" * 500), "TOKEN_INVALID"),
    "a payload that is a list": (lambda f: jwt.api_jws.encode(b"[1]", f.issuers[0].key, "EdDSA"), "TOKEN_INVALID"),
    "a payload of brackets": (
        lambda f: jwt.api_jws.encode(b"[" * 5000, f.issuers[0].key, "EdDSA", headers={"kid": "one"}),
        "TOKEN_INVALID",
    ),
    "a header of brackets": (lambda f: base64.b64encode(b"[" * 5000).decode() + ".e30.AA", "TOKEN_INVALID"),
    "a number of many digits": (
        lambda f: jwt.api_jws.encode(b'{"exp":' + b"9" * 5000 + b"}", f.issuers[0].key, "EdDSA"),
        "TOKEN_INVALID",
    ),
    "padding": (lambda f: f.token() + "=", "TOKEN_INVALID"),
    "the other alphabet": (lambda f: f.token().replace("_", "/").replace("-", "+") + "/", "TOKEN_INVALID"),
    "a line break": (lambda f: f.token()[:-3] + "\n" + f.token()[-3:], "TOKEN_INVALID"),
    "no signature": (lambda f: f.token().rpartition(".")[0] + ".", "TOKEN_INVALID"),
    "half a signature": (lambda f: f.token()[:-40], "TOKEN_INVALID"),
    "a signature of zeros": (lambda f: f.token().rpartition(".")[0] + "." + "A" * 86, "TOKEN_INVALID"),
    "a long header": (lambda f: f.issuers[0].sign(f.claims(), x5c="x" * 3000), "TOKEN_INVALID"),
    "huge": (lambda f: f.token(text="x" * 9000), "TOKEN_INVALID"),
    "garbage": (lambda f: "a.b.c", "TOKEN_INVALID"),
    "one part": (lambda f: "abcdef", "TOKEN_INVALID"),
    "not ASCII": (lambda f: f.token() + "\u00e9", "TOKEN_INVALID"),
    "five parts, encrypted": (lambda f: ".".join(["e30"] * 5), "TOKEN_INVALID"),
    "two tokens in one header": (lambda f: f"{f.token()},Bearer {f.token()}", "TOKEN_INVALID"),
    "empty": (lambda f: "", "TOKEN_MISSING"),
}


@pytest.mark.parametrize("case", FORGERIES)
async def test_a_forged_token_is_refused(case: str) -> None:
    make, reason = FORGERIES[case]
    fixture = Fixture()

    assert await fixture.reason(make(fixture)) == reason


@pytest.mark.parametrize("algorithm", ["EdDSA", "RS256", "ES256"])
async def test_no_bit_of_a_token_can_be_turned(algorithm: str) -> None:
    fixture = Fixture(TokenIssuer(algorithm=algorithm))
    token = fixture.token()
    await fixture.check(token)

    for place in range(0, len(token), 7):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(SandboxdError):
            await fixture.check(token[:place] + other + token[place + 1 :])


@pytest.mark.parametrize("algorithm", ["EdDSA", "RS256", "ES256"])
async def test_a_thousand_forged_tokens_of_the_largest_size_leave_the_loop_most_of_its_second(algorithm: str) -> None:
    """In processor time, so that a loaded machine does not matter; a tenfold slower one does not, either."""
    good, stranger = TokenIssuer(algorithm=algorithm), TokenIssuer(algorithm=algorithm)
    fixture = Fixture(good)
    forged = [stranger.sign(fixture.claims(jti=str(number), text="x" * 5500)) for number in range(100)]

    began = time.process_time()
    for token in forged:
        assert await fixture.reason(token) == "TOKEN_INVALID"
    each = (time.process_time() - began) / len(forged)

    assert each < 0.002, f"{each * 1e6:.0f} us for a forged token"


async def test_clocks_may_differ_a_little(subtests: pytest.Subtests) -> None:
    for leeway, fine in ((29, True), (31, False)):
        with subtests.test(str(leeway)):
            fixture = Fixture()
            late, early = fixture.token(exp=fixture.now - leeway), fixture.token(nbf=fixture.now + leeway)
            if fine:
                await fixture.check(late)
                await fixture.check(early)
            else:
                assert await fixture.reason(late) == "TOKEN_EXPIRED"
                assert await fixture.reason(early) == "TOKEN_NOT_YET_VALID"


async def test_a_token_that_is_remembered_expires_all_the_same() -> None:
    fixture = Fixture()
    token = fixture.token()
    await fixture.check(token)

    fixture.clock.advance(400)

    assert await fixture.reason(token) == "TOKEN_EXPIRED"


async def test_a_token_that_is_remembered_ends_with_its_key() -> None:
    fixture = Fixture()
    token = fixture.token()
    await fixture.check(token)

    other = TokenIssuer(key_id="two")
    fixture.keys.keys = parse_key_set(key_set(other.jwk))
    assert await fixture.reason(token) == "TOKEN_KEY_UNKNOWN"
    # The same name for another key: what the old one signed is not good any more.
    fixture.keys.keys = parse_key_set(key_set(other.jwk | {"kid": "one"}))
    assert await fixture.reason(token) == "TOKEN_INVALID"


async def test_memory_of_good_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.api.callers.tokens.MAX_REMEMBERED", 3)
    fixture = Fixture()

    for number in range(10):
        await fixture.check(fixture.token(jti=str(number)))

    assert len(fixture.tokens._verified) == 3


async def test_a_token_of_the_platform_may_be_for_no_client() -> None:
    fixture = Fixture()

    caller = await fixture.check(fixture.token(role="platform", client=...))

    assert caller == Caller(client=ClientId(""), subject="ada", role=Role.PLATFORM)


async def test_the_names_of_our_claims_can_be_others() -> None:
    rules = ClaimRules(issuer=ISSUER, audience=AUDIENCE, client_claim="https://acme/tenant", role_claim="sandbox_role")
    fixture = Fixture(rules=rules)

    caller = await fixture.check(
        fixture.token(client=..., role=..., **{"https://acme/tenant": "other", "sandbox_role": "auditor"})
    )

    assert caller == Caller(client=ClientId("other"), subject="ada", role=Role.AUDITOR)
    assert await fixture.reason(fixture.token()) == "TOKEN_CLAIM_INVALID"


async def test_one_audience_of_several_is_enough() -> None:
    fixture = Fixture()

    assert (await fixture.check(fixture.token(aud=["other", AUDIENCE]))).subject == "ada"


async def test_a_token_without_a_kid_is_of_the_only_key() -> None:
    fixture, two = Fixture(), Fixture(TokenIssuer(), TokenIssuer(key_id="two"))

    def without_kid(one: Fixture) -> str:
        return jwt.encode(one.claims(), one.issuers[0].key, algorithm="EdDSA")

    assert (await fixture.check(without_kid(fixture))).subject == "ada"
    assert await two.reason(without_kid(two)) == "TOKEN_KEY_UNKNOWN"


async def test_only_an_unknown_kid_makes_us_ask_the_issuer() -> None:
    fixture = Fixture()
    for make, _ in FORGERIES.values():
        with pytest.raises(SandboxdError):
            await fixture.check(make(fixture))

    assert fixture.keys.renewals == 1  # of "a kid that nobody has"


# ------------------------------------------------------------------------------------------------ for which client


def test_who_is_bound_to_no_client_names_one_for_each_call() -> None:
    platform = Caller(client=ClientId(""), subject="svc", role=Role.PLATFORM)

    assert acting_for(platform, "acme").client == "acme"
    assert acting_for(platform, None).client == ""
    for name in ("", "../x", "a,b", "Acme"):
        with pytest.raises(SandboxdError) as refused:
            acting_for(platform, name)
        assert refused.value.reason == "REQUEST_INVALID"


@pytest.mark.parametrize("role", list(Role))
def test_who_belongs_to_a_client_cannot_act_for_another(role: Role) -> None:
    caller = Caller(client=ClientId("acme"), subject="ada", role=role)

    assert acting_for(caller, "acme") == caller
    with pytest.raises(SandboxdError) as refused:
        acting_for(caller, "other")
    assert refused.value.reason == "CLIENT_MISMATCH"


# ------------------------------------------------------------------------------------------------ key sets


def weak_rsa() -> dict[str, Any]:
    return jwk_of(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key())


LEFT_OUT: dict[str, Any] = {
    "a short RSA key": weak_rsa,
    "another curve": lambda: jwk_of(ec.generate_private_key(ec.SECP384R1()).public_key()),
    "another curve that says ES256": lambda: (
        jwk_of(ec.generate_private_key(ec.SECP384R1()).public_key()) | {"alg": "ES256"}
    ),
    "Ed448": lambda: jwk_of(ed448.Ed448PrivateKey.generate().public_key()) | {"alg": "EdDSA"},
    "another algorithm": lambda: jwk_of(a_key("RS256").public_key()) | {"alg": "PS256"},
    "a secret": lambda: {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256"},
    "a public key as a secret": lambda: jwk_of(a_key("RS256").public_key()) | {"alg": "HS256"},
    "for encryption": lambda: jwk_of(a_key("RS256").public_key()) | {"use": "enc"},
    "not for verifying": lambda: jwk_of(a_key("RS256").public_key()) | {"key_ops": ["encrypt"]},
    "a private key": lambda: jwk_of(a_key("EdDSA")),
    "broken": lambda: {"kty": "RSA", "n": "!", "e": "AQAB"},
    "of no kind": lambda: {"kty": "XYZ"},
    "without a kid": lambda: jwk_of(a_key("EdDSA").public_key()) | {"kid": None},
    "no object": lambda: "key",
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_cannot_be_used_is_left_out_and_the_rest_is_good(case: str) -> None:
    good, odd = TokenIssuer(key_id="good").jwk, LEFT_OUT[case]()
    if isinstance(odd, dict):
        odd = {"kid": "odd"} | odd

    found = parse_key_set(key_set(odd, good))

    assert set(found.keys) == {"good"}
    assert len(found.left_out) == 1
    with pytest.raises(KeySetError):
        parse_key_set(key_set(odd))


def test_two_keys_of_one_kid_are_both_left_out() -> None:
    found = parse_key_set(key_set(TokenIssuer().jwk, TokenIssuer().jwk, TokenIssuer(key_id="two").jwk))

    assert set(found.keys) == {"two"}
    assert "two keys" in found.left_out["one"]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": []}', b"[" * 100_000, b" " * 600_000, b"\xff\xfe", b"null"]
)
def test_what_is_no_key_set_is_refused(text: bytes) -> None:
    with pytest.raises(KeySetError):
        parse_key_set(text)


def test_too_many_keys_are_refused() -> None:
    with pytest.raises(KeySetError, match="100 keys"):
        parse_key_set(json.dumps({"keys": [{}] * 101}).encode())


def test_a_file_with_a_mistake_is_refused_at_the_start_and_ignored_later(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.json", FakeClock()
    file.write_bytes(key_set(TokenIssuer().jwk, {"kid": "odd", "kty": "RSA"}))
    with pytest.raises(KeySetError, match="odd"):
        FileKeys(file)
    file.write_bytes(key_set(TokenIssuer().jwk))
    keys = FileKeys(file, monotonic=clock.monotonic)

    for broken in (b'{"keys": [', b""):
        file.write_bytes(broken)
        clock.advance(3)
        assert keys.find("one") is not None
    file.unlink()
    clock.advance(3)
    assert keys.find("one") is not None
    file.write_bytes(key_set(TokenIssuer(key_id="two").jwk))
    clock.advance(3)
    assert keys.find("one") is None
    assert keys.find("two") is not None
