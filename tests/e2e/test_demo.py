import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commands import Outcome, sandboxd
from tests.fake_gemini import FakeGemini

pytestmark = [pytest.mark.timeout(300)]

CANARY = "canary-api-key-93f1c7"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # One home for the module, so that PostgreSQL's cluster is made once.
    made = Path(tempfile.mkdtemp(prefix="sandboxd-demo-e2e-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def parsed(outcome: Outcome) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    return lines[:-1], lines[-1]


async def test_the_demo_shows_a_session_and_proves_that_it_outlives_a_pause(home: Path) -> None:
    outcome = await sandboxd("demo", home=home)

    assert outcome.code == 0, outcome.out + outcome.err
    for words in (
        "PRACTICE MODEL",
        "run_shell_command",
        "write_file",
        "the demo answers for you",
        "paused after",
        "resumed after",
        "the file is still there",
        "7 calls",
        "$0.",
        "what to try next",
    ):
        assert words in outcome.out, words
    # No turn of it went wrong, so nothing is said about repeated answers, errors or missing usage.
    assert "asked again" not in outcome.out


async def test_the_ledger_of_the_demo_is_what_the_upstream_counted(home: Path) -> None:
    with FakeGemini(key=CANARY) as upstream:
        outcome = await sandboxd(
            "demo", "--output", "json",
            "--prompt", "fake:multi(path=a.txt; content=hi; cmd=ls)",
            "--prompt", "fake:think",
            "--prompt", "fake:503(times=1)",
            home=home, SANDBOXD_GEMINI_URL=upstream.url, GEMINI_API_KEY=CANARY,
        )  # fmt: skip
        requests = list(upstream.requests)

    assert outcome.code == 0, outcome.err
    events, last = parsed(outcome)
    ledger = last["usage"]["requests"]
    assert [event["turn_completed"]["stop_reason"] for event in events if "turn_completed" in event] == [
        "STOP_REASON_END_TURN"
    ] * 3
    assert len(ledger) == len(requests)
    counted = [(request.get("usage") or {}).get("totalTokenCount", 0) for request in requests]
    assert sorted(row["tokens"]["total"] for row in ledger) == sorted(counted)
    assert last["usage"]["total"]["calls"] == len(requests)
    assert last["usage"]["total"]["tokens"]["total"] == sum(counted)
    assert {row["session"] for row in ledger} == {last["session"]}
    billed = [event["usage"]["total_tokens"] for event in events if "usage" in event]
    assert sum(billed) == sum(counted)
    sequences = [event["sequence"] for event in events if event["sequence"]]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_the_key_of_the_upstream_is_nowhere_but_on_its_way_there(home: Path) -> None:
    with FakeGemini(key=CANARY) as upstream:
        outcome = await sandboxd(
            "demo", "--output", "json", "--keep", "--prompt", "fake:shell(cmd=env; cat /proc/self/environ)",
            home=home, SANDBOXD_GEMINI_URL=upstream.url, GEMINI_API_KEY=CANARY,
        )  # fmt: skip

        assert outcome.code == 0, outcome.err
        assert {request["headers"].get("x-goog-api-key") for request in upstream.requests} == {CANARY}
    assert CANARY not in outcome.out + outcome.err
    leaks = [file for file in home.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    assert leaks == []


async def test_a_turn_that_fails_is_told_and_still_billed(home: Path) -> None:
    with FakeGemini(key=None) as upstream:
        outcome = await sandboxd(
            "demo", "--output", "json", "--prompt", "fake:400(message=nonsense)",
            home=home, SANDBOXD_GEMINI_URL=upstream.url,
        )  # fmt: skip
        requests = list(upstream.requests)

    events, last = parsed(outcome)
    assert outcome.code == 1
    assert "the turn ended error" in outcome.err
    assert "Traceback" not in outcome.err
    assert [event["turn_completed"]["stop_reason"] for event in events if "turn_completed" in event] == [
        "STOP_REASON_ERROR"
    ]
    assert len(last["usage"]["requests"]) == len(requests)
