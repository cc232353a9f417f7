"""Fifty lives of one sandbox, one after the other: what each of them wrote is there in all that follow."""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
import time
from collections.abc import AsyncIterator
from typing import Final

import pytest

from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.cluster.stack import ClusterStack, a_cluster_stack
from tests.e2e.stack import Transcript
from tests.installation import ClusterInstallation

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]

LIVES: Final = 50
WORDS_EVERY: Final = 10
"""A life in so many has a turn of the conversation, too: a start of the CLI costs more than one of the pod."""
WRITE: Final = 'set -e; for d in /workspace /home/gemini; do printf %s "$2" > "$d/$1.txt"; done; sync'
READ: Final = "for d in /workspace /home/gemini; do cat $d/life-*.txt | sha256sum; done; ls /workspace | wc -l"


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    async with a_cluster_stack(cluster_installation, postgres_url) as made:
        yield made


async def test_fifty_lives_keep_every_file_of_every_life_and_one_conversation(stack: ClusterStack) -> None:
    written, said, seconds = "", list[str](), list[float]()
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        session, sequence = "", 0
        for life in range(LIVES):
            if life % WORDS_EVERY == 0:
                async with client.stream(sandbox.name, session=session, after_sequence=sequence) as stream:
                    seen = Transcript(stream=stream)
                    turn = await seen.turn(f"fake:say(text=this is life {life}.)")
                    session = stream.session

                assert turn.stop_reason == stream_pb2.STOP_REASON_END_TURN
                assert seen.events[0].sequence == sequence + 1
                sequence = seen.events[-1].sequence
                said.append(f"this is life {life}.")
                asked = [one for one in stack.model.requests if "streamGenerateContent" in one["path"]][-1]
                assert [words for words in said if words not in json.dumps(asked["body"])] == [], "the model remembers"
            word = secrets.token_hex(16)
            stack.inside(sandbox, "sh", "-c", WRITE, "sh", f"life-{life:02d}", word)
            written += word

            began = time.monotonic()
            await client.pause(sandbox.name)
            resumed = await client.resume(sandbox.name)
            seconds.append(time.monotonic() - began)

            digest = hashlib.sha256(written.encode()).hexdigest()
            found = stack.inside(sandbox, "sh", "-c", READ).split()
            assert found == [digest, "-", digest, "-", str(life + 1)], f"after {life + 1} lives"
            assert resumed.state == sandbox_pb2.SANDBOX_STATE_ACTIVE
            if (life + 1) % WORDS_EVERY == 0:
                print(f"{life + 1} of {LIVES} lives, P50 {statistics.median(seconds):.2f} s", flush=True)
        after = await client.get(sandbox.name)

    assert after.incarnations == LIVES + 1
    assert len(stack.kubectl("get", "pods", "-o", "name").split()) == 1
