"""What the tests on a real cluster share. Each of them is skipped, and counted, where no cluster is up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

import pytest

from tests.cluster.stack import ClusterStack, a_shared_stack, one_tests
from tests.installation import an_installation
from tests.kube import Cluster
from tests.postgres import PostgresServer


@pytest.fixture(autouse=True)
def _on_a_cluster(cluster: Cluster) -> Cluster:
    return cluster


@pytest.fixture(scope="session")
def shared_stack(
    cluster: Cluster,
    pod_images: Mapping[str, str],
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ClusterStack]:
    """A stack in an installation of its own, for all tests that take both as they are: a start costs many seconds."""
    with (
        an_installation(cluster, pod_images, tmp_path_factory) as installation,
        a_shared_stack(installation, postgres_server) as made,
    ):
        yield made


@pytest.fixture
async def stack(shared_stack: ClusterStack) -> AsyncIterator[ClusterStack]:
    """The shared one, for a client of this test alone."""
    async with one_tests(shared_stack) as mine:
        yield mine
