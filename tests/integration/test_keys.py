"""API keys: where they are, where they are not, and what happens when a change of one is cut in two."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc
import pytest
from prometheus_client import generate_latest

from sandboxd.gateway.key_files import DirectoryApiKeys, LayeredApiKeys, StaticApiKeys
from sandboxd.gateway.key_hashes import HmacKeyHashes, ensure_secret
from sandboxd.gateway.key_store import DirectoryKeyStore
from sandboxd.gateway.secret import Secret
from sandboxd.manager.keys import Keys
from sandboxd.model.api_key import ApiKeyState
from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.client import AccountState, Client
from sandboxd.model.client_errors import (
    AccountStateError,
    ApiKeyNotFoundError,
    ClientNotFoundError,
    KeyChangeInProgressError,
)
from sandboxd.model.errors import RequestIdReusedError, StaleOwnerError, UnavailableError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.ids import ClientId, RequestId
from sandboxd.persistence.engine import plain_url
from sandboxd.v1 import key_pb2
from tests.fake_gemini import FakeGemini
from tests.fakes.erasures import FakeKeyHashes, FakeKeyStore
from tests.fakes.manager import NOON, FakeClock, FakeUnits
from tests.gateway_world import GatewayWorld, config_for
from tests.integration.access_world import CALLERS, CLIENT, an_access_world

ACME = ClientId("acme")
HOUR = timedelta(hours=1)
CANARY = "AIzaCANARY-0123456789-abcdefghijklmnopq"
SECOND = "AIzaCANARY-second-one-0123456789-abcdef"


# ------------------------------------------------------------------------------------------------ the directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "keys"


async def test_the_gateway_finds_a_key_at_once_and_nobody_else_can_read_it(directory: Path) -> None:
    reader = DirectoryApiKeys(directory)
    before = reader.key_for(ACME)

    await DirectoryKeyStore(directory).put(ACME, CANARY, generation=1)

    assert (before, reader.key_for(ACME)) == (None, Secret(CANARY))
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["user@example.com", "default", "a.b-c_d", "a", "x" * 63])
async def test_odd_names_of_clients_have_keys_of_their_own(directory: Path, name: str) -> None:
    store, reader = DirectoryKeyStore(directory), DirectoryApiKeys(directory)

    await store.put(ClientId(name), CANARY, generation=1)

    assert reader.key_for(ClientId(name)) == Secret(CANARY)
    assert reader.key_for(ClientId("somebody.else")) is None


async def test_the_key_before_stands_in_until_its_time_and_no_longer(directory: Path) -> None:
    now = datetime.now(UTC)
    moments = [now]
    store, reader = DirectoryKeyStore(directory), DirectoryApiKeys(directory, now=lambda: moments[-1])
    await store.put(ACME, "the-first-key", generation=1)
    none = reader.fallback_for(ACME)

    await store.put(ACME, "the-second-key", generation=2, keep_previous_until=now + HOUR)
    within = (reader.key_for(ACME), reader.fallback_for(ACME))
    moments.append(now + HOUR)
    after = reader.fallback_for(ACME)

    assert none is None
    assert within == (Secret("the-second-key"), Secret("the-first-key"))
    assert after is None


async def test_a_change_that_is_made_again_after_a_crash_changes_nothing_more(directory: Path) -> None:
    store, reader = DirectoryKeyStore(directory), DirectoryApiKeys(directory)
    until = datetime.now(UTC) + HOUR
    await store.put(ACME, "the-first-key", generation=1)

    for _ in range(3):
        await store.put(ACME, "the-second-key", generation=2, keep_previous_until=until)

    assert (reader.key_for(ACME), reader.fallback_for(ACME)) == (Secret("the-second-key"), Secret("the-first-key"))
    assert len(list(directory.iterdir())) == 3


async def test_a_key_that_is_set_or_revoked_leaves_nothing_of_the_ones_before(directory: Path) -> None:
    store, reader = DirectoryKeyStore(directory), DirectoryApiKeys(directory)
    until = datetime.now(UTC) + HOUR
    await store.put(ACME, "the-first-key", generation=1)
    await store.put(ACME, "the-second-key", generation=2, keep_previous_until=until)
    await store.put(ACME, "the-third-key", generation=3)
    set_anew = reader.fallback_for(ACME)
    await store.put(ACME, "the-fourth-key", generation=4, keep_previous_until=until)

    removed = await store.remove(ACME, generation=5)
    again = await store.remove(ACME, generation=5)

    assert (set_anew, removed, again) == (None, 2, 0)
    assert (reader.key_for(ACME), reader.fallback_for(ACME)) == (None, None)
    assert "-key" not in "".join(path.read_text() for path in directory.iterdir())


async def test_a_late_writer_is_refused(directory: Path) -> None:
    store = DirectoryKeyStore(directory)
    await store.put(ACME, "the-second-key", generation=2)

    with pytest.raises(StaleOwnerError):
        await store.put(ACME, "the-first-key", generation=1)

    assert DirectoryApiKeys(directory).key_for(ACME) == Secret("the-second-key")


async def test_a_directory_that_cannot_be_written_is_unavailable_and_no_draft_stays(tmp_path: Path) -> None:
    in_the_way = tmp_path / "keys"
    in_the_way.write_text("a file")

    with pytest.raises(UnavailableError) as refused:
        await DirectoryKeyStore(in_the_way).put(ACME, CANARY, generation=1)

    assert CANARY not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_fingerprints_need_the_secret(tmp_path: Path) -> None:
    secret = ensure_secret(tmp_path / "keys" / "secret")
    mine, again = HmacKeyHashes(secret), HmacKeyHashes(ensure_secret(tmp_path / "keys" / "secret"))
    other = HmacKeyHashes(b"another secret of thirty-two byt")

    assert mine.fingerprint(CANARY) == again.fingerprint(CANARY) != other.fingerprint(CANARY)
    assert mine.fingerprint(CANARY) != mine.fingerprint(SECOND)
    assert mine.digest(CANARY).hex()[:12] != mine.fingerprint(CANARY)


# ------------------------------------------------------------------------------------------------ the use cases


class KeysWorld:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.units, self.store = FakeUnits(self.clock), FakeKeyStore()
        self.units.rows.clients[ACME] = Client(id=ACME, create_time=NOON, update_time=NOON)
        self.keys = self.replica("first")

    def replica(self, name: str) -> Keys:
        return Keys(units=self.units, store=self.store, hashes=FakeKeyHashes(), clock=self.clock, replica=name)


@pytest.fixture
def world() -> KeysWorld:
    return KeysWorld()


def a_request(request_id: str, *, body: bytes = b"body", client: str = "acme") -> Request:
    caller = Caller(client=ClientId(client), subject="boss", role=Role.CLIENT_ADMIN)
    return Request(caller=caller, request_id=RequestId(request_id), body_hash=body)


async def test_what_is_known_of_a_key_changes_with_it(world: KeysWorld) -> None:
    first = await world.keys.set(a_request("request-1"), ACME, "the-first-key")
    world.clock.advance(10)
    second = await world.keys.rotate(a_request("request-2"), ACME, "the-second-key", grace=HOUR)
    world.clock.advance(10)
    gone = await world.keys.revoke(a_request("request-3"), ACME)

    assert (first.state, second.state, gone.state) == (ApiKeyState.ACTIVE, ApiKeyState.ACTIVE, ApiKeyState.REVOKED)
    assert second.previous_fingerprint == first.fingerprint != second.fingerprint
    assert second.previous_expire_time == NOON + timedelta(seconds=10) + HOUR
    assert (gone.previous_fingerprint, gone.revoke_time) == ("", NOON + timedelta(seconds=20))
    assert await world.keys.list(a_request("").caller, ACME) == [gone]
    assert world.store.keys == {}


async def test_a_repeated_change_is_answered_and_made_once(world: KeysWorld) -> None:
    await world.keys.set(a_request("request-1"), ACME, "the-first-key")

    again = await world.keys.set(a_request("request-1"), ACME, "the-first-key")

    assert again.generation == 1
    with pytest.raises(RequestIdReusedError):
        await world.keys.set(a_request("request-1", body=b"another key"), ACME, "another-key")


@pytest.mark.parametrize("place", ["key.after_commit", "key.after_store"])
async def test_a_change_that_was_cut_in_two_is_finished_by_the_same_request(world: KeysWorld, place: str) -> None:
    with arming(f"{place}=error"), pytest.raises(FailpointError):
        await world.keys.set(a_request("request-1"), ACME, "the-first-key")
    with pytest.raises(KeyChangeInProgressError):
        await world.replica("second").set(a_request("request-2"), ACME, "the-other-key")

    finished = await world.replica("second").set(a_request("request-1"), ACME, "the-first-key")

    assert (finished.state, finished.generation) == (ApiKeyState.ACTIVE, 1)
    assert world.store.keys[ACME][:2] == ("the-first-key", 1)


async def test_another_change_overtakes_one_that_nobody_finishes(
    world: KeysWorld,
) -> None:
    with arming("key.after_commit=error"), pytest.raises(FailpointError):
        await world.keys.set(a_request("request-1"), ACME, "the-lost-key")
    world.units.dead_replicas.add("first")

    done = await world.replica("second").set(a_request("request-2"), ACME, "the-other-key")

    assert (done.state, done.generation) == (ApiKeyState.ACTIVE, 2)
    assert world.store.keys[ACME][0] == "the-other-key"


async def test_what_has_no_key_can_be_neither_rotated_nor_revoked_and_who_is_deleted_gets_none(
    world: KeysWorld,
) -> None:
    with pytest.raises(ApiKeyNotFoundError):
        await world.keys.rotate(a_request("request-1"), ACME, "a-key", grace=HOUR)
    with pytest.raises(ApiKeyNotFoundError):
        await world.keys.revoke(a_request("request-2"), ACME)
    with pytest.raises(ClientNotFoundError):
        await world.keys.set(a_request("request-3", client="other"), ACME, "a-key")
    row = world.units.rows.clients[ACME]
    world.units.rows.clients[ACME] = row.enter(AccountState.DELETING, at=NOON)
    with pytest.raises(AccountStateError):
        await world.keys.set(a_request("request-4"), ACME, "a-key")


# ------------------------------------------------------------------------------------------------ the gateway


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    with FakeGemini(key="the-old-key") as fake:
        yield fake


async def test_the_old_key_stands_in_where_the_api_refuses_the_new_one(gemini: FakeGemini, tmp_path: Path) -> None:
    store = DirectoryKeyStore(tmp_path / "keys")
    gateway = GatewayWorld(fake=gemini, config=config_for(gemini, tmp_path), keys=DirectoryApiKeys(tmp_path / "keys"))
    client = gateway.identity.client
    until = datetime.now(UTC) + HOUR
    await store.put(client, "the-old-key", generation=1)
    async with gateway.running():
        before, _ = await gateway.ask("hello")
        await store.put(client, "a-key-with-a-mistake", generation=2, keep_previous_until=until)
        within, _ = await gateway.ask("hello")
        leaked, body = await gateway.ask("fake:leak")
        await store.put(client, "a-key-with-a-mistake", generation=3)
        without, _ = await gateway.ask("hello")
        await store.remove(client, generation=4)
        revoked, _ = await gateway.ask("hello")

    assert (before, within, leaked, without, revoked) == (200, 200, 200, 400, 403)
    assert b"the-old-key" not in body


async def test_a_client_without_a_key_of_its_own_gets_the_installations(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    keys = LayeredApiKeys(DirectoryApiKeys(directory), rest=StaticApiKeys(Secret("of-all")))
    before = keys.key_for(ACME)

    await DirectoryKeyStore(directory).put(ACME, "of-acme", generation=1)

    assert (before, keys.key_for(ACME), keys.key_for(ClientId("other"))) == (
        Secret("of-all"),
        Secret("of-acme"),
        Secret("of-all"),
    )


# ------------------------------------------------------------------------------------------------ the canary


async def test_a_key_is_nowhere_but_where_the_gateway_reads_it(
    postgres_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = f"clients/{CLIENT}/keys/gemini"
    foreign = "clients/somebody-else/keys/gemini"
    admin = next(caller for caller in CALLERS if caller.role is Role.CLIENT_ADMIN)
    service = "sandboxd.v1.KeyService"
    async with an_access_world(tmp_path, postgres_url) as world:

        async def ask(method: str, request: object) -> str:
            answer = await world.ask(f"{service}/{method}", request, admin)  # type: ignore[arg-type]  # a message
            return f"{answer.code} {answer.reason} {answer.shown}"

        answers = [
            await ask("SetKey", key_pb2.SetKeyRequest(request_id="request-1", name=name, key=CANARY)),
            await ask("SetKey", key_pb2.SetKeyRequest(request_id="request-1", name=name, key=CANARY)),
            await ask("SetKey", key_pb2.SetKeyRequest(request_id="request-1", name=name, key=SECOND)),
            await ask("SetKey", key_pb2.SetKeyRequest(request_id="request-2", name=name, key=f"{CANARY} with a space")),
            await ask("SetKey", key_pb2.SetKeyRequest(request_id="bad", name=name, key=CANARY)),
            await ask("SetKey", key_pb2.SetKeyRequest(request_id="request-3", name=foreign, key=CANARY)),
            await ask("RotateKey", key_pb2.RotateKeyRequest(request_id="request-4", name=name, key=SECOND)),
            await ask("ListKeys", key_pb2.ListKeysRequest(parent=f"clients/{CLIENT}")),
        ]
        metrics = generate_latest(world.registry).decode()
        connection = await asyncpg.connect(plain_url(postgres_url))
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        dump = [str(dict(row)) for table in tables for row in await connection.fetch(f'SELECT * FROM "{table[0]}"')]
        await connection.close()
    printed = "".join(capfd.readouterr())
    directory = tmp_path / "data" / "keys" / "gemini"
    kept = [path.read_text() for path in directory.iterdir()]

    ok, bad = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
    assert [answer.split()[0] for answer in answers] == [
        str(code) for code in (ok, ok, bad, bad, bad, grpc.StatusCode.NOT_FOUND, ok, ok)
    ]
    assert "REQUEST_ID_REUSED" in answers[2]
    assert "fingerprint" in answers[-1]
    assert any(CANARY in text for text in kept)
    assert any(SECOND in text for text in kept)
    for place, text in {
        "answers": "".join(answers),
        "metrics": metrics,
        "database": "".join(dump),
        "logs": printed,
    }.items():
        for key in (CANARY, SECOND):
            assert key not in text, place
            assert key.encode().hex() not in text, place
            assert key[5:25] not in text, place
