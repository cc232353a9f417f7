"""`python -m tests.bench.layer`: what writing a layer costs, beside `tar | zstd` of the same tree in the same run."""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil

from sandboxd.images.baseline_file import write_records
from sandboxd.images.layer_process import WorkerLayerWriter
from sandboxd.images.ports import Baseline, BuildProgress, ImageLimits, LayerOrder, WrittenLayer
from sandboxd.model.rootfs import BaselineEntry, BaselineRecord, CaptureFrame, EntryKind
from tests.rootfs_trees import Tree, marker_now, records_of

PATIENCE = timedelta(minutes=10)
LIMITS = ImageLimits(raw_bytes=8 << 30, compressed_bytes=8 << 30)
GONE = BaselineRecord(entry=BaselineEntry(path=b"gone", kind=EntryKind.FILE, mode=0o644, uid=0, gid=0))
WORDS = [b"import", b"return", b"self", b"none", b"value", b"\n", b"    ", b"def", b"(", b")", b"==", b"0x7f"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A tree, and what of it is new."""

    name: str
    grow: Callable[[Path], None]
    new: bool = True
    """Against an empty base; else all of it is the base, and one file of it is gone."""
    gone: bool = False
    """The base, which is empty otherwise, had one file: so there is a whiteout, and the tar is hashed at the end."""


def text(source: random.Random, size: int) -> bytes:
    """Something that packs as programs' texts do."""
    return b" ".join(source.choices(WORDS, k=size // 4))[:size]


def many_small(place: str, count: int, size: int) -> Callable[[Path], None]:
    """Texts, ten to a directory."""

    def grow(root: Path) -> None:
        source = random.Random(1)
        block = text(source, 1 << 20)
        for number in range(count):
            directory = root / place / f"package{number // 10}"
            directory.mkdir(parents=True, exist_ok=True)
            begin = source.randrange(len(block) - size) if size else 0
            (directory / f"module{number % 10}.js").write_bytes(block[begin : begin + size])

    return grow


def few_large(count: int, size: int) -> Callable[[Path], None]:
    """Libraries: half of each packs well, half not at all."""

    def grow(root: Path) -> None:
        source = random.Random(2)
        for number in range(count):
            half = text(source, size // 16) * 8
            (root / f"library{number}.so").write_bytes(half + source.randbytes(size - len(half)))

    return grow


@dataclass(slots=True, kw_only=True)
class Result:
    """One measurement."""

    layer: WrittenLayer
    seconds: float
    processor: float
    """Of the worker."""
    peak: float
    """Its resident memory at most, MB."""


async def write(case: Case, root: Path, place: Path, baseline: list[BaselineRecord]) -> Result:
    """Write what differs. The frames are there before: the walk is the agent's (`tests.bench.capture`)."""
    directory = place / "layer"
    directory.mkdir()
    records = [GONE] if case.gone else baseline
    file = place / "baseline"
    count = await asyncio.to_thread(write_records, file, records)
    tree = Tree(root=root, baseline=[one.entry for one in records], marker_ns=marker_now(place))
    order = LayerOrder(baseline=Baseline(file=file, entries=count), directory=directory, limits=LIMITS)
    frames = list(tree.frames(left_out={}))
    before, began = _processor(), time.monotonic()
    writing = asyncio.create_task(
        WorkerLayerWriter().write(_stream(frames), order, timeout=PATIENCE, progress=_ignore), name="layer"
    )
    peak = 0
    await asyncio.sleep(0.3)
    workers = psutil.Process().children()  # looked for once: it reads all of /proc
    while not writing.done():
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, worker.memory_info().rss)
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - began
    layer = await writing
    processor = _processor() - before
    shutil.rmtree(directory)
    return Result(layer=layer, seconds=seconds, processor=processor, peak=peak / 1e6)


async def _stream(frames: list[CaptureFrame]) -> AsyncIterator[CaptureFrame]:
    for frame in frames:
        yield frame


def _ignore(progress: BuildProgress) -> None:
    pass


def tar_and_zstd(root: Path) -> tuple[float, float]:
    """Seconds, and those of processors, of `tar | zstd -3` on one thread."""
    before, began = _processor(), time.monotonic()
    command = f"tar --sort=name --numeric-owner -C '{root}' -cf - . | zstd -3 -T1 -q -f -o '{root.parent / 'x'}' -"
    subprocess.run(["sh", "-c", command], check=True)
    return time.monotonic() - began, _processor() - before


def _processor() -> float:
    """Seconds of processors that ended children have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree_bytes(root: Path) -> int:
    """Of all files."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


async def run(case: Case, times: int) -> None:
    """Measure one case some times, in turns with tar, and print the best as a row."""
    place = Path(tempfile.mkdtemp(prefix="layer-bench-"))
    try:
        root = place / "root"
        root.mkdir()
        case.grow(root)
        baseline = [] if case.new else records_of(root)
        if not case.new:
            next(path for path in root.rglob("*") if path.is_file()).unlink()
        inodes, size = sum(1 for _ in root.rglob("*")), tree_bytes(root) / 1e6
        os.sync()
        results, tars = [], []
        for _ in range(times):
            results.append(await write(case, root, place, baseline))
            if shutil.which("zstd"):
                tars.append(tar_and_zstd(root))
        best = min(results, key=lambda one: one.seconds)
        spent = min(one.processor for one in results)
        tar = f"{min(tars)[0]:.1f} ({min(one[1] for one in tars):.1f})" if tars and case.new else ""
        raw, compressed = best.layer.raw_bytes / 1e6, best.layer.compressed_bytes / 1e6
        peak = max(one.peak for one in results)
        print(
            f"| {case.name} | {best.layer.entries:,} | {raw:,.0f} | {compressed:,.0f} "
            f"| {best.seconds:.1f} ({spent:.1f}) | {inodes / spent:,.0f} | {size / spent:,.0f} | {peak:.0f} | {tar} |",
            flush=True,
        )
    finally:
        shutil.rmtree(place)


async def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also 300,000 inodes")
    arguments = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f}, processors: {os.cpu_count()}")
    print("| Tree | Entries | Tar, MB | zstd, MB | Seconds (CPU) | Inodes | MB | Worker, MB | tar and zstd, s (CPU) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    cases = [
        Case(name="60,000 files of 2 KB in `node_modules`", grow=many_small("srv/node_modules", 60_000, 2_000)),
        Case(name="10,000 of them in `/srv`, searched for keys", grow=many_small("srv", 10_000, 2_000)),
        Case(name="32 files of 16 MB", grow=few_large(32, 16 << 20)),
        Case(name="the same, and a file of the base is gone", grow=few_large(32, 16 << 20), gone=True),
        Case(name="one file gone of a base of 60,000", grow=many_small("usr", 60_000, 0), new=False),
    ]
    if arguments.large:
        cases += [
            Case(name="270,000 empty files", grow=many_small("usr", 270_000, 0)),
            Case(name="one file gone of a base of 270,000", grow=many_small("usr", 270_000, 0), new=False),
        ]
    for case in cases:
        await run(case, arguments.times)
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    asyncio.run(main())
