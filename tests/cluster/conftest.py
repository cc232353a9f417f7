"""What the tests on a real cluster share. Each of them is skipped, and counted, where no cluster is up."""

from __future__ import annotations

import pytest

from tests.kube import Cluster


@pytest.fixture(autouse=True)
def _on_a_cluster(cluster: Cluster) -> Cluster:
    return cluster
