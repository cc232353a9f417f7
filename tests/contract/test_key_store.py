"""What every store of API keys promises, held by the fake, by a directory and by a Secret of a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest

from sandboxd.gateway.key_store import DirectoryKeyStore
from sandboxd.manager.key_ports import KeyStore
from sandboxd.model.api_key import PREVIOUS, UNTIL, KeyMark, key_entry_name
from sandboxd.model.errors import StaleOwnerError
from sandboxd.model.ids import ClientId
from tests.cluster_keys import SecretWorld
from tests.fakes.erasures import FakeKeyStore

ACME, OTHER = ClientId("acme"), ClientId("user@example.com")
UNTIL_TIME = datetime.now(UTC) + timedelta(hours=1)


class KeyStoreWorld(Protocol):
    @property
    def store(self) -> KeyStore: ...

    async def entries(self) -> Mapping[str, str]:
        """What the gateway would find."""


@dataclass(kw_only=True)
class FakeWorld:
    store: FakeKeyStore

    async def entries(self) -> Mapping[str, str]:
        marks = {
            f"{key_entry_name(client)}{UNTIL}": KeyMark(
                generation=generation, until=self.store.keys[client][2] if client in self.store.keys else None
            ).dump()
            for client, generation in self.store.generations.items()
        }
        current = {key_entry_name(client): key for client, (key, _, _) in self.store.keys.items()}
        previous = {f"{key_entry_name(client)}{PREVIOUS}": key for client, key in self.store.previous.items()}
        return marks | current | previous


@dataclass(kw_only=True)
class DirectoryWorld:
    store: DirectoryKeyStore
    directory: Path

    async def entries(self) -> Mapping[str, str]:
        return {path.name: path.read_text() for path in self.directory.iterdir()}


@pytest.fixture(params=["fake", "directory", "secret"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> KeyStoreWorld:
    if request.param == "secret":
        made: SecretWorld = request.getfixturevalue("secret_keys")
        return made
    if request.param == "directory":
        return DirectoryWorld(store=DirectoryKeyStore(tmp_path / "keys"), directory=tmp_path / "keys")
    return FakeWorld(store=FakeKeyStore())


async def test_a_key_has_the_entry_of_its_client_and_no_other(world: KeyStoreWorld) -> None:
    await world.store.put(ACME, "the-first-key", generation=1)
    await world.store.put(OTHER, "another-key", generation=1)

    entries = await world.entries()
    assert (entries["acme"], entries["userATexample.com"]) == ("the-first-key", "another-key")
    assert set(entries) == {"acme", f"acme{UNTIL}", "userATexample.com", f"userATexample.com{UNTIL}"}


async def test_a_rotated_key_leaves_the_one_before_with_its_end(world: KeyStoreWorld) -> None:
    await world.store.put(ACME, "the-first-key", generation=1)

    await world.store.put(ACME, "the-second-key", generation=2, keep_previous_until=UNTIL_TIME)

    entries = await world.entries()
    assert (entries["acme"], entries[f"acme{PREVIOUS}"]) == ("the-second-key", "the-first-key")
    assert KeyMark.load(entries[f"acme{UNTIL}"]) == KeyMark(generation=2, until=UNTIL_TIME)


async def test_the_same_change_once_more_changes_nothing(world: KeyStoreWorld) -> None:
    await world.store.put(ACME, "the-first-key", generation=1)
    await world.store.put(ACME, "the-second-key", generation=2, keep_previous_until=UNTIL_TIME)
    before = await world.entries()

    await world.store.put(ACME, "the-second-key", generation=2, keep_previous_until=UNTIL_TIME)

    assert await world.entries() == before


async def test_a_key_that_is_set_drops_the_one_before(world: KeyStoreWorld) -> None:
    await world.store.put(ACME, "the-first-key", generation=1)
    await world.store.put(ACME, "the-second-key", generation=2, keep_previous_until=UNTIL_TIME)

    await world.store.put(ACME, "the-third-key", generation=3)

    assert f"acme{PREVIOUS}" not in await world.entries()


async def test_removed_keys_are_counted_and_leave_only_their_mark(world: KeyStoreWorld) -> None:
    await world.store.put(ACME, "the-first-key", generation=1)
    await world.store.put(ACME, "the-second-key", generation=2, keep_previous_until=UNTIL_TIME)

    removed = await world.store.remove(ACME, generation=3)
    again = await world.store.remove(ACME, generation=3)

    assert (removed, again) == (2, 0)
    assert set(await world.entries()) == {f"acme{UNTIL}"}


async def test_a_late_writer_is_refused_and_changes_nothing(world: KeyStoreWorld) -> None:
    await world.store.put(ACME, "the-second-key", generation=2)
    before = await world.entries()

    with pytest.raises(StaleOwnerError):
        await world.store.put(ACME, "the-first-key", generation=1)
    with pytest.raises(StaleOwnerError):
        await world.store.remove(ACME, generation=1)

    assert await world.entries() == before


async def test_changes_of_many_clients_at_once_are_all_there(world: KeyStoreWorld) -> None:
    clients = [ClientId(f"client-{number}") for number in range(8)]

    await asyncio.gather(*(world.store.put(client, f"key-of-{client}", generation=1) for client in clients))

    entries = await world.entries()
    assert {entries[client] for client in clients} == {f"key-of-{client}" for client in clients}
