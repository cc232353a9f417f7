"""Parts of a capture that need no tree: the start's moment, mounts, rules, batches and the order of the base."""

from collections.abc import AsyncIterator, Iterable

import pytest

from sandboxd.agent.rootfs_client import merged
from sandboxd.agent.rootfs_mounts import mounted_below
from sandboxd.agent.rootfs_walk import Expected
from sandboxd.agent.rootfs_wire import batch_from, batch_to, expected_from_entry, frame_from, frame_to, messages
from sandboxd.agent.start_marker import SPARE_NS, StartMarker
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.errors import InternalError, InvalidRequestError
from sandboxd.model.rootfs import (
    BaselineEntry,
    CaptureEnd,
    CaptureFrame,
    CaptureProgress,
    ChangedEntry,
    DeletedPath,
    EntryKind,
    FileData,
    FileEnd,
    SkippedPath,
    order_key,
    walk_key,
)
from sandboxd.model.rootfs_rules import holds_token, is_secret, keeps_directories_only

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
FRAMES: list[CaptureFrame] = [
    ChangedEntry(
        path=b"a\xff\n",
        kind=EntryKind.FILE,
        mode=0o4755,
        uid=70_000,
        gid=3,
        size=5,
        mtime=-1,
        xattrs={b"security.capability": b"\0\1", b"user.x": b""},
    ),
    FileData(b"\0data"),
    FileEnd(size=5, sha256=b"\1" * 32, torn=True),
    ChangedEntry(path=b"b", kind=EntryKind.HARDLINK, mode=0o644, uid=0, gid=0, link=b"a"),
    ChangedEntry(path=b"d", kind=EntryKind.FILE, mode=0o644, uid=0, gid=0, names=3),
    *(ChangedEntry(path=b"c", kind=kind, mode=0, uid=0, gid=0) for kind in EntryKind),
    DeletedPath(b"d"),
    SkippedPath(path=b"e", reason="socket"),
    CaptureProgress(entries=1 << 40, bytes=1 << 50),
    CaptureEnd(entries=4, changed=3, deleted=2, bytes=1),
]


class Clock:
    """How far the wall clock is ahead."""

    def __init__(self) -> None:
        self.ahead = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.ahead


def test_a_clock_that_nobody_sets_leaves_the_start_where_it_is() -> None:
    marker = StartMarker(1_700_000_100 * SECOND, offset=Clock())

    assert marker.nanoseconds == 1_700_000_100 * SECOND


def test_a_clock_that_is_set_back_takes_the_start_with_it() -> None:
    clock = Clock()
    marker = StartMarker(1_700_000_100 * SECOND, offset=clock)

    clock.ahead -= HOUR

    # A change one nanosecond after the start carries this time now, or a later one.
    assert marker.nanoseconds <= 1_700_000_100 * SECOND - HOUR
    assert marker.nanoseconds >= 1_700_000_100 * SECOND - HOUR - SPARE_NS


def test_a_clock_that_is_set_back_and_forward_again_is_remembered_at_its_earliest() -> None:
    clock = Clock()
    marker = StartMarker(1_700_000_100 * SECOND, offset=clock)

    clock.ahead -= HOUR
    marker.look()  # the kernel tells of each step
    clock.ahead += 2 * HOUR

    assert marker.nanoseconds <= 1_700_000_100 * SECOND - HOUR


def test_a_clock_that_is_set_forward_makes_nothing_look_unchanged() -> None:
    clock = Clock()
    marker = StartMarker(1_700_000_100 * SECOND, offset=clock)

    clock.ahead += HOUR

    assert marker.nanoseconds == 1_700_000_100 * SECOND


MOUNTINFO = rb"""22 1 0:20 / / rw - overlay overlay rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 8:1 /hosts /etc/hosts rw shared:1 master:2 - ext4 /dev/vda rw
25 22 8:1 /v /home/with\040space\134x rw - ext4 /dev/vda rw
26 22 8:1 /v /srv/root/data rw - ext4 /dev/vda rw
27 22 8:1 /v /srv/root rw - ext4 /dev/vda rw
28 22 8:1 /v /srv/rootless rw - ext4 /dev/vda rw""".splitlines()


def test_mounts_are_found_below_the_root_single_files_and_odd_names_too() -> None:
    assert mounted_below(b"/", MOUNTINFO) == {
        b"proc",
        b"etc/hosts",
        b"home/with space\\x",
        b"srv/root/data",
        b"srv/root",
        b"srv/rootless",
    }


def test_mounts_elsewhere_and_the_root_itself_are_not_below_it() -> None:
    assert mounted_below(b"/srv/root", MOUNTINFO) == {b"data"}


def test_the_quick_order_is_the_order_of_a_walk() -> None:
    paths = [b"", b"a", b"a/b", b"a/b/c", b"a-b", b"a.b", b"a0", b"ab", b"a\x01", b"b", b"a/\xff", b"\xff"]

    assert sorted(paths, key=order_key) == sorted(paths, key=walk_key)


@pytest.mark.parametrize("frame", FRAMES, ids=repr)
def test_a_frame_comes_out_of_the_wire_as_it_went_in(frame: CaptureFrame) -> None:
    assert frame_from(pb.CaptureFrame.FromString(frame_to(frame).SerializeToString())) == frame


def test_frames_travel_together_and_nothing_waits_behind_progress_or_the_end() -> None:
    small = [DeletedPath(b"%d" % number) for number in range(5000)]

    sent = list(messages([*small, FRAMES[-2], *small[:3], FRAMES[-1]]))

    assert [frame_from(one) for message in sent for frame in [*message.frames] for one in [frame]] == [
        *small,
        FRAMES[-2],
        *small[:3],
        FRAMES[-1],
    ]
    assert len(sent) < 10
    assert all(message.ByteSize() < 1 << 18 for message in sent)


def test_a_frame_of_a_newer_agent_is_passed_over_and_an_entry_of_a_new_kind_is_not() -> None:
    assert frame_from(pb.CaptureFrame()) is None
    with pytest.raises(InternalError):
        frame_from(pb.CaptureFrame(changed=pb.ChangedEntry(path=b"x")))


def _entry(path: bytes, kind: EntryKind = EntryKind.FILE, link: bytes = b"") -> BaselineEntry:
    return BaselineEntry(path=path, kind=kind, mode=0o644, uid=1, gid=2, size=3, mtime=4, link=link)


async def _stream(entries: Iterable[BaselineEntry]) -> AsyncIterator[BaselineEntry]:
    for entry in entries:
        yield entry


def test_a_batch_of_the_base_comes_out_as_it_went_in() -> None:
    entries: list[Expected] = [
        expected_from_entry(_entry(b"a", EntryKind.DIRECTORY), always=False),
        expected_from_entry(_entry(b"a/l", EntryKind.SYMLINK, b"target"), always=True),
    ]

    assert list(batch_from(pb.BaselineBatch.FromString(batch_to(entries).SerializeToString()))) == entries


def test_a_batch_with_a_short_column_is_refused() -> None:
    batch = batch_to([expected_from_entry(_entry(b"a"), always=False)])
    del batch.links[:]

    with pytest.raises(InvalidRequestError):
        batch_from(batch)


async def test_paths_that_are_always_sent_find_their_places_in_the_base() -> None:
    base = [_entry(b"a"), _entry(b"c", EntryKind.DIRECTORY), _entry(b"c/d"), _entry(b"e")]

    found = [one async for one in merged(_stream(base), [b"a", b"b", b"c/b", b"c/d", b"f"])]

    assert [(path, bool(mode), always) for path, mode, *_, always in found] == [
        (b"a", True, True),
        (b"b", False, True),
        (b"c", True, False),
        (b"c/b", False, True),
        (b"c/d", True, True),
        (b"e", True, False),
        (b"f", False, True),
    ]


@pytest.mark.parametrize(
    ("base", "previous"),
    [([b"b", b"a"], []), ([b"a", b"a"], []), ([b"a-b", b"a/b"], []), ([], [b"b", b"a"]), ([b"c"], [b"b", b"b"])],
)
async def test_a_base_out_of_order_is_refused_and_not_taken_for_deletions(
    base: list[bytes], previous: list[bytes]
) -> None:
    with pytest.raises(InternalError):
        _ = [one async for one in merged(_stream(map(_entry, base)), previous)]


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        (b"root/.ssh", True),
        (b"opt/x/.netrc", True),
        (b"root/.config/gcloud", True),
        (b".docker/config.json", True),
        (b"etc/ssh/ssh_host_ed25519_key", True),
        (b"etc/ssh/sshd_config", False),
        (b"opt/docker/config.json", False),
        (b"usr/lib/ssh", False),
        (b"root/.bashrc", False),
    ],
)
def test_secrets_are_known_by_their_places(path: bytes, secret: bool) -> None:
    assert is_secret(path) is secret


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (b"//registry.example/:_authToken=abc", True),
        (b"_auth = YWJj", True),
        (b"npmAuthToken: abc", True),
        (b"index-url = https://user:pw@host/simple", True),
        (b"index-url = https://host:8080/simple", False),
        (b"prefix = /opt\nregistry=http://host/", False),
    ],
)
def test_tokens_are_known_in_settings(text: bytes, token: bool) -> None:
    assert holds_token(text) is token


def test_caches_are_what_is_in_them_and_not_their_own_directories() -> None:
    assert keeps_directories_only(b"var/cache/apt/pkgcache.bin")
    assert not keeps_directories_only(b"var/cache")
    assert not keeps_directories_only(b"var/lib/dpkg/status")
