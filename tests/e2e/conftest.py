"""A real stack for each test that wants one."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.dev.gemini_cli import ensure_gemini_cli
from tests.e2e.stack import Stack
from tests.fake_gemini import FakeGemini


@pytest.fixture
async def stack(postgres_url: str) -> AsyncIterator[Stack]:
    """`serve` and `gateway` are up; both may be killed."""
    await asyncio.to_thread(ensure_gemini_cli, lambda _: None)
    home = Path(tempfile.mkdtemp(prefix="sandboxd-e2e-"))
    with FakeGemini(key=None) as model:
        made = Stack(home=home, database_url=postgres_url, model=model)
        try:
            await asyncio.gather(made.start("gateway"), made.start("serve"))
            yield made
        finally:
            await made.stop()
            shutil.rmtree(home, ignore_errors=True)
