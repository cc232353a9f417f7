"""Pushes that die leave uploads at a real docker-registry, which are found by their notes and closed there."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.images.registry import UploadStuckError, digest_of
from sandboxd.manager.abandoned_uploads import BrokenUploads
from sandboxd.model.abandoned import AbandonedKind
from sandboxd.model.errors import DatabaseUnavailableError, UnavailableError
from sandboxd.model.image import GenerationId
from sandboxd.persistence.engine import Database
from sandboxd.persistence.uploads import PostgresUploadNotes
from tests.eventually import eventually
from tests.fakes.manager import FakeClock
from tests.fakes.uploads import FakeUploadNotes
from tests.registry_front import RealRegistry, a_front, a_registry

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs docker-registry (Debian: apt-get install docker-registry)"
)

SOON = timedelta(seconds=20)
MEGABYTE = 1 << 20
GEN = GenerationId("gen-1")


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealRegistry]:
    async with a_registry(tmp_path) as registry:
        yield registry


def stored(registry: RealRegistry) -> int:
    """Bytes of all files that the registry has."""
    return sum(one.stat().st_size for one in registry.root.rglob("*") if one.is_file())


async def test_what_a_killed_push_left_is_found_with_its_bytes_and_removed_from_the_registrys_storage(
    real: RealRegistry, database: Database, postgres_url: str, tmp_path: Path
) -> None:
    notes = PostgresUploadNotes(database, clock=SystemClock())
    file = tmp_path / "layer"
    file.write_bytes(os.urandom(5 * MEGABYTE))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.uploading_child", real.address, postgres_url, str(file), str(3 * MEGABYTE)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    async with asyncio.timeout(30):
        assert await child.stdout.readline() == b"stands still\n"
    child.kill()
    await child.wait()
    assert len(real.open_uploads()) == 1
    assert stored(real) >= 3 * MEGABYTE

    async with OciRegistry(real.address, plain=True) as registry:
        place = BrokenUploads(notes, registry, quiet=timedelta(0))
        (found,) = await place.look(timeout=SOON)
        assert (found.kind, found.commit, found.storage) == (AbandonedKind.UPLOAD, GEN, "registry")
        assert (found.size_bytes, found.removable) == (3 * MEGABYTE, True)
        assert await BrokenUploads(notes, registry).look(timeout=SOON) == [], "it may be at work yet"
        await place.remove(found, timeout=SOON)

        assert real.open_uploads() == []
        assert stored(real) < MEGABYTE
        assert await place.look(timeout=SOON) == []
        await place.remove(found, timeout=SOON)


async def test_what_was_cut_within_a_piece_is_told_until_the_registry_itself_has_purged_it(real: RealRegistry) -> None:
    notes, content = FakeUploadNotes(clock=FakeClock()), os.urandom(2 * MEGABYTE)
    quiet = timedelta(seconds=-1)
    reached = asyncio.Event()

    def away(request: web.Request) -> web.Response | None:
        return web.Response(status=503) if request.method == "DELETE" else None

    async with a_front(real) as front:
        front.before = away
        async with OciRegistry(front.address, plain=True, chunk_bytes=MEGABYTE, uploads=notes) as registry:
            pushing = asyncio.create_task(
                registry.upload(
                    "a/b", content, digest=digest_of(content), timeout=SOON, commit=GEN, sent=lambda _: reached.set()
                )
            )
            await reached.wait()
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
    (note,) = notes.rows.values()
    location = URL(note.location, encoded=True)
    _, writer = await asyncio.open_connection(real.address.partition(":")[0], int(real.address.rpartition(":")[2]))
    writer.write(
        f"PATCH {location.raw_path_qs} HTTP/1.1\r\nHost: {real.address}\r\nContent-Length: {MEGABYTE}\r\n"
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content[: MEGABYTE // 2]
    )
    await writer.drain()
    await eventually(lambda: stored(real) > note.sent_bytes + MEGABYTE // 4)
    writer.transport.abort()

    async with OciRegistry(real.address, plain=True) as registry:
        await notes.moved(note.id, location=f"http://{real.address}{location.raw_path_qs}", sent_bytes=note.sent_bytes)
        place = BrokenUploads(notes, registry, quiet=quiet)
        (found,) = await place.look(timeout=SOON)
        assert (found.size_bytes, found.removable) == (note.sent_bytes, False)
        with pytest.raises(UploadStuckError):
            await place.remove(found, timeout=SOON)
        assert len(real.open_uploads()) == 1

        (mark,) = real.open_uploads()
        shutil.rmtree(mark.parent)

        assert await place.look(timeout=SOON) == []
        assert notes.rows == {}


async def test_an_upload_that_ends_well_or_is_taken_back_leaves_no_note_and_one_that_cannot_be_does(
    real: RealRegistry,
) -> None:
    notes, content = FakeUploadNotes(clock=FakeClock()), os.urandom(4 << 16)
    seen = list[tuple[int, str]]()

    def sent(count: int) -> None:
        (note,) = notes.rows.values()
        seen.append((note.sent_bytes, note.commit))

    async with a_front(real) as front:
        registry = OciRegistry(front.address, plain=True, chunk_bytes=1 << 16, uploads=notes)
        async with registry:
            digest = digest_of(content)
            await registry.upload("a/b", content, digest=digest, timeout=SOON, sent=sent, commit=GEN)
            assert seen == [(number << 16, GEN) for number in range(1, 5)]
            assert notes.rows == {}

            def stop(count: int) -> None:
                raise UnavailableError("Whoever is told breaks off.")

            def away(request: web.Request) -> web.Response | None:
                return web.Response(status=503) if request.method == "DELETE" else None

            other = os.urandom(4 << 16)
            with pytest.raises(UnavailableError):
                await registry.upload("a/b", other, digest=digest_of(other), timeout=SOON, sent=stop, commit=GEN)
            assert (notes.rows, real.open_uploads()) == ({}, [])
            front.before = away
            with pytest.raises(UnavailableError):
                await registry.upload("a/b", other, digest=digest_of(other), timeout=SOON, sent=stop, commit=GEN)
            (left,) = notes.rows.values()
            assert len(real.open_uploads()) == 1
            front.before = lambda _: None

            await registry.cancel_upload("a/b", left.location, timeout=SOON)
            await registry.cancel_upload("a/b", left.location, timeout=SOON)

            assert real.open_uploads() == []


async def test_a_note_that_cannot_be_written_holds_up_no_upload(real: RealRegistry) -> None:
    notes = FakeUploadNotes(clock=FakeClock(), trouble=DatabaseUnavailableError("The database is away."))
    content = os.urandom(1 << 16)

    async with OciRegistry(real.address, plain=True, uploads=notes) as registry:
        await registry.upload("a/b", content, digest=digest_of(content), timeout=SOON, commit=GEN)

        assert await registry.has_blob("a/b", digest_of(content), timeout=SOON)
