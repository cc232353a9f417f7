"""Recordings of the real CLI for tests: read, played through an observing machine in any cut, and summed up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.acp.observer import AcpObserver
from sandboxd.stream.codec import encode_body
from sandboxd.stream.dialect import TurnBill

ROOT = Path(__file__).parent / "data" / "transcripts"
ACP = sorted((ROOT / "acp").glob("*.jsonl"))
OWN = sorted((ROOT / "own").glob("*.jsonl"))
"""Recorded by us with another client's habits: answers of every kind, prompts that overlap, a load, no JSON."""
STREAM_JSON = sorted((ROOT / "stream-json").glob("*.jsonl"))

Cut = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    """Everything at once."""
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    """The hardest cut."""
    for at in range(len(data)):
        yield data[at : at + 1]


@dataclass
class Play:
    """One recording on its way through a machine."""

    machine: AcpDialect = field(default_factory=lambda: AcpDialect(observing=True))
    turns: int = 0
    events: list[tuple[str | None, str | None, dict[str, Any]]] = field(default_factory=list)

    def segment(self, client: list[Any], output: bytes, cut: Cut, *, end: bool) -> None:
        """What the client sent, then what the CLI wrote until the client spoke again."""
        observer = AcpObserver(self.machine, turns=self.turns)
        for message in client:
            observer.sent(message)
        self.turns = observer.turns
        self.collect()
        for piece in cut(output):
            self.machine.feed(piece)
            self.collect()
        if end:
            self.machine.exited(exit_code=None, signal=None)
            self.collect()

    @property
    def said(self) -> tuple[list[Any], list[Any]]:
        """The events, and apart from them the ends of turns: when those come is the ledger's business."""
        ends = [entry for entry in self.events if entry[2]["kind"] == "turn_completed"]
        return [entry for entry in self.events if entry not in ends], ends

    def restart(self) -> None:
        """The service dies and comes back: only the snapshot survives."""
        self.machine = AcpDialect.restore(json.loads(json.dumps(self.machine.snapshot())), observing=True)

    def collect(self) -> None:
        """Finish what waits for the ledger, and keep the events."""
        for finishing in self.machine.finishing:
            self.machine.finish(finishing.turn, TurnBill())
        for emitted in self.machine.take().events:
            self.events.append((emitted.session, emitted.turn, encode_body(emitted.body)))


def segments(path: Path) -> list[tuple[list[Any], bytes, bool]]:
    """A recording as pieces of: what the client sent, what the CLI then wrote, whether it then ended."""
    found: list[tuple[list[Any], bytes, bool]] = [([], b"", False)]
    for line in path.read_text().splitlines():
        record = json.loads(line)
        client, output, _ = found[-1]
        if record["dir"] == "a2c":
            found[-1] = (client, output + json.dumps(record["msg"]).encode() + b"\n", False)
        elif record["dir"] == "eof":
            found[-1] = (client, output, True)
        elif output:
            found.append(([record["msg"]], b"", False))
        else:
            client.append(record["msg"])
    return found


def play(path: Path, cut: Cut = whole, *, restarts: bool = False) -> Play:
    """Play a recording; with `restarts`, the service dies between any two pieces."""
    played = Play()
    for client, output, end in segments(path):
        if restarts:
            played.restart()
        played.segment(client, output, cut, end=end)
    return played


def summary(events: Iterable[tuple[str | None, str | None, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What matters of a recording, turn by turn."""
    turns: dict[str, dict[str, Any]] = {}
    for _, turn, event in events:
        if turn is None:
            continue
        kept = turns.setdefault(turn, {"prompt": None, "text": "", "thoughts": [], "tools": [], "permissions": []})
        match event["kind"]:
            case "turn_started":
                kept["prompt"] = event["text"]
            case "text":
                kept["text"] += event["text"]
            case "thought":
                kept["thoughts"].append([event["subject"], event["text"]])
            case "tool_output":
                kept["tools"].append([event["tool"], event["status"], event["text"], len(event["diffs"])])
            case "permission_request":
                kept["permissions"].append([event["tool"], [option["id"] for option in event["options"]]])
            case "error":
                kept["error"] = event["reason"]
            case "turn_completed":
                kept["stop"] = event["stop_reason"]
            case _:
                pass
    return [{key: value for key, value in turn.items() if value} for turn in turns.values()]
