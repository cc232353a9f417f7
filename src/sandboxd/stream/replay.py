"""Replays a recording through the machine that runs in production, and says what events it makes: a tool for operators.

Reads bytes, yields dictionaries; the command around it is `__main__.py`. Tolerant: what cannot be read becomes an
`unparsed` event. There is no ledger here, so turns end with `usage_complete` false.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Protocol

from sandboxd.stream.acp.guessing import AcpGuesser
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.acp.observer import AcpObserver
from sandboxd.stream.codec import encode_body
from sandboxd.stream.decoding import Rejection, decode_line
from sandboxd.stream.dialect import Dialect, Emitted, TurnBill
from sandboxd.stream.framing import Framer, LongLine
from sandboxd.stream.headless.machine import HeadlessDialect
from sandboxd.stream.headless.observer import HeadlessObserver
from sandboxd.stream.recording import Direction, RecordingFormat, read_record, sniff
from sandboxd.stream.unparsed import LINE_TOO_LONG, SENT_NOT_JSON, unparsed

SNIFFED_LINES = 100
"""Lines that are looked at to tell the format."""


def replay(chunks: Iterable[bytes], *, format_: RecordingFormat | None = None) -> Iterator[dict[str, Any]]:
    """The events of a recording, as JSON objects, in order.

    Args:
        chunks: The recording, cut anywhere.
        format_: What it is; None finds out.
    """
    lines = _lines(chunks)
    first: list[bytes | LongLine] = []
    if format_ is None:
        first = list(islice(lines, SNIFFED_LINES))
        format_ = sniff(line for line in first if isinstance(line, bytes))
    player: _Player = _AcpPlayer() if format_ is RecordingFormat.ACP else _HeadlessPlayer()
    for line in chain(first, lines):
        if isinstance(line, LongLine):
            yield _entry(Emitted(session=None, turn=None, body=unparsed(line, LINE_TOO_LONG)), None)
            continue
        if line.strip():
            time = player.play(line)
            yield from _drain(player.machine, time)
    player.end()
    yield from _drain(player.machine, None)


class _Player(Protocol):
    @property
    def machine(self) -> Dialect: ...

    def play(self, line: bytes) -> float | None: ...

    def end(self) -> None: ...


class _AcpPlayer:
    """Plays ACP recordings; a process that ended may be followed by the next one."""

    def __init__(self) -> None:
        self._machine = AcpDialect(observing=True)
        self._observer = AcpObserver(self._machine)
        self._guesser = AcpGuesser(self._machine, self._observer)
        self._ended = False

    @property
    def machine(self) -> Dialect:
        return self._machine

    def play(self, line: bytes) -> float | None:
        if self._ended:
            self._machine = AcpDialect(observing=True)
            self._observer = AcpObserver(self._machine, turns=self._observer.turns)
            self._guesser = AcpGuesser(self._machine, self._observer)
            self._ended = False
        record = read_record(line)
        if isinstance(record, Rejection):
            self._machine.sessions.emit_lost(line, record.value)
            return None
        match record.direction:
            case Direction.CLIENT:
                message = decode_line(record.line)
                if isinstance(message, Rejection):
                    self._machine.sessions.emit_lost(record.line, SENT_NOT_JSON)
                else:
                    self._observer.sent(message)
            case Direction.CLI:
                self._machine.feed((self._guesser.prepare(record.line) if record.raw else record.line) + b"\n")
            case Direction.END:
                self.end()
        return record.time

    def end(self) -> None:
        if not self._ended:
            self._machine.exited(exit_code=None, signal=None)
        self._ended = True


class _HeadlessPlayer:
    """Plays what headless runs wrote."""

    def __init__(self) -> None:
        self._machine = HeadlessDialect()
        self._observer = HeadlessObserver(self._machine)

    @property
    def machine(self) -> Dialect:
        return self._machine

    def play(self, line: bytes) -> float | None:
        self._observer.line(line)
        return None

    def end(self) -> None:
        self._observer.end()


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes | LongLine]:
    framer = Framer()
    for chunk in chunks:
        yield from framer.feed(chunk)
    rest = framer.end()
    if rest is not None:
        yield rest


def _drain(machine: Dialect, time: float | None) -> Iterator[dict[str, Any]]:
    for finishing in machine.finishing:
        machine.finish(finishing.turn, TurnBill(complete=False))
    for emitted in machine.take().events:
        yield _entry(emitted, time)


def _entry(emitted: Emitted, time: float | None) -> dict[str, Any]:
    when = {} if time is None else {"t": time}
    return {**when, "session": emitted.session, "turn": emitted.turn, **encode_body(emitted.body)}
