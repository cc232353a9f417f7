"""Life after life of one sandbox, with an install in each, while the service dies at every step of a commit."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.cluster.commit_lives import KILLS, Lives
from tests.cluster.stack import ClusterStack, a_keeping_stack
from tests.eventually import eventually
from tests.installation import ClusterInstallation

LIVES: Final = 5


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    async with a_keeping_stack(cluster_installation, postgres_url, prefix=f"lives-{uuid.uuid4().hex[:8]}") as made:
        yield made


@pytest.mark.timeout(600)
async def test_five_lives_keep_what_each_installed_although_the_service_dies_at_every_step_of_a_commit(
    stack: ClusterStack,
) -> None:
    lives = await Lives.begin(stack)

    for life in range(LIVES):
        await lives.live(kills=KILLS if life == 1 else (), pause=life % 2 == 0)

    await eventually(lives.are_latest, within=60, every=0.5, what="the tag is told")
