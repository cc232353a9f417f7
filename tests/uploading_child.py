"""A process that pushes a blob and stands still in the middle: its test kills it there."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta
from pathlib import Path

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.images.registry import digest_of
from sandboxd.model.image import GenerationId
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.uploads import PostgresUploadNotes


async def push(address: str, url: str, file: Path, *, stop_at: int) -> None:
    """Push a file for the commit `gen-1`; say so, and stand still, when the registry has so many bytes."""

    def sent(count: int) -> None:
        if count >= stop_at:
            sys.stdout.write("stands still\n")
            sys.stdout.flush()
            time.sleep(60)

    database = Database(make_engine(DatabaseSettings(url=url, application_name="uploading child", pool_size=1)))
    notes = PostgresUploadNotes(database, clock=SystemClock())
    async with OciRegistry(address, plain=True, chunk_bytes=1 << 20, uploads=notes) as registry:
        digest = digest_of(file.read_bytes())
        await registry.upload(
            "a/b", file, digest=digest, timeout=timedelta(seconds=60), sent=sent, commit=GenerationId("gen-1")
        )


if __name__ == "__main__":
    asyncio.run(push(sys.argv[1], sys.argv[2], Path(sys.argv[3]), stop_at=int(sys.argv[4])))
