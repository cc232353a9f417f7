"""`python -m tests.bench.backup`: what snapshots and a restore by restic cost, beside `tar | zstd` of the same tree."""

import argparse
import asyncio
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path

from sandboxd.backends.restic.child import ResticSettings
from sandboxd.backends.restic.repository import ResticRepository
from sandboxd.model.backup import SnapshotId
from tests.backup_trees import everything, ignore
from tools.restic import ensure_restic

PATIENCE = timedelta(minutes=10)
WORDS = [f"word{number}" for number in range(5000)]


def grow(root: Path, *, megabytes: int, files: int) -> None:
    """Make a tree as people have it: text that compresses, and a fifth that does not."""
    chance = random.Random(7)
    size = (megabytes << 20) // files
    for number in range(files):
        place = root / f"project{number % 97}" / f"file{number}.txt"
        place.parent.mkdir(exist_ok=True)
        if number % 5 == 0:
            place.write_bytes(chance.randbytes(size))
        else:
            place.write_text(" ".join(chance.choices(WORDS, k=size // 8))[:size])


def size_of(place: Path) -> float:
    """Megabytes of a file, or of all files below a directory."""
    paths = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths) / (1 << 20)


async def timed(name: str, work: Callable[[], Awaitable[object]], stored: Path) -> None:
    """Do it, and print its row."""
    before, used, began = size_of(stored) if stored.exists() else 0.0, _processor_seconds(), time.monotonic()
    await work()
    seconds, processor = time.monotonic() - began, _processor_seconds() - used
    print(f"| {name} | {seconds:.1f} | {processor:.1f} | {size_of(stored) - before:.1f} |", flush=True)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def shell(command: str) -> None:
    """Run a pipe."""
    await asyncio.to_thread(subprocess.run, ["bash", "-ceuo", "pipefail", command], check=True)


async def run(place: Path, *, megabytes: int, files: int) -> None:
    """Measure both, in turns, on one tree."""
    root, archive = place / "home", place / "archive"
    root.mkdir()
    archive.mkdir()
    grow(root, megabytes=megabytes, files=files)
    (place / "password").write_text("a secret")
    settings = ResticSettings(
        location=str(place / "kept"),
        password_file=place / "password",
        work=place / "work",
        program=str(ensure_restic()),
    )
    repository = ResticRepository(settings)
    await repository.prepare(timeout=PATIENCE)
    taken: list[SnapshotId] = []

    async def snapshot() -> None:
        made = await repository.snapshot(root, source="bench", tags={}, timeout=PATIENCE, progress=ignore)
        taken.append(made.id)

    async def pack() -> None:
        await shell(f"tar -C {root} --xattrs -cf - . | zstd -q -3 -T2 -f -o {archive}/all.tar.zst")

    async def restore() -> None:
        await repository.restore(taken[-1], place / "back", timeout=PATIENCE, progress=ignore)

    async def unpack() -> None:
        (place / "unpacked").mkdir()
        await shell(f"zstd -q -dc {archive}/all.tar.zst | tar -C {place / 'unpacked'} --xattrs -xpf -")

    print("| What | Seconds | Processor seconds | Stored, MB |\n| --- | --- | --- | --- |")
    await timed("first snapshot", snapshot, place / "kept")
    await timed("`tar | zstd -3`", pack, archive)
    await timed("second snapshot, nothing changed", snapshot, place / "kept")
    for number in range(0, files, max(1, files // 100)):
        with (root / f"project{number % 97}" / f"file{number}.txt").open("ab") as file:
            file.write(os.urandom(1000))
    await timed("third snapshot, 1 KB more in 1 % of the files", snapshot, place / "kept")
    (archive / "all.tar.zst").unlink()
    await timed("`tar | zstd -3` again", pack, archive)
    await timed("restore", restore, place / "kept")
    await timed("`zstd -d | tar -x`", unpack, archive)
    assert everything(place / "back") == everything(root), "what came back is something else"


async def restores(place: Path, sizes: Sequence[int]) -> None:
    """Measure a snapshot and a restore of trees of so many megabytes, in one repository on this machine's disk."""
    (place / "password").write_text("a secret")
    settings = ResticSettings(
        location=str(place / "kept"),
        password_file=place / "password",
        work=place / "work",
        program=str(ensure_restic()),
    )
    repository = ResticRepository(settings)
    await repository.prepare(timeout=PATIENCE)
    print("| MB | Files | Snapshot, s | Restore, s | Restored, MB a second |\n| ---: | ---: | ---: | ---: | ---: |")
    for megabytes in sizes:
        root, back, files = place / f"home-{megabytes}", place / f"back-{megabytes}", max(10, 10 * megabytes)
        root.mkdir()
        grow(root, megabytes=megabytes, files=files)
        began = time.monotonic()
        made = await repository.snapshot(root, source=root.name, tags={}, timeout=PATIENCE, progress=ignore)
        taken = time.monotonic()
        await repository.restore(made.id, back, timeout=PATIENCE, progress=ignore)
        done = time.monotonic()
        assert everything(back) == everything(root), "what came back is something else"
        speed = megabytes / (done - taken)
        print(f"| {megabytes} | {files:,} | {taken - began:.1f} | {done - taken:.1f} | {speed:.0f} |", flush=True)
        shutil.rmtree(root)
        shutil.rmtree(back)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--restores", default="", help="only snapshots and restores, of so many MB, with commas")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="backup-bench-"))
    try:
        if arguments.restores:
            asyncio.run(restores(place, [int(size) for size in arguments.restores.split(",")]))
        else:
            asyncio.run(run(place, megabytes=arguments.megabytes, files=arguments.files))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
