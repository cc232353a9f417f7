"""A layer's worker in bad weather: killed, stopped, out of room, sent garbage; and many commits at once."""

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from sandboxd.images import layer_process
from sandboxd.images.baseline_file import write_records
from sandboxd.images.layer_process import COMMAND, WorkerLayerWriter
from sandboxd.images.layer_wire import FRAME_BYTES, encode, encode_order
from sandboxd.images.layer_worker import ADDRESS_BYTES
from sandboxd.images.ports import Baseline, BuildProgress, LayerOrder, WrittenLayer
from sandboxd.model.errors import DeadlineError
from sandboxd.model.image_errors import CaptureInvalidError, ImageTooLargeError, LayerWriterFailedError
from sandboxd.model.rootfs import CaptureFrame, CaptureProgress, ChangedEntry, EntryKind, SkippedPath
from tests.eventually import eventually
from tests.layers import AMPLE, Base, a_file, an_entry, base, ended
from tests.small_disk import small_disk

PATIENCE = timedelta(seconds=60)


@pytest.fixture
def order(tmp_path: Path) -> LayerOrder:
    return an_order(tmp_path, "layer")


def an_order(directory: Path, name: str) -> LayerOrder:
    file, place = directory / "baseline", directory / name
    place.mkdir()
    count = write_records(file, base(Base(path=b"etc/passwd", content=b"root")))
    return LayerOrder(baseline=Baseline(file=file, entries=count), directory=place, limits=AMPLE)


class Stream:
    """Frames that are given one by one, and then go on as told."""

    def __init__(self, frames: Iterable[CaptureFrame], *, waits: bool = False) -> None:
        self._frames = iter(frames)
        self._waits = waits
        self.taken = 0
        self.closed = False

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> CaptureFrame:
        for frame in self._frames:
            self.taken += 1
            return frame
        if self._waits:
            await asyncio.Event().wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


def ignore(progress: BuildProgress) -> None:
    pass


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "sandboxd.images.layer_worker" in process.cmdline():
                found.append(process)
    return found


async def the_worker() -> psutil.Process:
    await eventually(lambda: len(workers()) == 1, within=20)
    return workers()[0]


async def begun(order: LayerOrder, frames: Stream, **options: timedelta) -> "asyncio.Task[WrittenLayer]":
    timeout = options.get("timeout", PATIENCE)
    return asyncio.create_task(WorkerLayerWriter().write(frames, order, timeout=timeout, progress=ignore))


def nothing_stays(order: LayerOrder) -> bool:
    return workers() == [] and list(order.directory.iterdir()) == []


async def test_a_worker_that_is_killed_is_an_error_and_leaves_nothing(order: LayerOrder) -> None:
    frames = Stream([*a_file(b"a", os.urandom(2 << 20)), CaptureProgress(entries=1, bytes=1)], waits=True)
    writing = await begun(order, frames)
    await eventually(lambda: frames.taken >= 10 and any(order.directory.iterdir()), within=20)

    (await the_worker()).kill()

    with pytest.raises(LayerWriterFailedError, match="SIGKILL"):
        await writing
    assert nothing_stays(order)
    assert frames.closed


async def test_a_worker_that_hangs_is_ended_at_the_deadline(order: LayerOrder) -> None:
    endless = Stream(SkippedPath(path=b"%d" % number, reason="mount") for number in range(1 << 40))
    writing = await begun(order, endless, timeout=timedelta(seconds=4))
    (await the_worker()).send_signal(signal.SIGSTOP)
    await asyncio.sleep(1)
    taken = endless.taken

    with pytest.raises(DeadlineError):
        await writing

    assert endless.taken <= taken + 20_000, "nobody takes frames that the worker has no room for"
    assert nothing_stays(order)
    assert endless.closed


async def test_a_caller_who_leaves_takes_the_worker_along(order: LayerOrder) -> None:
    frames = Stream([*a_file(b"a", os.urandom(1 << 20)), CaptureProgress(entries=1, bytes=1)], waits=True)
    writing = await begun(order, frames)
    await eventually(lambda: any(order.directory.iterdir()), within=20)

    writing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await writing
    assert nothing_stays(order)
    assert frames.closed


async def test_a_worker_whose_service_dies_ends(order: LayerOrder) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={}
    )
    assert process.stdin is not None
    process.stdin.write(encode_order(order, cpu_seconds=60) + encode(a_file(b"a")[0]))
    await process.stdin.drain()

    process.stdin.close()  # as the kernel does for a process that was killed

    async with asyncio.timeout(20):
        assert await process.wait() == 0
    assert list(order.directory.iterdir()) == []


async def test_a_full_disk_is_an_error_and_leaves_nothing(order: LayerOrder, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", megabytes=1) as small:
        tight = replace(order, directory=small.path)

        with pytest.raises(LayerWriterFailedError, match="no room"):
            await WorkerLayerWriter().write(
                Stream(ended(a_file(b"a", os.urandom(4 << 20)))), tight, timeout=PATIENCE, progress=ignore
            )

        assert list(small.path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("/nonexistent/python",),
        (sys.executable, "-c", ""),
        (sys.executable, "-c", "print('nonsense')"),
        (sys.executable, "-c", "print('{\"written\": {}}')"),
        (sys.executable, "-c", "print('x' * (2 << 20))"),
        (sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"),
        (sys.executable, "-c", 'print(\'{"failed": "CRASHED", "message": "", "metadata": {}}\')'),
    ],
)
async def test_a_worker_that_is_none_is_an_error(order: LayerOrder, command: tuple[str, ...]) -> None:
    frames = Stream(a_file(b"a", bytes(4 << 20)), waits=True)

    with pytest.raises(LayerWriterFailedError):
        await WorkerLayerWriter(command=command).write(frames, order, timeout=PATIENCE, progress=ignore)

    assert nothing_stays(order)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x00\x00",
        b"\x09\x01\x00\x00\x00x",
        b"\x01\xff\xff\xff\xff",  # a gigabyte is announced
        b"\x02\x00\x00\x00\x00",
        b"\x02\x05\x00\x00\x00abcde",
        b"\x03\x00\x00\x00\x00",
        b"\x05\x00\x00\x00\x00",
        b"\x05\x02\x00\x00\x00\x01\xff",
        b"\x07\x01\x00\x00\x00x",
        b"\x01\x05\x00",
        encode(ChangedEntry(path=b"a", kind=EntryKind.FILE, mode=0, uid=0, gid=0, xattrs={b"user.x": b"1"}))[:-1],
        os.urandom(4096),
    ],
)
async def test_garbage_is_refused_in_words(order: LayerOrder, garbage: bytes) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={}
    )

    out, _ = await process.communicate(encode_order(order, cpu_seconds=60) + garbage)

    assert process.returncode == 0
    assert b'"failed": "CaptureInvalidError"' in out
    assert list(order.directory.iterdir()) == []


async def test_frames_that_no_sandbox_sends_are_refused_before_they_are_sent(order: LayerOrder) -> None:
    for frame in (
        ChangedEntry(path=b"a", kind=EntryKind.FILE, mode=1 << 64, uid=0, gid=0),
        ChangedEntry(path=b"a" * (FRAME_BYTES + 1), kind=EntryKind.FILE, mode=0, uid=0, gid=0),
    ):
        with pytest.raises(CaptureInvalidError):
            await WorkerLayerWriter().write(Stream([frame]), order, timeout=PATIENCE, progress=ignore)
    assert nothing_stays(order)


async def test_one_frame_with_much_content_is_cut_for_the_worker(order: LayerOrder) -> None:
    content = os.urandom(3 << 20)

    layer = await WorkerLayerWriter().write(
        Stream(ended(a_file(b"a", content, pieces=len(content)))), order, timeout=PATIENCE, progress=ignore
    )

    assert layer.largest == [("/a", len(content))]


async def test_an_endless_stream_of_nothing_new_ends_at_the_deadline_in_little_memory(order: LayerOrder) -> None:
    endless = Stream(SkippedPath(path=b"%d" % number, reason="mount") for number in range(1 << 40))
    writing = await begun(order, endless, timeout=timedelta(seconds=5))
    worker = await the_worker()
    await asyncio.sleep(3.5)
    resident = worker.memory_info().rss

    with pytest.raises(DeadlineError):
        await writing
    assert resident < 80 << 20


async def test_a_worker_has_bounds_and_nothing_of_the_service(
    order: LayerOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXD_GEMINI_API_KEY", "secret")
    writing = await begun(order, Stream([CaptureProgress(entries=1, bytes=1)], waits=True))
    worker = await the_worker()
    await eventually(lambda: any(order.directory.iterdir()), within=20)

    assert worker.environ() == {}
    assert worker.nice() == 5
    assert resource.prlimit(worker.pid, resource.RLIMIT_AS)[0] == 1 << 30
    assert resource.prlimit(worker.pid, resource.RLIMIT_CORE)[0] == 0
    assert resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)[0] < 3 << 30
    assert 60 <= resource.prlimit(worker.pid, resource.RLIMIT_CPU)[0] <= 71
    opened = {path.readlink().name for path in Path(f"/proc/{worker.pid}/fd").iterdir() if int(path.name) > 2}
    assert not any("socket:" in one for one in opened), "of the service's connections it has none"
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing


async def test_twenty_at_once_are_two_at_a_time(tmp_path: Path) -> None:
    orders = [an_order(tmp_path, f"layer-{number}") for number in range(20)]
    writer, most = WorkerLayerWriter(), 0
    frames = [Stream(ended(a_file(b"a", os.urandom(1 << 20)))) for _ in orders]
    writing = [
        asyncio.create_task(writer.write(stream, order, timeout=PATIENCE, progress=ignore))
        for stream, order in zip(frames, orders, strict=True)
    ]
    assert layer_process.WORKERS == 2

    while not all(task.done() for task in writing):
        most = max(most, len(workers()))
        await asyncio.sleep(0.05)

    assert most <= 2
    layers = await asyncio.gather(*writing)
    assert [layer.entries for layer in layers] == [1] * 20
    assert workers() == []


async def test_who_waits_for_a_turn_has_a_deadline_and_begins_nothing(tmp_path: Path) -> None:
    writer = WorkerLayerWriter(workers=1)
    first = asyncio.create_task(
        writer.write(Stream([], waits=True), an_order(tmp_path, "first"), timeout=PATIENCE, progress=ignore)
    )
    await the_worker()
    second, order = Stream(ended([])), an_order(tmp_path, "second")

    with pytest.raises(DeadlineError):
        await writer.write(second, order, timeout=timedelta(seconds=0.3), progress=ignore)

    assert second.taken == 0
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    layer = await writer.write(second, order, timeout=PATIENCE, progress=ignore)
    assert layer.entries == 0


@pytest.mark.timeout(300)
async def test_memory_stays_flat_with_a_hundred_thousand_entries(order: LayerOrder) -> None:
    """A third of what there may be, within half of what may be used: the same for an entry, in a third of the time."""
    count, directories = 99_900, 999
    peak = addresses = 0

    def frames() -> Iterable[CaptureFrame]:
        for number in range(directories):
            yield from an_entry(b"d%03d" % number)
            for file in range(count // directories):
                yield from a_file(b"d%03d/%03d" % (number, file), b"%d" % file)

    made = ended(frames())
    writing = asyncio.create_task(
        WorkerLayerWriter().write(Stream(made), order, timeout=timedelta(seconds=280), progress=ignore)
    )
    worker = await the_worker()
    while not writing.done():
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = worker.memory_info()
            peak, addresses = max(peak, memory.rss), max(addresses, memory.vms)
        await asyncio.sleep(0.2)

    layer = await writing
    assert addresses < ADDRESS_BYTES // 2, "of what it may take there is as much again"
    assert layer.entries == directories + count // directories * directories
    assert peak < 40 << 20


async def test_one_entry_too_many_is_refused(order: LayerOrder) -> None:
    limits = replace(AMPLE, entries=3)
    frames = ended([frame for number in range(4) for frame in a_file(b"%d" % number)])

    with pytest.raises(ImageTooLargeError):
        await WorkerLayerWriter().write(
            Stream(frames), replace(order, limits=limits), timeout=PATIENCE, progress=ignore
        )
    assert nothing_stays(order)
