"""Group commit shares transactions, keeps every answer with its entry, and waits out a database that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sandboxd.model.ids import SandboxId
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.ports import Appended, Entry
from tests.eventually import eventually
from tests.fakes.journal import FakeJournal, FakeStore


@asynccontextmanager
async def running(journal: FakeJournal) -> AsyncIterator[GroupCommit]:
    commit = GroupCommit(journal)
    task = asyncio.create_task(commit.run())
    try:
        yield commit
    finally:
        commit.close()
        await task


async def an_entry(journal: FakeJournal, name: str) -> Entry:
    row = await journal.acquire(SandboxId(name), owner="me", lease=timedelta(seconds=15))
    assert row is not None
    return Entry(conversation=row)


async def test_entries_that_gather_while_one_is_under_way_share_a_transaction() -> None:
    journal = FakeJournal(store=FakeStore())
    entries = [await an_entry(journal, f"sbx-{number}") for number in range(50)]

    async with running(journal) as commit:
        outcomes = await asyncio.gather(*(commit.append(entry) for entry in entries))

    assert outcomes == [Appended.DURABLE] * 50
    assert journal.appends < 10


async def test_a_stale_entry_does_not_touch_its_neighbours() -> None:
    journal = FakeJournal(store=FakeStore())
    stale = await an_entry(journal, "sbx-a")
    await journal.acquire(SandboxId("sbx-a"), owner="me", lease=timedelta(seconds=15))
    good = await an_entry(journal, "sbx-b")

    async with running(journal) as commit:
        outcomes = await asyncio.gather(commit.append(stale), commit.append(good))

    assert list(outcomes) == [Appended.STALE, Appended.DURABLE]


async def test_an_append_waits_until_the_database_is_back() -> None:
    journal = FakeJournal(store=FakeStore())
    entry = await an_entry(journal, "sbx-a")
    journal.store.down = True

    async with running(journal) as commit:
        waiting = asyncio.create_task(commit.append(entry))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        journal.store.down = False

        assert await waiting is Appended.DURABLE


async def test_an_append_whose_answer_was_lost_is_repeated_and_found_durable() -> None:
    journal = FakeJournal(store=FakeStore())
    entry = await an_entry(journal, "sbx-a")
    journal.store.answers_lost = 2

    async with running(journal) as commit:
        assert await commit.append(entry) is Appended.DURABLE


async def test_a_caller_that_gives_up_waiting_does_not_take_its_entry_back() -> None:
    journal = FakeJournal(store=FakeStore())
    entry = await an_entry(journal, "sbx-a")
    journal.store.down = True

    async with running(journal) as commit:
        waiting = asyncio.create_task(commit.append(entry))
        await asyncio.sleep(0.02)
        waiting.cancel()
        journal.store.down = False

        await eventually(lambda: journal.appends > 0)
