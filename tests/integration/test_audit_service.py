"""AuditService and `sandboxctl audit` on a real PostgreSQL: who reads what, and what was done to a chain is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from sandboxd.bootstrap.sources import RandomIds, SystemClock
from sandboxd.ctl.app import app
from sandboxd.model.audit import canonical
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.monitor.audit_desk import AuditDesk
from sandboxd.monitor.audit_heads import HeadSigner
from sandboxd.monitor.audit_ports import ANONYMOUS_ROLE, OK, AuditFilter, Deed, Outcome
from sandboxd.monitor.audit_trail import GroupedAuditTrail
from sandboxd.monitor.audit_writer import AuditMetrics
from sandboxd.persistence.audit_head_files import DirectoryHeadExport
from sandboxd.persistence.audit_keys import FileAuditKeys
from sandboxd.persistence.audit_reading import PostgresAuditReader
from sandboxd.persistence.audit_store import PostgresAuditStore
from sandboxd.persistence.engine import Database, plain_url
from sandboxd.v1 import audit_pb2
from tests.integration.api_world import World, a_world, refused

WAIT = timedelta(seconds=30)


@dataclass(kw_only=True)
class AuditWorld:
    api: World
    trail: GroupedAuditTrail
    signer: HeadSigner
    reader: PostgresAuditReader
    url: str
    path: Path

    async def given_deeds(self, count: int, *, client: str = "acme") -> None:
        for number in range(count):
            deed = Deed(
                client=ClientId(client),
                role="freelancer",
                action="SandboxService/Pause",
                actor="ada",
                peer="10.1.2.3",
                target=f"sandboxes/sbx-{number}",
                request_id=f"request-{number}",
                freelancer=FreelancerId("ada"),
            )
            self.trail.conclude(await self.trail.intend(deed, timeout=WAIT), OK)
        await self.trail.settle(timeout=WAIT)

    async def tamper(self, *statements: str) -> None:
        """Do what only the owner of the tables can do, and only after taking the protection away."""
        connection = await asyncpg.connect(plain_url(self.url))
        try:
            for table in ("audit_entries", "audit_heads", "audit_chains", "audit_texts"):
                await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def verify(self, **claims: Any) -> tuple[list[tuple[str, int, int]], audit_pb2.AuditVerdict]:
        findings, verdict = [], None
        call = self.api.audit.VerifyAudit(audit_pb2.VerifyAuditRequest(), metadata=self.api.metadata(**claims))
        async for response in call:
            if response.HasField("finding"):
                one = response.finding
                kind = audit_pb2.AuditFindingKind.Name(one.kind).removeprefix("AUDIT_FINDING_KIND_")
                findings.append((kind, one.sequence, one.until))
            elif response.HasField("verdict"):
                verdict = response.verdict
        assert verdict is not None
        return findings, verdict

    async def ctl(self, *words: str) -> tuple[int, str, str]:
        environment = {"SANDBOXCTL_ADDRESS": f"127.0.0.1:{self.api.port}", "SANDBOXCTL_TOKEN": self.api.token}
        result = await asyncio.to_thread(CliRunner(env=environment).invoke, app, ("audit", *words))
        # The service runs in this process, too, and its log goes where the command's output goes.
        out = "".join(line for line in result.stdout.splitlines(keepends=True) if "[info" not in line)
        return result.exit_code, out, result.stderr

    @property
    def public_keys(self) -> str:
        return str(self.path / "public")

    @property
    def heads(self) -> str:
        return str(self.path / "heads")


@pytest.fixture
async def world(database: Database, postgres_url: str, tmp_path: Path) -> AsyncIterator[AuditWorld]:
    async with an_audit_world(database, postgres_url, tmp_path) as made:
        yield made


@asynccontextmanager
async def an_audit_world(database: Database, url: str, path: Path) -> AsyncIterator[AuditWorld]:
    clock = SystemClock()
    reader = PostgresAuditReader(database)
    keys = FileAuditKeys(private_file=path / "audit.pem", public_directory=path / "public")
    outside = DirectoryHeadExport(path / "heads")
    trail = GroupedAuditTrail(
        PostgresAuditStore(database),
        clock=clock,
        ids=RandomIds(clock),
        replica="one",
        metrics=AuditMetrics(CollectorRegistry()),
    )
    signer = HeadSigner(reader=reader, keys=keys, export=outside, clock=clock, interval=WAIT)
    desk = AuditDesk(reader=reader, trail=trail, keys=keys, outside=outside, clock=clock)
    running = asyncio.create_task(trail.run())
    try:
        async with a_world(path, audit=(trail, desk)) as api:
            yield AuditWorld(api=api, trail=trail, signer=signer, reader=reader, url=url, path=path)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_entries_are_listed_page_by_page_as_soon_as_they_were_said(world: AuditWorld) -> None:
    await world.given_deeds(3)

    found: list[audit_pb2.AuditEntry] = []
    request = audit_pb2.ListAuditEntriesRequest(page_size=4)
    while True:
        page = await world.api.audit.ListAuditEntries(request, metadata=world.api.metadata())
        found += page.entries
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert [entry.sequence for entry in found] == [1, 2, 3, 4, 5, 6]
    assert {entry.chain for entry in found} == {"clients/acme"}
    assert {text.name: text.value for text in found[0].texts} == {
        "actor": "ada",
        "peer": "10.1.2.3",
        "freelancer": "ada",
    }
    assert found[1].intent == 1


async def test_a_page_token_is_good_for_its_own_list_only(world: AuditWorld) -> None:
    await world.given_deeds(2)
    first = audit_pb2.ListAuditEntriesRequest(page_size=1)
    token = (await world.api.audit.ListAuditEntries(first, metadata=world.api.metadata())).next_page_token
    where = audit_pb2.AuditFilter(actor="ada")

    for request in (
        audit_pb2.ListAuditEntriesRequest(page_token=token, filter=where),
        audit_pb2.ListAuditEntriesRequest(page_token=token, order_by="sequence desc"),
        audit_pb2.ListAuditEntriesRequest(page_token="rubbish"),
    ):
        error = await refused(world.api.audit.ListAuditEntries(request, metadata=world.api.metadata()))
        assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_a_client_reads_its_own_chain_and_the_platform_every_one(world: AuditWorld) -> None:
    await world.given_deeds(1)
    world.trail.deny(
        Deed(client=ClientId(""), role=ANONYMOUS_ROLE, action="x", peer="10.6.6.6"), Outcome(code="UNAUTHENTICATED")
    )

    async def read(chain: str, **claims: Any) -> Any:
        request = audit_pb2.ListAuditEntriesRequest(chain=chain)
        return await world.api.audit.ListAuditEntries(request, metadata=world.api.metadata(**claims))

    assert len((await read("", role="auditor")).entries) == 2
    assert len((await read("clients/acme", role="client_admin")).entries) == 2
    assert len((await read("clients/acme", role="platform", client="other")).entries) == 2
    assert len((await read("", role="auditor", client="other")).entries) == 0
    (denied,) = (await read("system", role="platform")).entries
    assert (denied.kind, denied.count) == (audit_pb2.AUDIT_KIND_DENIED, 1)
    for chain, claims in (
        ("system", {"role": "client_admin"}),
        ("clients/acme", {"role": "auditor", "client": "other"}),
    ):
        error = await refused(read(chain, **claims))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "AUDIT_CHAIN_NOT_FOUND")
    error = await refused(read("", role="freelancer", sub="ada"))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_FORBIDDEN")


async def test_an_untouched_chain_is_valid_and_an_empty_one_as_well(world: AuditWorld) -> None:
    empty = await world.verify()
    await world.given_deeds(5)
    await world.signer.sign()
    await world.given_deeds(2)

    findings, verdict = await world.verify()

    assert (empty[0], empty[1].valid, empty[1].entries) == ([], True, 0)
    assert findings == []
    assert (verdict.valid, verdict.entries, verdict.last_sequence) == (True, 14, 14)
    assert verdict.heads == 2  # one inside, and the same outside
    assert await world.signer.sign() == 1
    assert await world.signer.sign() == 0


CUT = (
    "DELETE FROM audit_entries WHERE sequence > 6",
    "DELETE FROM audit_texts WHERE sequence > 6",
    "DELETE FROM audit_heads WHERE sequence > 6",
    "UPDATE audit_chains SET head_sequence = 6, head_hash = (SELECT hash FROM audit_entries WHERE sequence = 6)",
)
TAMPERED: Sequence[tuple[Sequence[str], tuple[str, int, int]]] = (
    (("UPDATE audit_entries SET role = 'platform' WHERE sequence = 4",), ("CHANGED", 4, 4)),
    (("UPDATE audit_entries SET time = time + interval '1 us' WHERE sequence = 4",), ("CHANGED", 4, 4)),
    (("DELETE FROM audit_entries WHERE sequence IN (4, 5)",), ("MISSING", 4, 5)),
    (("DELETE FROM audit_entries WHERE sequence > 6",), ("CUT", 7, 10)),
    (("DELETE FROM audit_entries",), ("CUT", 1, 10)),
    # With all traces inside the database gone, the heads outside of it know better.
    (CUT, ("CUT", 7, 10)),
    (("UPDATE audit_texts SET value = 'eve' WHERE sequence = 3 AND name = 'actor'",), ("TEXT_CHANGED", 3, 3)),
    (("UPDATE audit_heads SET hash = sha256('x')",), ("BAD_SIGNATURE", 10, 10)),
    (
        (
            """UPDATE audit_chains SET head_sequence = 9,
            head_hash = (SELECT hash FROM audit_entries WHERE sequence = 9)""",
        ),
        ("ADDED", 10, 10),
    ),
)


@pytest.mark.parametrize(("statements", "expected"), TAMPERED)
async def test_what_the_owner_of_the_database_did_to_a_chain_is_found_and_named(
    world: AuditWorld, statements: Sequence[str], expected: tuple[str, int, int]
) -> None:
    await world.given_deeds(5)
    await world.signer.sign()
    await world.tamper(*statements)

    findings, verdict = await world.verify()

    assert expected in findings
    assert min(findings, key=lambda one: one[1])[1] == expected[1]
    assert not verdict.valid


async def test_the_database_takes_entries_on_behind_a_head_that_was_cut_off_and_it_still_shows(
    world: AuditWorld,
) -> None:
    await world.given_deeds(5)
    await world.signer.sign()
    await world.tamper(*CUT)
    await world.given_deeds(4)

    findings, _ = await world.verify()

    assert ("REWRITTEN", 1, 10) in findings


async def test_an_export_is_verified_offline_by_sandboxctl_and_by_hand(world: AuditWorld, tmp_path: Path) -> None:
    await world.given_deeds(3)
    await world.signer.sign()
    file = tmp_path / "acme.jsonl"

    exported = await world.ctl("export", "--file", str(file))
    valid = await world.ctl("verify", str(file), "--key", world.public_keys, "--heads", world.heads, "-o", "json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text(file.read_text().replace("sandboxes/sbx-1", "sandboxes/sbx-9"))
    changed = await world.ctl("verify", str(file), "--key", world.public_keys)

    assert exported[0] == valid[0] == 0
    assert json.loads(valid[1])["valid"] is True
    assert [next(iter(line)) for line in lines] == ["begin", "key", "head", *["entry"] * 6, "seal"]
    assert changed[0] == 1
    assert "from entry 3 on" in changed[1]
    assert "CHANGED entry 3" in changed[1]
    (record,) = await world.reader.records(ClientId("acme"), AuditFilter(), after=0, limit=1)
    assert canonical(record.entry).startswith(b"23:sandboxd.audit.entry.v1,4:acme,1:1,")


async def test_an_export_goes_on_where_it_was_interrupted(world: AuditWorld, tmp_path: Path) -> None:
    await world.given_deeds(3)
    file = tmp_path / "acme.jsonl"
    await world.ctl("export", "--file", str(file))
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:5]) + whole[5][:20])

    interrupted = await world.ctl("verify", str(file), "--key", world.public_keys)
    again = await world.ctl("export", "--file", str(file))
    resumed = await world.ctl("export", "--file", str(file), "--resume")
    await world.given_deeds(1)
    brought_up_to_date = await world.ctl("export", "--file", str(file), "--resume")
    verified = await world.ctl("verify", str(file), "--key", world.public_keys, "-o", "json")

    assert (interrupted[0], again[0]) == (1, 2)
    assert "--resume" in again[2]
    assert resumed[0] == brought_up_to_date[0] == verified[0] == 0
    assert json.loads(verified[1])["last_sequence"] == 8


async def test_sandboxctl_lists_and_verifies_on_the_service(world: AuditWorld) -> None:
    await world.given_deeds(2)

    listed = await world.ctl("ls", "--limit", "2")
    as_json = await world.ctl("ls", "--kind", "outcome", "--code", "ok", "-o", "json")
    valid = await world.ctl("verify")
    await world.tamper("DELETE FROM audit_entries WHERE sequence = 2")
    broken = await world.ctl("verify")
    foreign = await world.ctl("verify", "--client", "other")

    assert listed[0] == valid[0] == 0
    assert "SandboxService/Pause" in listed[1]
    assert [json.loads(line)["intent"] for line in as_json[1].splitlines()] == [3, 1]
    assert "all is as it was written (4 entries" in valid[1]
    assert (broken[0], foreign[0]) == (1, 3)
    assert "MISSING entry 2" in broken[1]


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "nothing.jsonl", "--key", "nothing.pem"),
        ("verify", "nothing.jsonl"),
        ("verify", "--key", "nothing.pem"),
        ("ls", "--client", "acme", "--system"),
        ("export", "--resume"),
    ],
)
async def test_a_command_line_that_means_nothing_is_refused(world: AuditWorld, words: Sequence[str]) -> None:
    assert (await world.ctl(*words))[0] == 2


async def test_a_key_can_be_rotated_and_old_heads_stay_good(
    database: Database, postgres_url: str, tmp_path: Path
) -> None:
    async with an_audit_world(database, postgres_url, tmp_path) as world:
        await world.given_deeds(2)
        await world.signer.sign()
    (tmp_path / "audit.pem").rename(tmp_path / "audit-old.pem")

    async with an_audit_world(database, postgres_url, tmp_path) as world:
        await world.given_deeds(2)
        await world.signer.sign()
        both = await world.verify()
        old = min((tmp_path / "public").glob("*.pem"), key=lambda file: file.stat().st_mtime_ns)
        old.rename(tmp_path / "gone")
        fresh = await world.verify()

    assert both[0] == []
    assert len(list((tmp_path / "public").glob("*.pem"))) == 1
    assert both[1].heads == 4
    assert fresh[0] == [] or {kind for kind, *_ in fresh[0]} == {"UNKNOWN_KEY"}
