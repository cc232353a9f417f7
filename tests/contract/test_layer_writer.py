"""What a layer's writer promises to whoever builds images: the same suite for the fake and for worker processes."""

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.images.baseline_file import write_records
from sandboxd.images.layer_process import WorkerLayerWriter
from sandboxd.images.ports import Baseline, BuildProgress, ImageLimits, LayerOrder, LayerWriter, SecretPolicy
from sandboxd.model.errors import DeadlineError, SandboxdError, UnavailableError
from sandboxd.model.image_errors import (
    BaselineDamagedError,
    CaptureInvalidError,
    FileTornError,
    ImageTooLargeError,
    SecretsFoundError,
)
from sandboxd.model.rootfs import CaptureFrame, CaptureProgress, DeletedPath, SkippedPath
from tests.fakes.layer import FakeLayerWriter
from tests.layers import AMPLE, Base, a_file, a_link, an_entry, base, ended, expanded, members

PATIENCE = timedelta(seconds=60)
TREE = base(
    Base(path=b"etc/passwd", content=b"root"),
    Base(path=b"opt/tool/a", content=b"a"),
    Base(path=b"opt/tool/b", content=b"b"),
)
CHANGES = [
    *a_file(b"etc/passwd", b"toor", mode=0o4755),
    DeletedPath(b"opt/tool/a"),
    *a_file(b"opt/tool/c", b"c", names=2, xattrs={b"user.x": b"\0"}),
    *a_link(b"opt/tool/d", b"opt/tool/c"),
]
KEY = "AIza" + "SyA" + "b" * 32


@pytest.fixture(params=["fake", "worker"])
def writer(request: pytest.FixtureRequest) -> LayerWriter:
    return FakeLayerWriter() if request.param == "fake" else WorkerLayerWriter()


Order = Callable[..., LayerOrder]


@pytest.fixture
def order(tmp_path: Path) -> LayerOrder:
    file, directory = tmp_path / "baseline", tmp_path / "layer"
    directory.mkdir()
    return LayerOrder(
        baseline=Baseline(file=file, entries=write_records(file, TREE)), directory=directory, limits=AMPLE
    )


async def stream(frames: Iterable[CaptureFrame]) -> AsyncIterator[CaptureFrame]:
    for frame in frames:
        yield frame


def ignore(progress: BuildProgress) -> None:
    pass


def left_in(order: LayerOrder) -> list[str]:
    return sorted(path.name for path in order.directory.iterdir())


async def refused(
    writer: LayerWriter, order: LayerOrder, frames: Iterable[CaptureFrame] | AsyncIterator[CaptureFrame]
) -> SandboxdError:
    frames = frames if isinstance(frames, AsyncIterator) else stream(frames)
    with pytest.raises(SandboxdError) as caught:
        await writer.write(frames, order, timeout=PATIENCE, progress=ignore)
    assert left_in(order) == []
    return caught.value


@pytest.mark.parametrize("zstd", [True, False])
async def test_a_layer_is_what_its_digests_say(writer: LayerWriter, order: LayerOrder, *, zstd: bool) -> None:
    order = replace(order, zstd=zstd)

    layer = await writer.write(stream(ended(CHANGES)), order, timeout=PATIENCE, progress=ignore)

    data, tar = layer.file.read_bytes(), expanded(layer.file)
    assert layer.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert (layer.compressed_bytes, layer.raw_bytes) == (len(data), len(tar))
    assert layer.media_type == f"application/vnd.oci.image.layer.v1.tar+{'zstd' if zstd else 'gzip'}"
    names = [member.name for member in members(tar)]
    assert names == ["opt/tool/.wh.a", "etc", "etc/passwd", "opt", "opt/tool", "opt/tool/c", "opt/tool/d"]
    assert layer.entries == len(names)
    assert layer.largest == [("/etc/passwd", 4), ("/opt/tool/c", 1)]
    assert left_in(order) == [layer.file.name]
    assert layer.file.parent == order.directory


@pytest.mark.parametrize("zstd", [True, False])
@pytest.mark.parametrize("gone", [False, True])
async def test_the_same_difference_is_the_same_bytes(
    writer: LayerWriter, order: LayerOrder, tmp_path: Path, *, zstd: bool, gone: bool
) -> None:
    content = os.urandom(1 << 18) * 12
    deleted = [DeletedPath(b"opt/tool/b")] if gone else []
    layers = []
    for number, pieces in enumerate((1 << 18, 100_001)):
        directory = tmp_path / str(number)
        directory.mkdir()
        frames = ended([*a_file(b"opt/big", content, pieces=pieces), *deleted])
        asked = replace(order, directory=directory, zstd=zstd)
        layers.append(await writer.write(stream(frames), asked, timeout=PATIENCE, progress=ignore))

    first, second = layers
    assert first.file.read_bytes() == second.file.read_bytes()
    assert replace(first, file=second.file) == second
    assert hashlib.sha256(expanded(first.file)).hexdigest() == first.diff_id.removeprefix("sha256:")


async def test_nothing_is_a_layer_of_no_entry(writer: LayerWriter, order: LayerOrder) -> None:
    frames = ended([*an_entry(b"etc"), *a_file(b"etc/passwd", b"root")])

    layer = await writer.write(stream(frames), order, timeout=PATIENCE, progress=ignore)

    assert (layer.entries, layer.raw_bytes) == (0, 1024)
    assert layer.diff_id == f"sha256:{hashlib.sha256(bytes(1024)).hexdigest()}"


async def test_how_far_it_is_is_told(writer: LayerWriter, order: LayerOrder) -> None:
    told: list[BuildProgress] = []
    frames = [CaptureProgress(entries=500, bytes=9), *ended(CHANGES)]

    await writer.write(stream(frames), order, timeout=PATIENCE, progress=told.append)

    assert told == [
        BuildProgress(phase="capture", entries=500, bytes=9),
        BuildProgress(phase="capture", entries=3, bytes=5),
    ]


async def test_what_was_left_out_is_told(writer: LayerWriter, order: LayerOrder) -> None:
    frames = ended([*a_file(b"etc/x", KEY.encode()), SkippedPath(path=b"\xff", reason="socket")])

    layer = await writer.write(stream(frames), order, timeout=PATIENCE, progress=ignore)

    assert {one.reason: (one.count, one.paths) for one in layer.left_out} == {
        "socket": (1, ("/\\xff",)),
        "token": (1, ("/etc/x",)),
    }


async def test_a_difference_that_is_none_is_refused(writer: LayerWriter, order: LayerOrder) -> None:
    error = await refused(writer, order, ended(a_file(b"../etc/passwd")))

    assert isinstance(error, CaptureInvalidError)
    assert "etc/passwd" in error.metadata["path"]


async def test_a_stream_that_is_cut_anywhere_is_refused(writer: LayerWriter, order: LayerOrder) -> None:
    frames = ended(CHANGES)

    for cut in (0, 1, len(frames) // 2, len(frames) - 1):
        assert isinstance(await refused(writer, order, frames[:cut]), CaptureInvalidError)


async def test_a_capture_that_fails_fails_with_its_own_error(writer: LayerWriter, order: LayerOrder) -> None:
    async def broken() -> AsyncIterator[CaptureFrame]:
        for frame in CHANGES:
            yield frame
        raise UnavailableError("The agent has gone.")

    assert (await refused(writer, order, broken())).message == "The agent has gone."


async def test_a_limit_that_is_reached_is_kept_and_one_that_is_exceeded_refused(
    writer: LayerWriter, order: LayerOrder
) -> None:
    frames = ended([*a_file(b"large", os.urandom(100_000)), *a_file(b"small", b"s")])
    layer = await writer.write(stream(frames), order, timeout=PATIENCE, progress=ignore)
    limits = ImageLimits(
        raw_bytes=layer.raw_bytes,
        compressed_bytes=layer.compressed_bytes,
        entries=layer.entries,
        file_bytes=100_000,
    )
    layer.file.unlink()

    exact = await writer.write(stream(frames), replace(order, limits=limits), timeout=PATIENCE, progress=ignore)

    assert exact == layer
    exact.file.unlink()
    for name in ("raw_bytes", "compressed_bytes", "entries", "file_bytes"):
        less = replace(limits, **{name: getattr(limits, name) - 1})
        error = await refused(writer, replace(order, limits=less), frames)
        assert isinstance(error, ImageTooLargeError)
        assert error.metadata["limit"] == name
        assert "/large" in error.message


async def test_secrets_and_torn_programs_are_refused(writer: LayerWriter, order: LayerOrder) -> None:
    with_key = ended(a_file(b"etc/x", KEY.encode()))

    error = await refused(writer, replace(order, secrets=SecretPolicy.REFUSE), with_key)
    assert isinstance(error, SecretsFoundError)
    assert "/etc/x" in error.message
    assert KEY not in f"{error.message}{error.metadata}"
    assert isinstance(await refused(writer, order, ended(a_file(b"etc/x", torn=True))), FileTornError)


async def test_a_baseline_that_is_damaged_is_an_error(writer: LayerWriter, order: LayerOrder) -> None:
    whole = order.baseline.file.read_bytes()

    for damaged in (whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b""):
        order.baseline.file.write_bytes(damaged)
        assert isinstance(await refused(writer, order, ended([])), BaselineDamagedError)


async def test_time_that_is_over_ends_it(writer: LayerWriter, order: LayerOrder) -> None:
    with pytest.raises(DeadlineError):
        await writer.write(stream(ended(CHANGES)), order, timeout=timedelta(), progress=ignore)
    assert left_in(order) == []


async def test_it_can_be_done_again_after_an_error(writer: LayerWriter, order: LayerOrder) -> None:
    await refused(writer, order, CHANGES)

    assert (await writer.write(stream(ended(CHANGES)), order, timeout=PATIENCE, progress=ignore)).entries == 7
