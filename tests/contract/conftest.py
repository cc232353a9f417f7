"""The legs of the contract suites that need something real: PostgreSQL, a cluster."""

from collections.abc import AsyncIterator

import pytest

from sandboxd.kubeapi.client import KubeClient
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.persistence.engine import Database
from tests.cluster_keys import SecretWorld
from tests.contract.postgres_worlds import PostgresJournalWorld, PostgresLedgerWorld, PostgresUnitsWorld
from tests.contract.units_world import FakeUnitsWorld, UnitsWorld
from tests.kube import Cluster


@pytest.fixture
async def postgres_journal_world(database: Database, postgres_url: str) -> AsyncIterator[PostgresJournalWorld]:
    world = PostgresJournalWorld(database, postgres_url)
    yield world
    await world.end()


@pytest.fixture
async def postgres_units_world(database: Database, postgres_url: str) -> AsyncIterator[PostgresUnitsWorld]:
    world = PostgresUnitsWorld(database, postgres_url)
    yield world
    await world.end()


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> UnitsWorld:
    """Units of work in memory and in PostgreSQL. Suites of other ports have a `world` of their own."""
    if request.param == "fake":
        return FakeUnitsWorld()
    made: UnitsWorld = request.getfixturevalue("postgres_units_world")
    return made


@pytest.fixture
def postgres_ledger_world(database: Database) -> PostgresLedgerWorld:
    return PostgresLedgerWorld(database=database)


@pytest.fixture
async def secret_keys(cluster: Cluster, instance: str) -> AsyncIterator[SecretWorld]:
    namespace = f"test-{instance}"
    labels = {INSTANCE_LABEL: instance}
    async with KubeClient(cluster.kubeconfig) as api:
        await api.create("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
        await api.create(f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "gemini-keys"}})
        yield SecretWorld(api=api, namespace=namespace, secret="gemini-keys")
