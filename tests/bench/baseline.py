"""`python -m tests.bench.baseline`: what it costs to read a base image from its layers, by how many files it has."""

import argparse
import asyncio
import contextlib
import gzip
import hashlib
import os
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, cast

import psutil

from sandboxd.images.baselines import RegistryBaselines
from sandboxd.images.building import entries_of
from tests.fakes.registry import FakeRegistry
from tests.oci_images import Image, an_image

FILES_IN_DIRECTORY = 9
DIRECTORIES_IN_DIRECTORY = 12
"""The last level is empty, so there are more directories than files."""
PATIENCE = timedelta(minutes=20)


class _Hashing:
    """A file that is only written to, with the hash of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self._file.write(data)


def paths(entries: int) -> Iterator[tuple[str, bool]]:
    """Name directories and files, level by level; whether it is a directory."""
    made, waiting = 0, [""]
    while made < entries:
        directory = waiting.pop(0)
        for number in range(FILES_IN_DIRECTORY):
            yield f"{directory}some-file-{number}.py", False
        for number in range(DIRECTORIES_IN_DIRECTORY):
            yield f"{directory}package{number}", True
            waiting.append(f"{directory}package{number}/")
        made += FILES_IN_DIRECTORY + DIRECTORIES_IN_DIRECTORY


def image(entries: int, place: Path) -> Image:
    """Make an image of one layer with so many entries, each file with 100 bytes of its own."""
    file = place / "layer.tar.gz"
    with gzip.open(file, "wb", compresslevel=1) as packed:
        hashing = _Hashing(cast("BinaryIO", packed))
        with tarfile.open(fileobj=cast("BinaryIO", hashing), mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for path, directory in paths(entries):
                member = tarfile.TarInfo(path)
                member.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
                member.mode, member.size = (0o755, 0) if directory else (0o644, 100)
                with open(os.devnull if directory else "/dev/urandom", "rb") as content:  # noqa: PTH123 - one line
                    archive.addfile(member, content)
    return an_image(b"", diff_ids=[f"sha256:{hashing.hash.hexdigest()}"], blobs=[file.read_bytes()])


def _processor_seconds() -> float:
    """Of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _peak_mb() -> float:
    """Look at the worker's resident memory five times a second until cancelled; the largest figure.

    What the system counts for it begins with this process's own memory, from which it is started.
    """
    peak = 0
    try:
        while True:
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if any("baseline_worker" in word for word in child.cmdline()):
                        peak = max(peak, child.memory_info().rss)
            await asyncio.sleep(0.2)
    except asyncio.CancelledError:
        return peak / 1e6


async def run(entries: int) -> None:
    """Make one image, read it, print a row."""
    place = Path(tempfile.mkdtemp(prefix="baseline-bench-"))
    try:
        registry = FakeRegistry()
        base = await (await asyncio.to_thread(image, entries, place)).push(registry, "base")
        baselines = RegistryBaselines(registry=registry, directory=place / "cache", size_bytes=1 << 40)
        watching = asyncio.create_task(_peak_mb())
        began, used = time.monotonic(), _processor_seconds()
        made = await baselines.baseline(base, timeout=PATIENCE)
        read, processor = time.monotonic() - began, _processor_seconds() - used
        watching.cancel()
        peak = await watching
        began = time.monotonic()
        await baselines.baseline(base, timeout=PATIENCE)
        again = time.monotonic() - began
        began = time.monotonic()
        count = 0
        async for _ in entries_of(made):
            count += 1
        streamed = time.monotonic() - began
        assert count == made.entries
        print(
            f"| {made.entries:,} | {read:.1f} | {processor:.1f} | {made.entries / processor:,.0f} | {peak:.0f} "
            f"| {made.file.stat().st_size / 1e6:.1f} | {again * 1000:.0f} | {streamed:.1f} |",
            flush=True,
        )
    finally:
        shutil.rmtree(place)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", default="60000,300000,640000", help="of images, with commas, growing")
    arguments = parser.parse_args()
    print(
        "| Entries | Seconds | Processor seconds of the worker | Entries in each | Worker, MB | File, MB | Again, ms "
        "| Passed on, s |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for entries in map(int, arguments.entries.split(",")):
        asyncio.run(run(entries))


if __name__ == "__main__":
    main()
