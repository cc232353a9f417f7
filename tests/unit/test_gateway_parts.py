"""The gateway's small parts, each alone: address, events, scrubbing, circuit, files of keys."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.gateway.answer import AnswerReader
from sandboxd.gateway.breaker import BreakerPolicy, CircuitBreaker, CircuitState
from sandboxd.gateway.config import GatewayConfig
from sandboxd.gateway.key_files import DirectoryApiKeys, DirectoryVerifyingKeys, ensure_token_keys
from sandboxd.gateway.policy import parse_target
from sandboxd.gateway.scrub import KeyScrubber
from sandboxd.gateway.secret import Secret
from sandboxd.gateway.sse import SseReader
from sandboxd.model.ids import ClientId
from sandboxd.model.usage import TokenCounts

# --- events

EVENTS = (
    b": a comment\r\n\r\n"
    b'data: {"a": 1}\r\n\r\n'
    b"event: x\ndata: two\ndata:  lines\nid: 7\n\n"
    b"data\n\n"
    b"\n\n\r\n"
    b"data: after cr\r\rdata: last\n\n"
    b"data: unfinished"
)
FOUND = [b'{"a": 1}', b"two\n lines", b"after cr", b"last"]


def read_all(pieces: Sequence[bytes]) -> tuple[list[bytes], bytes | None]:
    reader = SseReader()
    return [data for piece in pieces for data in reader.feed(piece)], reader.end()


def test_events_are_the_same_whole_byte_by_byte_and_cut_anywhere() -> None:
    ways = [[EVENTS], [EVENTS[at : at + 1] for at in range(len(EVENTS))]]
    ways += [[EVENTS[:at], b"", EVENTS[at:]] for at in range(len(EVENTS))]

    assert all(read_all(pieces) == (FOUND, b"unfinished") for pieces in ways)


@given(st.binary(max_size=400), st.lists(st.integers(min_value=0, max_value=400), max_size=5))
def test_no_bytes_and_no_cut_change_what_is_read(data: bytes, cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(marks)]

    assert read_all(pieces) == read_all([data])


def test_an_event_that_is_too_long_is_skipped_and_the_next_one_is_read() -> None:
    reader = SseReader(max_event=100)
    data = b"data: " + b"x" * 500 + b"\ndata: more\n\ndata: next\n\n"

    for pieces in ([data], [data[at : at + 3] for at in range(0, len(data), 3)]):
        assert [found for piece in pieces for found in reader.feed(piece)] == [b"next"]
    assert reader.skipped == 2


def test_the_last_usage_counts_and_nothing_in_an_answer_raises() -> None:
    reader = AnswerReader()
    messages: list[object] = [
        {"usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}, "modelVersion": "gemini-x"},
        {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7}},
        {"usageMetadata": {}, "candidates": [{"finishReason": "STOP\x1b[31m" + "x" * 500}]},
        {"usageMetadata": None, "candidates": {}, "promptFeedback": [], "modelVersion": {"a": 1}},
        [1],
        "text",
    ]
    for message in messages:
        reader.feed(b"data: " + json.dumps(message).encode() + b"\n\n")
    reader.feed(b"data: " + b"[" * 100_000 + b"\n\ndata: \xff\xfe\n\n")
    reader.end()

    assert (reader.usage, reader.model_version) == (TokenCounts(prompt=5, output=2, total=7), "gemini-x")
    assert reader.finish_reason is not None
    assert (reader.finish_reason[:8], len(reader.finish_reason) <= 64) == ("STOP[31m", True)
    assert reader.malformed == 4


# --- scrubbing

KEY = "AIzaKEYKEY"


@given(st.lists(st.sampled_from(["AIza", "KEY", "A", "x", "KEYKEY", KEY, "\n\n"]), max_size=30), st.data())
def test_the_key_is_taken_out_wherever_the_bytes_are_cut(words: list[str], data: st.DataObject) -> None:
    text = "".join(words).encode()
    scrubber, passed, at = KeyScrubber(Secret(KEY)), b"", 0
    while at < len(text):
        step = data.draw(st.integers(min_value=1, max_value=12))
        passed += scrubber.feed(text[at : at + step])
        at += step
    passed += scrubber.end()

    assert KEY.encode() not in passed
    assert passed == text.replace(KEY.encode(), b"[redacted]")


def test_a_chunk_without_the_beginning_of_the_key_at_its_end_is_not_held_back() -> None:
    scrubber = KeyScrubber(Secret(KEY))

    assert scrubber.feed(b"data: {}\r\n\r\n") == b"data: {}\r\n\r\n"
    assert scrubber.feed(b"data: AIza") == b"data: "
    assert scrubber.feed(b"!") == b"AIza!"


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret(KEY)

    assert KEY not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(secret)


# --- the address


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1beta/models/gemini-2.5-flash:generateContent", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("/v1beta/models/g:streamGenerateContent?alt=sse", "/v1beta/models/g:streamGenerateContent?alt=sse"),
        ("/v1beta/models/g:streamGenerateContent?key=k&alt=sse&x", "/v1beta/models/g:streamGenerateContent?alt=sse"),
        ("/v1beta/models/g:countTokens?alt=json", "/v1beta/models/g:countTokens"),
        ("/v1beta/models/g:countTokens?alt=%73se", "/v1beta/models/g:countTokens"),
        ("/v1beta/models/g:generateContent\n", None),
        ("/v1beta/models/g:generateContent?a b", None),
        ("/v1beta/models/" + "g" * 129 + ":generateContent", None),
        ("", None),
    ],
)
def test_an_upstream_address_is_built_from_parts(target: str, path: str | None) -> None:
    found = parse_target(target)

    assert (found.upstream_path if found else None) == path


def test_a_prefix_is_required_where_one_is_set() -> None:
    target = "/v1beta/models/g:generateContent"

    assert parse_target(f"/gemini{target}", prefix="/gemini") is not None
    assert parse_target(target, prefix="/gemini") is None


@given(st.text(alphabet="ab.-_/:%?#\\@\r\n \u0661", max_size=80))
def test_no_text_makes_an_address_that_leaves_the_models(text: str) -> None:
    found = parse_target(f"/v1beta/models/{text}:generateContent")

    assert found is None or (found.upstream_path.count("/") == 3 and ".." not in found.upstream_path.split("/"))


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "https://u:p@x", "https://x?y", "https://x#y", "x", "https://x/?", "file:///etc"]
)
def test_an_upstream_that_is_not_a_plain_base_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="upstream"):
        GatewayConfig(upstream_url=url, spool_directory=tmp_path)


# --- the circuit


class Seconds:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_circuit_opens_rests_probes_and_closes() -> None:
    seconds = Seconds()
    breaker = CircuitBreaker(policy=BreakerPolicy(failures=3, rest_seconds=5), monotonic=seconds)
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        assert breaker.admit() is None
        outcome()
    assert breaker.state is CircuitState.CLOSED

    breaker.failed()
    assert (breaker.state, breaker.admit()) == (CircuitState.OPEN, 5)

    seconds.now += 5
    assert (breaker.admit(), breaker.state, breaker.admit()) == (None, CircuitState.HALF_OPEN, 1)

    breaker.failed()
    assert breaker.admit() == 10

    seconds.now += 10
    assert breaker.admit() is None
    breaker.withdrawn()
    assert breaker.admit() is None
    breaker.succeeded()
    assert (breaker.state, breaker.admit()) == (CircuitState.CLOSED, None)


# --- files of keys


def write_key(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_a_client_has_its_own_key_or_the_default_one(tmp_path: Path) -> None:
    write_key(tmp_path / "acme", "key-of-acme\n")
    write_key(tmp_path / "default", "key-of-all")
    keys = DirectoryApiKeys(tmp_path)

    assert keys.key_for(ClientId("acme")) == Secret("key-of-acme")
    assert keys.key_for(ClientId("other")) == Secret("key-of-all")
    assert keys.key_for(ClientId("../default")) is None


def test_a_key_is_rotated_and_removed_without_a_restart(tmp_path: Path) -> None:
    keys = DirectoryApiKeys(tmp_path)
    before = keys.key_for(ClientId("acme"))
    write_key(tmp_path / "new", "first")
    (tmp_path / "new").rename(tmp_path / "acme")
    first = keys.key_for(ClientId("acme"))
    write_key(tmp_path / "new", "second")
    (tmp_path / "new").rename(tmp_path / "acme")
    second = keys.key_for(ClientId("acme"))
    (tmp_path / "acme").unlink()

    assert (before, first, second) == (None, Secret("first"), Secret("second"))
    assert keys.key_for(ClientId("acme")) is None


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o666])
def test_a_key_that_others_can_read_or_change_is_not_used(tmp_path: Path, mode: int) -> None:
    write_key(tmp_path / "acme", "key", mode)

    assert DirectoryApiKeys(tmp_path).key_for(ClientId("acme")) is None


@pytest.mark.parametrize("text", ["", "two words", "line\nline", "umlaut-ä", "x" * 9000])
def test_a_file_that_is_not_one_word_is_not_a_key(tmp_path: Path, text: str) -> None:
    write_key(tmp_path / "acme", text)

    assert DirectoryApiKeys(tmp_path).key_for(ClientId("acme")) is None


def test_the_signing_key_is_made_once_and_its_public_half_is_found(tmp_path: Path) -> None:
    private, public = tmp_path / "state" / "signing.pem", tmp_path / "public"
    seconds = Seconds()
    key, key_id = ensure_token_keys(private_file=private, public_directory=public)

    again, same_id = ensure_token_keys(private_file=private, public_directory=public)

    keys = DirectoryVerifyingKeys(public, monotonic=seconds)
    assert (same_id, private.stat().st_mode & 0o777) == (key_id, 0o600)
    assert keys.find(key_id) == key.public_key() == again.public_key()
    assert (keys.usable, keys.find("other")) == (True, None)


def test_a_public_key_that_is_removed_or_broken_is_no_longer_trusted(tmp_path: Path) -> None:
    seconds = Seconds()
    keys = DirectoryVerifyingKeys(tmp_path / "public", monotonic=seconds)
    assert keys.usable is False
    seconds.now += 1
    _, first = ensure_token_keys(private_file=tmp_path / "a.pem", public_directory=tmp_path / "public")
    _, second = ensure_token_keys(private_file=tmp_path / "b.pem", public_directory=tmp_path / "public")
    assert keys.find(first) is not None

    (tmp_path / "public" / f"{first}.pem").unlink()
    (tmp_path / "public" / f"{second}.pem").write_text("broken")
    cached = keys.find(first)
    seconds.now += 1

    assert cached is not None
    assert (keys.find(first), keys.find(second)) == (None, None)
