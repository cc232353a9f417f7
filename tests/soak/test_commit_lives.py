"""Fifty lives of one sandbox, with an install in each; now and then the service dies at a step of a commit."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.cluster.commit_lives import KILLS, Lives
from tests.cluster.stack import ClusterStack, a_keeping_stack
from tests.eventually import eventually
from tests.installation import ClusterInstallation

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

LIVES: Final = 50
KILLS_EVERY: Final = 6
TELL_EVERY: Final = 10


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    async with a_keeping_stack(cluster_installation, postgres_url, prefix=f"lives-{uuid.uuid4().hex[:8]}") as made:
        yield made


async def test_fifty_lives_keep_what_each_installed_in_one_layer(stack: ClusterStack) -> None:
    lives, layers = await Lives.begin(stack), set[int]()

    for life in range(LIVES):
        turn, due = divmod(life, KILLS_EVERY)
        kills = (KILLS[turn % len(KILLS)],) if due == 1 else ()
        image = await lives.live(kills=kills, pause=life % 2 == 0)
        layers.add(image.layers)
        if (life + 1) % TELL_EVERY == 0:
            commits, starts = statistics.median(lives.commit_seconds), statistics.median(lives.start_seconds)
            told = f"commit P50 {commits:.1f} s, pause and resume P50 {starts:.1f} s, {image.raw_bytes / 1e6:.1f} MB"
            print(f"{life + 1} of {LIVES} lives, {told}", flush=True)

    assert len(layers) == 1, "one layer of its own, however often it was committed"
    await eventually(lives.are_latest, within=60, every=0.5, what="the tag is told")
