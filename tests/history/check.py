"""What must not have happened, whatever broke: each check reads a history and says in words what it found wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from tests.history.lives import explainable, story
from tests.history.record import Event, History, Kind, Operation, Outcome, requests_of

LONGEST_SECONDS: Final = 45.0
"""No operation may take longer: every call of the run has a deadline, and this is above all of them."""
_RESTING: Final = frozenset({"ACTIVE", "PAUSED", "TERMINATED", "FAILED"})


def check(history: History) -> list[str]:
    """Say everything that is wrong with a history; empty is good."""
    checks = (creations, answers, lives, streams, prompts, turns, bills, quiet)
    return [f"{one.__name__}: {wrong}" for one in checks for wrong in one(history)]


def creations(history: History) -> Iterator[str]:
    """An acknowledged create is one sandbox, for ever; no sandbox is there that nobody asked for, or twice."""
    asked = {one.request_id: one for one in requests_of(history.operations) if one.kind is Kind.CREATE}
    made: defaultdict[str, list[str]] = defaultdict(list)
    for sandbox, (request_id, _) in history.sandboxes.items():
        made[request_id].append(sandbox)
    for request_id, request in asked.items():
        for attempt in request.done:
            if attempt.sandbox not in made[request_id]:
                yield f"{attempt.sandbox} was acknowledged for {request_id} and is not there"
        if len(made[request_id]) > 1:
            yield f"{request_id} made {len(made[request_id])} sandboxes"
        if request.outcome is Outcome.FAILED and made[request_id]:
            yield f"{request_id} was refused and made {made[request_id]}"
    for request_id in made.keys() - asked.keys():
        yield f"{made[request_id]} exist, and nobody asked for {request_id!r}"


def answers(history: History) -> Iterator[str]:
    """The same request id gets the same answer, and no operation hangs."""
    for request in requests_of(history.operations):
        told = {(one.sandbox, one.session, one.turn) for one in request.done}
        if len(told) > 1:
            yield f"{request.request_id} was answered in {len(told)} ways: {sorted(told)}"
    for one in history.operations:
        if one.end - one.start > LONGEST_SECONDS:
            yield f"{one.kind.value} {one.request_id} of {one.client} took {one.end - one.start:.1f} s"


def lives(history: History) -> Iterator[str]:
    """What was told of each sandbox's state can be explained by one order, and so can its end."""
    of_sandbox: defaultdict[str, list[Operation]] = defaultdict(list)
    made_by = {request_id: sandbox for sandbox, (request_id, _) in history.sandboxes.items()}
    last = max((one.end for one in history.operations), default=0.0)
    for one in history.operations:
        sandbox = one.sandbox or (made_by.get(one.request_id, "") if one.kind is Kind.CREATE else "")
        if sandbox and one.kind is not Kind.PROMPT:
            of_sandbox[sandbox].append(one)
    for sandbox, operations in of_sandbox.items():
        told = list(operations)
        if sandbox in history.sandboxes:
            state = history.sandboxes[sandbox][1]
            told.append(
                Operation(
                    client="(end)",
                    kind=Kind.GET,
                    start=last + 1,
                    end=last + 2,
                    outcome=Outcome.OK,
                    sandbox=sandbox,
                    state=state,
                )
            )
        if not explainable(requests_of(told)):
            yield f"no order explains what was told of {sandbox}:\n{story(told)}"


def streams(history: History) -> Iterator[str]:
    """Every observer has each event once and in order, and the log still has what anybody saw."""
    for session, log in history.logs.items():
        numbers = [event.sequence for event in log]
        if numbers != list(range(1, len(log) + 1)):
            yield f"the log of {session} has numbers {_odd(numbers)}"
    for (observer, session), seen in history.seen.items():
        numbers = [event.sequence for event in seen]
        if numbers != list(range(1, len(seen) + 1)):
            yield f"{observer} saw of {session} numbers {_odd(numbers)}"
        kept = {event.sequence: event for event in history.logs.get(session, ())}
        for event in seen:
            if event.sequence not in kept:
                yield f"{observer} saw event {event.sequence} ({event.kind}) of {session}, which the log has lost"
            elif kept[event.sequence].digest != event.digest:
                yield f"event {event.sequence} of {session} is another one than {observer} saw"


def prompts(history: History) -> Iterator[str]:
    """An acknowledged prompt is one turn with its text; a refused one is none; none comes from nowhere."""
    asked = {one.attempts[0].marker: one for one in requests_of(history.operations) if one.kind is Kind.PROMPT}
    began = Counter(event.marker for event in _all(history) if event.kind == "turn_started")
    of_turn = {event.turn: event.marker for event in _all(history) if event.kind == "turn_started"}
    for marker, request in asked.items():
        if request.outcome is Outcome.OK and began[marker] != 1:
            yield f"the acknowledged prompt {marker} began {began[marker]} turns"
        if request.outcome is Outcome.FAILED and began[marker]:
            yield f"the refused prompt {marker} began {began[marker]} turns"
        if began[marker] > 1:
            yield f"the prompt {marker} began {began[marker]} turns"
        for attempt in request.done:
            if of_turn.get(attempt.turn, marker) != marker:
                yield f"the prompt {marker} was told turn {attempt.turn}, which is of {of_turn[attempt.turn]}"
    for marker in began.keys() - asked.keys():
        yield f"a turn of {marker!r} began that nobody asked for"


def turns(history: History) -> Iterator[str]:
    """A turn begins once, ends once, and everything of it lies between."""
    for session, log in history.logs.items():
        open_turn = ""
        ended: set[str] = set()
        for event in log:
            if event.kind == "turn_started":
                if open_turn:
                    yield f"{event.turn} of {session} began while {open_turn} was open"
                open_turn = event.turn
            elif event.turn and event.turn != open_turn:
                when = "after its end" if event.turn in ended else "out of turn"
                yield f"event {event.sequence} ({event.kind}) of {event.turn} in {session} comes {when}"
            elif event.kind == "turn_completed":
                ended.add(open_turn)
                open_turn = ""
        if open_turn:
            yield f"{open_turn} of {session} never ended"


def bills(history: History) -> Iterator[str]:
    """Each call of the model is paid once, to the token where its end was seen; each prompt is sent at most once."""
    marker_of = {event.turn: event.marker for event in _all(history) if event.kind == "turn_started"}
    calls: defaultdict[str, list[int]] = defaultdict(list)
    for call in history.calls:
        calls[call.marker].append(call.tokens)
    rows: defaultdict[str, list[int]] = defaultdict(list)
    settled: defaultdict[str, list[int]] = defaultdict(list)
    doubled = [row for row, times in Counter(row.id for row in history.rows).items() if times > 1]
    if doubled:
        yield f"rows are there twice: {doubled}"
    for row in history.rows:
        marker = marker_of.get(row.turn, "")
        if not marker:
            yield f"row {row.id} belongs to no turn of ours ({row.turn!r})"
            continue
        rows[marker].append(row.tokens)
        if row.state == "SETTLED" and row.tokens:
            settled[marker].append(row.tokens)
    for marker in calls.keys() | rows.keys():
        if len(calls[marker]) > 1:
            yield f"the prompt {marker} reached the model {len(calls[marker])} times"
        if len(calls[marker]) > len(rows[marker]):
            yield f"{len(calls[marker])} calls of {marker} reached the model, and {len(rows[marker])} are in the ledger"
        if unpaid := Counter(settled[marker]) - Counter(calls[marker]):
            yield f"the ledger has for {marker} what the model never counted: {dict(unpaid)} and not {calls[marker]}"


def quiet(history: History) -> Iterator[str]:
    """At the end nothing is under way."""
    for sandbox, (_, state) in history.sandboxes.items():
        if state not in _RESTING:
            yield f"{sandbox} is still {state}"
    for row in history.rows:
        if row.state == "OPEN":
            yield f"row {row.id} is still open"


def _all(history: History) -> Iterator[Event]:
    for log in history.logs.values():
        yield from log


def _odd(numbers: list[int]) -> str:
    """The place where numbers stop following each other."""
    for at, (number, wanted) in enumerate(zip(numbers, range(1, len(numbers) + 1), strict=True)):
        if number != wanted:
            return f"… {numbers[max(0, at - 2) : at + 3]} … at {at}"
    return str(numbers)
