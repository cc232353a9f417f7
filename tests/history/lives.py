"""Could one sandbox have answered so? A search for an order of everything that explains all answers (Wing and Gong).

A mutation is two steps, the intent (…-ING) and the rest; both happen between its call and its answer. One whose answer
never came may have done both, the first, or nothing, at any time after its call. A read is one step. An order explains
a history when no step happens outside its time and every read gives what was answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.history.record import Kind, Operation, Outcome, Request

ABSENT: Final = ""
"""The state of a sandbox before it is there."""
_STEPS: Final[Mapping[Kind, tuple[frozenset[str], str, str]]] = {
    Kind.CREATE: (frozenset({ABSENT}), "CREATING", "ACTIVE"),
    Kind.PAUSE: (frozenset({"ACTIVE"}), "PAUSING", "PAUSED"),
    Kind.RESUME: (frozenset({"PAUSED", "FAILED"}), "RESUMING", "ACTIVE"),
    Kind.TERMINATE: (frozenset({"ACTIVE", "PAUSED", "FAILED"}), "TERMINATING", "TERMINATED"),
}
"""From where, over what, to what."""
_MAY_FAIL: Final = frozenset({Kind.CREATE, Kind.RESUME})
"""What brings a sandbox up may leave it FAILED, where nobody was told that it worked."""
MAX_LOOKS: Final = 200_000
"""Combinations that are looked at; a sandbox's history is far below."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of the search."""

    start: float
    end: float
    required: bool
    after: int
    """Number of the step that must come before it, or -1."""
    sources: frozenset[str] | None
    """States in which it may happen; None: any."""
    targets: tuple[str, ...]
    """States that it leads to; empty: it changes nothing."""


def explainable(requests: Iterable[Request]) -> bool:
    """Tell whether one sandbox, doing one thing after the other, could have given these answers.

    Raises:
        RuntimeError: There are too many combinations to tell.
    """
    steps: list[_Step] = []
    for request in requests:
        if request.kind is Kind.GET:
            (read,) = request.attempts
            if read.outcome is Outcome.OK:
                steps.append(_Step(read.start, read.end, True, -1, frozenset({read.state}), ()))
        elif request.kind in _STEPS and request.outcome is not Outcome.FAILED:
            steps += _mutation(request, first=len(steps))
    return _search(steps)


def _mutation(request: Request, *, first: int) -> list[_Step]:
    sources, during, rest = _STEPS[request.kind]
    ok = request.outcome is Outcome.OK
    ends = (rest,) if ok or request.kind not in _MAY_FAIL else (rest, "FAILED")
    return [
        _Step(request.start, request.end, ok, -1, sources, (during,)),
        _Step(request.start, request.end, ok, first, frozenset({during}), ends),
    ]


def _search(steps: Sequence[_Step]) -> bool:
    required = sum(1 << number for number, step in enumerate(steps) if step.required)
    waiting = [(0, ABSENT)]
    looked = {waiting[0]}
    while waiting:
        done, state = waiting.pop()
        if done & required == required:
            return True
        latest = min(
            (step.end for number, step in enumerate(steps) if step.required and not done >> number & 1),
            default=math.inf,
        )
        for number, step in enumerate(steps):
            if done >> number & 1 or step.start > latest or (step.after >= 0 and not done >> step.after & 1):
                continue
            if step.sources is not None and state not in step.sources:
                continue
            for target in step.targets or (state,):
                found = (done | 1 << number, target)
                if found not in looked:
                    looked.add(found)
                    waiting.append(found)
        if len(looked) > MAX_LOOKS:
            raise RuntimeError("the history of one sandbox has too many combinations")
    return False


def story(operations: Sequence[Operation]) -> str:
    """Tell a sandbox's history in lines, for a person who must find out what went wrong."""
    return "\n".join(
        f"  {one.start:8.3f} .. {one.end:8.3f} {one.client}: {one.kind.value} {one.outcome.value}"
        f" {one.state} {one.reason} {one.request_id}".rstrip()
        for one in sorted(operations, key=lambda one: one.start)
    )
