"""A real stack for each test that wants one."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from sandboxd.dev.gemini_cli import ensure_gemini_cli
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from tests.e2e.stack import Stack
from tests.fake_gemini import FakeGemini

StackMaker = Callable[..., AbstractAsyncContextManager[Stack]]


@pytest.fixture
def make_stack() -> StackMaker:
    """Make stacks: `async with make_stack(database_url, api_key=…) as stack`."""

    @asynccontextmanager
    async def make(
        database_url: str, *, api_key: str = "", settings: dict[str, str] | None = None, failpoints: str = ""
    ) -> AsyncIterator[Stack]:
        await asyncio.to_thread(ensure_gemini_cli, lambda _: None)
        home = Path(tempfile.mkdtemp(prefix="sandboxd-e2e-"))
        with FakeGemini(key=api_key or None) as model:
            made = Stack(home=home, database_url=database_url, model=model, api_key=api_key, settings=settings or {})
            try:
                await asyncio.gather(made.start("gateway"), made.start("serve", failpoints=failpoints))
                yield made
            finally:
                await made.stop()
                shutil.rmtree(home, ignore_errors=True)

    return make


@pytest.fixture
async def stack(postgres_url: str, make_stack: StackMaker) -> AsyncIterator[Stack]:
    """`serve` and `gateway` are up; both may be killed."""
    async with make_stack(postgres_url) as made:
        yield made


@pytest.fixture
async def own_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A server that a test may stop."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-pg-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        await migrations.upgrade(await server.start())
        yield server
        await server.stop()
