"""Bytes to lines to objects: any cut, bounded memory, linear time, and a reason for everything that is refused."""

import hashlib
import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model.events import Text, Unparsed
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.decoding import Rejection, decode_line
from sandboxd.stream.framing import Framer, LongLine
from sandboxd.stream.limits import HEAD_BYTES, MAX_DEPTH, MAX_LINE_BYTES, MAX_UNPARSED_BYTES
from sandboxd.stream.unparsed import unparsed


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(min_value=0, max_value=40), max_size=20))
def test_no_cut_changes_the_lines_and_no_byte_is_lost(data: bytes, cuts: list[int]) -> None:
    pieces = []
    rest = data
    for size in cuts:
        pieces.append(rest[:size])
        rest = rest[size:]
    framer = Framer()

    lines = [line for piece in [*pieces, rest] for line in framer.feed(piece)]

    assert lines == data.split(b"\n")[:-1]
    assert framer.consumed == data.rfind(b"\n") + 1
    assert framer.end() == (data.split(b"\n")[-1] or None)
    assert framer.consumed == len(data)


def test_a_line_of_100_megabytes_is_bounded_and_said_whole() -> None:
    chunk = bytes(range(32, 126)) * 697
    count = 100 * 1024 * 1024 // len(chunk)
    digest = hashlib.sha256()
    machine = AcpDialect()
    tracemalloc.start()

    for number in range(count):
        piece = chunk[number % 7 :]
        digest.update(piece)
        machine.feed(piece)
    in_the_middle = machine.consumed
    machine.feed(b'\n{"jsonrpc":"2.0"}\n')

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert in_the_middle > 99 * 1024 * 1024
    long, after = (emitted.body for emitted in machine.take().events)
    assert isinstance(long, Unparsed)
    assert (long.why, long.sha256, len(long.data)) == ("LINE_TOO_LONG", digest.hexdigest(), HEAD_BYTES)
    assert long.size == in_the_middle
    assert isinstance(after, Unparsed)
    assert after.why == "NOT_PROTOCOL"


def test_a_restart_inside_a_line_that_is_discarded_goes_on_discarding() -> None:
    framer = Framer()
    list(framer.feed(b"ok\n" + b"x" * (MAX_LINE_BYTES + 10)))

    again = Framer.restore(json.loads(json.dumps(framer.snapshot())))
    lines = list(again.feed(b"yy\nnext\n"))

    assert again.consumed == 3 + MAX_LINE_BYTES + 10 + 3 + 5
    assert lines == [LongLine(b"x" * HEAD_BYTES, MAX_LINE_BYTES + 12, ""), b"next"]


def test_the_longest_line_is_still_a_line() -> None:
    framer = Framer()

    lines = list(framer.feed(b"x" * MAX_LINE_BYTES + b"\n" + b"y" * (MAX_LINE_BYTES + 1) + b"\n"))

    assert isinstance(lines[0], bytes)
    assert isinstance(lines[1], LongLine)


def test_a_megabyte_in_single_bytes_takes_no_time() -> None:
    framer = Framer()
    begun = time.monotonic()

    for _ in range(1 << 20):
        list(framer.feed(b"x"))

    assert time.monotonic() - begun < 60, "quadratic time would take hours"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\xff\xfe{}", Rejection.NOT_UTF8),
        (b'{"a": "\xed\xa0\x80"}', Rejection.NOT_UTF8),
        (b"hello", Rejection.NOT_JSON),
        (b'{"a": 1', Rejection.NOT_JSON),
        (b'{"a": 1} x', Rejection.NOT_JSON),
        (b"[]", Rejection.NOT_PROTOCOL),
        (b"42", Rejection.NOT_PROTOCOL),
        (b'{"a": NaN}', Rejection.BAD_NUMBER),
        (b'{"a": -Infinity}', Rejection.BAD_NUMBER),
        (b'{"a": 1e999}', Rejection.BAD_NUMBER),
        (b'{"a": ' + b"9" * 10_000 + b"}", Rejection.BAD_NUMBER),
        (b'{"a": 0.' + b"9" * 10_000 + b"}", Rejection.BAD_NUMBER),
        (b'{"a": 1, "a": 2}', Rejection.DUPLICATE_KEY),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), Rejection.TOO_DEEP),
        (b"[" * 100_000, Rejection.TOO_DEEP),
        (b'{"a":' * 100_000, Rejection.TOO_DEEP),
        (b'{"a":[' + b"[]," * 200_000 + b"[]]}", Rejection.TOO_COMPLEX),
        (b'{"a":[' + b"1," * 200_001 + b"1]}", Rejection.TOO_COMPLEX),
    ],
    ids=lambda value: value.value if isinstance(value, Rejection) else "",
)
def test_what_cannot_be_decoded_has_a_reason(line: bytes, why: Rejection) -> None:
    assert decode_line(line) is why


def test_brackets_and_commas_in_texts_are_no_structure() -> None:
    said = '[{",\\"' * 300_000

    assert decode_line(json.dumps({"a": said}).encode()) == {"a": said}


@pytest.mark.parametrize(
    "line",
    [b'"' + b'\\"' * 4_000_000, b'{"a":"' + b"\\" * 8_000_001, b'"[' * 4_000_000, b"[" * MAX_LINE_BYTES],
    ids=["escaped quotes", "backslashes", "quotes", "brackets"],
)
def test_lines_made_to_be_slow_are_refused_quickly(line: bytes) -> None:
    begun = time.monotonic()

    assert isinstance(decode_line(line), Rejection)

    assert time.monotonic() - begun < 60, "quadratic time would take hours"


def test_empty_lines_and_carriage_returns_are_nothing() -> None:
    machine = AcpDialect()

    machine.feed(b"\n  \r\n\t\n")

    assert machine.take().events == ()
    assert machine.consumed == 7


def test_a_line_with_a_carriage_return_is_understood() -> None:
    machine = AcpDialect(observing=True)
    machine.sessions.adopt("cli")
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "hi"}}
    message = {"method": "session/update", "params": {"sessionId": "cli", "update": update}}

    machine.feed(json.dumps(message).encode() + b"\r\n")

    assert [emitted.body for emitted in machine.take().events] == [Text(text="hi")]


def test_a_large_line_that_is_not_understood_keeps_head_size_and_digest() -> None:
    line = b"x" * (MAX_UNPARSED_BYTES + 1)

    kept = unparsed(line, "NOT_JSON")

    assert (len(kept.data), kept.size, kept.sha256) == (HEAD_BYTES, len(line), hashlib.sha256(line).hexdigest())
    assert unparsed(line[:-1], "NOT_JSON").data == line[:-1]
