"""The checker of recorded histories: good ones pass, and each kind of harm is found and named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.history.check import check
from tests.history.record import Call, Event, History, Kind, Operation, Outcome, Row

OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN
BOX, SESSION, TURN = "sandboxes/a", "sandboxes/a/sessions/s", "turn-1"


def op(kind: Kind, start: float, end: float = math.inf, *, outcome: Outcome = OK, **more: str) -> Operation:
    ended = end if math.isfinite(end) else start + 1
    return Operation(**{"client": "one", "sandbox": BOX, **more}, kind=kind, start=start, end=ended, outcome=outcome)


def events(*, turn: str = TURN, marker: str = "m1") -> list[Event]:
    return [
        Event(sequence=1, kind="session_opened", digest="d1"),
        Event(sequence=2, kind="turn_started", digest="d2", turn=turn, marker=marker),
        Event(sequence=3, kind="text", digest="d3", turn=turn),
        Event(sequence=4, kind="turn_completed", digest="d4", turn=turn, stop="END_TURN"),
    ]


def good() -> History:
    """A create, a prompt, a pause whose answer was lost and that was repeated, a resume, and two observers."""
    log = events()
    return History(
        operations=[
            op(Kind.CREATE, 0, 1, request_id="c1", state="ACTIVE"),
            op(Kind.PROMPT, 1, 2, request_id="p1", marker="m1", session=SESSION, turn=TURN),
            op(Kind.GET, 2, 2.1, state="ACTIVE"),
            op(Kind.PAUSE, 3, outcome=UNKNOWN, request_id="x1"),
            op(Kind.GET, 3.5, 3.6, state="PAUSING", client="two"),
            op(Kind.PAUSE, 5, 6, request_id="x1", state="PAUSED"),
            op(Kind.GET, 7, 7.1, state="PAUSED"),
            op(Kind.RESUME, 8, 9, request_id="r1", state="ACTIVE"),
        ],
        seen={("one", SESSION): list(log), ("watcher", SESSION): log[:3]},
        sandboxes={BOX: ("c1", "ACTIVE")},
        logs={SESSION: log},
        rows=[Row(id="use-1", turn=TURN, state="SETTLED", tokens=114)],
        calls=[Call(marker="m1", tokens=114, whole=True)],
    )


def test_a_good_history_has_nothing_wrong() -> None:
    assert check(good()) == []


def test_an_empty_history_has_nothing_wrong() -> None:
    assert check(History()) == []


def add(*operations: Operation) -> Callable[[History], None]:
    return lambda history: history.operations.extend(operations)


def replaced(history: History, number: int, **changes: object) -> None:
    history.operations[number] = replace(history.operations[number], **changes)  # type: ignore[arg-type]


def set_log(*log: Event) -> Callable[[History], None]:
    def change(history: History) -> None:
        history.logs = {SESSION: list(log)}
        history.seen = {}

    return change


def attribute(**changes: object) -> Callable[[History], None]:
    def change(history: History) -> None:
        for name, value in changes.items():
            setattr(history, name, value)

    return change


def every(*changes: Callable[[History], None]) -> Callable[[History], None]:
    def change(history: History) -> None:
        for one in changes:
            one(history)

    return change


def more_logs(**logs: list[Event]) -> Callable[[History], None]:
    return lambda history: setattr(history, "logs", {**history.logs, **logs})


def saw(observer: str, *seen: Event) -> Callable[[History], None]:
    return lambda history: history.seen.update({(observer, SESSION): list(seen)})


LOG = events()
HARM: dict[str, tuple[Callable[[History], None], str]] = {
    "a created sandbox is lost": (attribute(sandboxes={}), "creations: sandboxes/a was acknowledged for c1"),
    "a create is done twice": (
        attribute(sandboxes={BOX: ("c1", "ACTIVE"), "sandboxes/b": ("c1", "ACTIVE")}), "c1 made 2 sandboxes"
    ),
    "a sandbox that nobody asked for": (
        attribute(sandboxes={BOX: ("c1", "ACTIVE"), "sandboxes/b": ("c9", "ACTIVE")}), "nobody asked for 'c9'"
    ),
    "a refused create is done": (
        every(
            add(op(Kind.CREATE, 9, 10, outcome=FAILED, request_id="c2", sandbox="")),
            attribute(sandboxes={BOX: ("c1", "ACTIVE"), "sandboxes/b": ("c2", "ACTIVE")}),
        ), "c2 was refused and made",
    ),
    "one request id, two answers": (
        add(op(Kind.PROMPT, 3, 4, request_id="p1", marker="m1", session=SESSION, turn="turn-2")),
        "p1 was answered in 2 ways",
    ),
    "an operation hangs": (lambda history: replaced(history, 0, end=100.0), "took 100.0 s"),
    "a read does not see the write before it": (
        add(op(Kind.PAUSE, 10, 11, request_id="x2", state="PAUSED"), op(Kind.GET, 12, 13, state="ACTIVE")),
        "no order explains",
    ),
    "a state comes from nowhere": (add(op(Kind.GET, 7.3, 7.4, state="TERMINATED")), "no order explains"),
    "an acknowledged pause is undone": (
        add(op(Kind.PAUSE, 10, 11, request_id="x2", state="PAUSED")), "no order explains"  # it ends ACTIVE
    ),
    "a sandbox that was ended lives again": (
        add(op(Kind.TERMINATE, 10, 11, request_id="t1", state="TERMINATED")), "no order explains"
    ),
    "two readers see the change in different orders": (
        add(
            op(Kind.PAUSE, 10, outcome=UNKNOWN, request_id="x2"), op(Kind.GET, 11, 12, state="PAUSED"),
            op(Kind.GET, 13, 14, state="ACTIVE", client="two"),
        ), "no order explains",
    ),
    "an event is doubled for a watcher": (saw("watcher", LOG[0], LOG[1], LOG[1], LOG[2]), "watcher saw"),
    "an event is missing for a watcher": (saw("watcher", LOG[0], LOG[2]), "watcher saw"),
    "events come in another order": (saw("watcher", LOG[0], LOG[2], LOG[1]), "watcher saw"),
    "a watcher saw what the log has lost": (
        saw("watcher", *LOG, Event(sequence=5, kind="text", digest="d5")), "which the log has lost"
    ),
    "an event was changed after it was seen": (
        saw("watcher", LOG[0], replace(LOG[1], digest="other")), "event 2 of sandboxes/a/sessions/s is another one"
    ),
    "the log has a gap": (set_log(LOG[0], LOG[1], LOG[3]), "streams: the log"),
    "an acknowledged prompt is lost": (set_log(LOG[0]), "the acknowledged prompt m1 began 0 turns"),
    "a prompt is done twice": (
        set_log(*LOG, *(replace(event, sequence=event.sequence + 3, turn="turn-2") for event in LOG[1:])),
        "the acknowledged prompt m1 began 2 turns",
    ),
    "a refused prompt is done": (
        every(
            add(op(Kind.PROMPT, 9, 10, outcome=FAILED, request_id="p2", marker="m2")),
            more_logs(s2=events(turn="turn-2", marker="m2")),
        ), "the refused prompt m2 began 1 turns",
    ),
    "a turn that nobody asked for": (
        more_logs(s2=events(turn="turn-2", marker="m7")),
        "a turn of 'm7' began that nobody asked for",
    ),
    "a turn never ends": (set_log(*LOG[:3]), "turn-1 of sandboxes/a/sessions/s never ended"),
    "two turns at once": (
        set_log(*LOG[:2], replace(LOG[1], sequence=3, turn="turn-2"), replace(LOG[3], turn="turn-2")),
        "began while turn-1 was open",
    ),
    "something of a turn comes after its end": (
        set_log(*LOG, replace(LOG[2], sequence=5)), "comes after its end"
    ),
    "a prompt is paid twice": (
        attribute(
            calls=[Call(marker="m1", tokens=114, whole=True)] * 2,
            rows=[Row(id="use-1", turn=TURN, state="SETTLED", tokens=114),
                  Row(id="use-2", turn=TURN, state="SETTLED", tokens=114)],
        ), "the prompt m1 reached the model 2 times",
    ),
    "a call is billed twice": (
        attribute(rows=[Row(id="use-1", turn=TURN, state="SETTLED", tokens=114),
                        Row(id="use-2", turn=TURN, state="SETTLED", tokens=114)]),
        "the ledger has for m1 what the model never counted",
    ),
    "a call is billed wrongly": (
        attribute(rows=[Row(id="use-1", turn=TURN, state="SETTLED", tokens=113)]),
        "the ledger has for m1 what the model never counted",
    ),
    "a call is forgotten": (attribute(rows=[]), "1 calls of m1 reached the model, and 0 are in the ledger"),
    "a row is there twice": (
        attribute(rows=[Row(id="use-1", turn=TURN, state="SETTLED", tokens=114)] * 2), "rows are there twice"
    ),
    "a row of no turn": (
        attribute(rows=[Row(id="use-1", turn="turn-9", state="SETTLED", tokens=114)]), "belongs to no turn of ours"
    ),
    "a row is left open": (
        attribute(rows=[Row(id="use-1", turn=TURN, state="OPEN", tokens=0)]), "row use-1 is still open"
    ),
    "a sandbox is left in the middle": (
        attribute(sandboxes={BOX: ("c1", "RESUMING")}), "sandboxes/a is still RESUMING"
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", list(HARM))
def test_harm_is_found_and_named(harm: str) -> None:
    history = good()
    change, said = HARM[harm]

    change(history)

    assert any(said in wrong for wrong in check(history)), check(history)


UNHARMED: dict[str, Callable[[History], None]] = {
    "a pause that was never heard of, and never done": add(op(Kind.PAUSE, 9, outcome=UNKNOWN, request_id="x2")),
    "a pause that was never heard of, and done later": every(
        add(op(Kind.PAUSE, 9.5, outcome=UNKNOWN, request_id="x2"), op(Kind.GET, 11, 12, state="ACTIVE"),
            op(Kind.GET, 30, 31, state="PAUSED")),
        attribute(sandboxes={BOX: ("c1", "PAUSED")}),
    ),
    "a pause that was refused": add(
        op(Kind.PAUSE, 7.2, 7.3, outcome=FAILED, request_id="x2", reason="SANDBOX_STATE_INVALID")
    ),
    "a create that nobody heard of and that was made": every(
        add(op(Kind.CREATE, 2, outcome=UNKNOWN, request_id="c2", sandbox="")),
        attribute(sandboxes={BOX: ("c1", "ACTIVE"), "sandboxes/b": ("c2", "FAILED")}),
    ),
    "a read while the change is under way": add(
        op(Kind.PAUSE, 10, 20, request_id="x2", state="PAUSED"), op(Kind.GET, 11, 12, state="ACTIVE"),
        op(Kind.GET, 13, 14, state="PAUSING"), op(Kind.GET, 15, 16, state="PAUSED"),
        op(Kind.RESUME, 21, 22, request_id="r2", state="ACTIVE"),
    ),
    "a call whose end nobody saw": attribute(
        rows=[Row(id="use-1", turn=TURN, state="ESTIMATED", tokens=8000, error="GATEWAY_LOST")]
    ),
    "a call that was written down and never made": attribute(
        calls=[], rows=[Row(id="use-1", turn=TURN, state="SETTLED", tokens=0, error="NOT_FORWARDED")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(UNHARMED))
def test_what_an_outage_may_do_is_no_harm(case: str) -> None:
    history = good()

    UNHARMED[case](history)

    assert check(history) == []
