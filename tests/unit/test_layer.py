"""What becomes of which frames, entry by entry: kept, dropped as equal, left out, or refused."""

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.images.ports import ImageLimits, SecretPolicy
from sandboxd.images.tar_entries import entry_header, padding
from sandboxd.model.errors import InternalError
from sandboxd.model.image_errors import CaptureInvalidError, FileTornError, ImageTooLargeError, SecretsFoundError
from sandboxd.model.rootfs import (
    CaptureEnd,
    CaptureFrame,
    CaptureProgress,
    ChangedEntry,
    DeletedPath,
    EntryKind,
    FileData,
    FileEnd,
    SkippedPath,
)
from tests.layers import MTIME, Base, a_file, a_link, an_entry, base, ended, make, members

ETC = Base(path=b"etc", mode=0o755)
PASSWD = Base(path=b"etc/passwd", content=b"root")
TREE = base(
    Base(path=b"bin", link=b"usr/bin"),
    PASSWD,
    Base(path=b"opt/tool/a", content=b"a"),
    Base(path=b"opt/tool/b", content=b"b"),
    Base(path=b"opt/tool/deep/c", content=b"c"),
    Base(path=b"usr/bin/sh", content=b"sh", mode=0o755),
    Base(path=b"var/log", mode=0o755),
)
KEY = b"-----BEGIN " + b"PRIVATE KEY-----\n" + b"MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEA" + b"\n"


def test_nothing_is_an_empty_archive() -> None:
    made = make(TREE, ended([]))

    assert (made.tar, made.counts.entries, made.counts.largest) == (bytes(1024), 0, [])


def test_what_is_as_in_the_base_is_dropped() -> None:
    same = [
        *an_entry(b"bin", EntryKind.SYMLINK, mode=0o777, link=b"usr/bin"),
        *an_entry(b"etc", mtime=MTIME + 5),  # a directory's time alone says nothing
        *a_file(b"etc/passwd", b"root"),
    ]

    assert make(TREE, ended(same)).tar == bytes(1024)


@pytest.mark.parametrize(
    "frames",
    [
        a_file(b"etc/passwd", b"toor"),
        a_file(b"etc/passwd", b"root", mode=0o600),
        a_file(b"etc/passwd", b"root", uid=1),
        a_file(b"etc/passwd", b"root", gid=1),
        a_file(b"etc/passwd", b"root", mtime=MTIME - 1),
        a_file(b"etc/passwd", b"root", xattrs={b"user.x": b"1"}),
        a_file(b"etc/passwd", b"root", xattrs={b"security.capability": b"1"}),
    ],
)
def test_each_difference_of_a_file_is_kept_with_its_directory(frames: list[CaptureFrame]) -> None:
    made = make(TREE, ended(frames))

    assert made.names == ["etc", "etc/passwd"]
    assert (made["etc"].mode, made["etc"].mtime) == (0o755, MTIME)


def test_a_directory_that_changed_its_mode_keeps_the_time_of_the_base() -> None:
    made = make(TREE, ended(an_entry(b"etc", mode=0o700, mtime=MTIME + 9)))

    assert (made["etc"].mode, made["etc"].mtime) == (0o700, MTIME)


def test_a_new_directory_has_its_own_time_and_none_where_only_directories_are_kept() -> None:
    made = make(TREE, ended([*an_entry(b"srv", mtime=7), *an_entry(b"var/log/nginx", uid=33, mtime=7)]))

    assert [(member.name, member.mtime, member.uid) for member in members(made.tar)] == [
        ("srv", 7, 0),
        ("var", MTIME, 0),
        ("var/log", MTIME, 0),
        ("var/log/nginx", 0, 33),
    ]


def test_what_comes_with_an_entry_is_kept_in_the_order_of_the_walk() -> None:
    made = make(
        TREE,
        ended(
            [
                *an_entry(b"srv", mode=0o2755),
                *an_entry(b"srv/link", EntryKind.SYMLINK, link=b"/etc/passwd"),
                *an_entry(b"srv/pipe", EntryKind.FIFO, mode=0o600),
                *a_file(b"usr/bin/sudo", b"sudo", mode=0o4755, mtime=5, xattrs={b"security.capability": b"\1\0\2"}),
            ]
        ),
    )

    assert made.names == ["srv", "srv/link", "srv/pipe", "usr", "usr/bin", "usr/bin/sudo"]
    assert (made["srv"].mode, made["srv/link"].linkname, made["srv/pipe"].isfifo()) == (0o2755, "/etc/passwd", True)
    sudo = made["usr/bin/sudo"]
    assert (sudo.mode, sudo.mtime, made.content("usr/bin/sudo")) == (0o4755, 5, b"sudo")
    assert sudo.pax_headers == {"SCHILY.xattr.security.capability": "\1\0\2"}
    assert {(one.uname, one.gname) for one in members(made.tar)} == {("", "")}


def test_attributes_that_belong_to_the_node_are_dropped_and_lost_ones_are_named() -> None:
    attributes = {b"trusted.overlay.opaque": b"y", b"security.selinux": b"l", b"user.kept": b"\0\xff"}
    made = make(
        TREE, ended([*a_file(b"a", xattrs=attributes), *a_file(b"b", xattrs={b"system.posix_acl_access": b""})])
    )

    assert made["a"].pax_headers == {"SCHILY.xattr.user.kept": "\0\udcff"}
    assert made["b"].pax_headers == {}
    assert made.left_out == {"attribute": ["/b"]}


def test_an_attribute_of_the_node_is_no_difference() -> None:
    tree = base(Base(path=b"a", content=b"a", xattrs={b"security.selinux": b"x"}))

    assert make(tree, ended(a_file(b"a", b"a", xattrs={b"trusted.overlay.origin": b"y"}))).counts.entries == 0


def test_deletions_come_first_and_their_directories_are_in_the_layer() -> None:
    frames: list[CaptureFrame] = [
        *a_file(b"opt/tool/0"),
        DeletedPath(b"opt/tool/a"),
        DeletedPath(b"opt/tool/deep"),
        DeletedPath(b"usr/bin/sh"),
    ]

    made = make(TREE, ended(frames))

    assert made.names == [
        "opt/tool/.wh.a",
        "opt/tool/.wh.deep",
        "usr/bin/.wh.sh",
        "opt",
        "opt/tool",
        "opt/tool/0",
        "usr",
        "usr/bin",
    ]
    assert made["opt/tool/.wh.a"].size == 0
    assert made.counts.entries == 8


def test_a_directory_that_was_made_anew_loses_its_old_children_one_by_one() -> None:
    frames: list[CaptureFrame] = [
        *an_entry(b"opt/tool", mode=0o700),
        *a_file(b"opt/tool/a", b"new"),
        DeletedPath(b"opt/tool/b"),
        DeletedPath(b"opt/tool/deep"),
    ]

    assert make(TREE, ended(frames)).names == [
        "opt/tool/.wh.b",
        "opt/tool/.wh.deep",
        "opt",
        "opt/tool",
        "opt/tool/a",
    ]


def test_a_directory_that_became_a_file_needs_no_whiteout_and_takes_none() -> None:
    frames = a_file(b"opt/tool")

    assert make(TREE, ended(frames)).names == ["opt", "opt/tool"]
    with pytest.raises(CaptureInvalidError, match="in no directory"):
        make(TREE, ended([*frames, DeletedPath(b"opt/tool/a")]))


def test_new_names_of_one_file_stay_one_file() -> None:
    made = make(TREE, ended([*a_file(b"srv1", names=3), *a_link(b"srv2", b"srv1"), *a_link(b"srv3", b"srv1")]))

    assert [(one.name, one.islnk(), one.linkname) for one in members(made.tar)] == [
        ("srv1", False, ""),
        ("srv2", True, "srv1"),
        ("srv3", True, "srv1"),
    ]


def test_a_new_name_of_a_file_of_the_base_brings_the_file_and_its_other_names_along() -> None:
    tree = base(
        Base(path=b"a/one", content=b"x" * 5000),
        Base(path=b"a/two", content=b"x" * 5000),
        Base(path=b"z/four", content=b"x" * 5000),
    )
    frames = [
        *a_file(b"a/one", b"x" * 5000, names=4),
        *a_link(b"a/two", b"a/one"),
        *a_link(b"b", b"a/one"),
        *a_link(b"z/four", b"a/one"),
    ]

    made = make(tree, ended(frames))

    assert [(one.name, one.islnk()) for one in members(made.tar)] == [
        ("a", False),
        ("a/one", False),
        ("a/two", True),
        ("b", True),
        ("z", False),
        ("z/four", True),
    ]
    assert made.content("b") == b"x" * 5000


def test_names_that_are_all_as_in_the_base_are_dropped_together() -> None:
    tree = base(Base(path=b"one", content=b"x"), Base(path=b"two", content=b"x"))

    assert make(tree, ended([*a_file(b"one", b"x", names=2), *a_link(b"two", b"one")])).counts.entries == 0


def test_content_is_held_back_for_files_with_several_names_alone() -> None:
    tree = base(Base(path=b"one", content=b"x" * 100), Base(path=b"two", content=b"y" * 50))

    made = make(tree, ended([*a_file(b"one", b"x" * 100, names=1), *a_file(b"two", b"y" * 50, names=2)]))

    assert made.spooled == 50


@pytest.mark.parametrize(
    "frames",
    [
        a_link(b"a", b"etc/passwd"),  # of the base, not of this layer
        a_link(b"a", b"../../etc/shadow"),
        a_link(b"a", b"/etc/shadow"),
        a_link(b"a", b"b"),  # later
        [*a_file(b"a", names=1), *a_link(b"b", b"a")],
        [*an_entry(b"a"), *a_link(b"b", b"a")],
        [*an_entry(b"a", EntryKind.SYMLINK, link=b"/etc"), *a_link(b"b", b"a")],
    ],
)
def test_a_link_to_anything_but_an_earlier_file_with_several_names_is_refused(frames: list[CaptureFrame]) -> None:
    with pytest.raises(CaptureInvalidError):
        make(TREE, ended(frames))


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/etc/passwd",
        b"etc/",
        b"etc//passwd",
        b"../a",
        b"etc/..",
        b"etc/./a",
        b".",
        b"..",
        b"a\0b",
        b"etc/.wh.passwd",
        b".wh..wh..opq",
        b"bin/sh",  # through a link
        b"etc/passwd/a",  # below a file
        b"nowhere/a",
        b"a" * 256,
        b"/".join([b"a"] * 200),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(path: bytes) -> None:
    for frames in (a_file(path), an_entry(path), [DeletedPath(path)]):
        with pytest.raises(CaptureInvalidError):
            make(TREE, ended(frames))


def test_depth_and_length_are_bounded_where_every_directory_is_there() -> None:
    deep = [b"/".join([b"d"] * depth) for depth in range(1, 129)]

    assert make([], ended(itertools.chain.from_iterable(map(an_entry, deep)))).counts.entries == 128
    with pytest.raises(CaptureInvalidError, match="too long"):
        make([], ended(itertools.chain.from_iterable(map(an_entry, [*deep, deep[-1] + b"/d"]))))

    long = [b"/".join([b"n" * 240] * depth) for depth in range(1, 19)]
    with pytest.raises(CaptureInvalidError, match="too long"):
        make([], ended(itertools.chain.from_iterable(map(an_entry, long))))


@pytest.mark.parametrize(
    "frames",
    [
        [*a_file(b"b"), *a_file(b"a")],
        [*a_file(b"a"), *a_file(b"a")],
        [*an_entry(b"a"), *a_file(b"a")],
        [DeletedPath(b"etc/passwd"), *a_file(b"etc/passwd")],
        [DeletedPath(b"opt/tool"), *a_file(b"opt/tool/a")],  # below what is gone
        [DeletedPath(b"opt"), DeletedPath(b"opt/tool")],
        [DeletedPath(b"etc/absent")],
        [FileData(b"x")],
        [FileEnd(size=0, sha256=hashlib.sha256().digest())],
        [*a_file(b"a"), FileData(b"more")],
        [a_file(b"a")[0], *an_entry(b"b")],  # the first has no end
        a_file(b"a")[:-1],
        [*a_file(b"a")[:-1], FileEnd(size=3, sha256=bytes(32))],
        [*a_file(b"a")[:-1], FileEnd(size=4, sha256=hashlib.sha256(b"new").digest())],
        an_entry(b"a", mode=0o10000),
        an_entry(b"a", mode=-1),
        an_entry(b"a", uid=1 << 32),
        an_entry(b"a", uid=-1),
        an_entry(b"a", EntryKind.SYMLINK),
        an_entry(b"a", EntryKind.SYMLINK, link=b"a\0b"),
        an_entry(b"a", EntryKind.SYMLINK, link=b"a" * 5000),
        an_entry(b"a", EntryKind.DIRECTORY, link=b"b"),
        an_entry(b"a", xattrs={b"user.%d" % number: bytes(60_000) for number in range(6)}),
    ],
)
def test_frames_that_contradict_each_other_are_refused(frames: list[CaptureFrame]) -> None:
    with pytest.raises(CaptureInvalidError):
        make(TREE, ended(frames))


def test_what_counts_of_a_file_is_what_came_and_not_what_it_was_to_be() -> None:
    entry, data, end = a_file(b"srv", b"shrunk", mode=0o600)
    assert isinstance(entry, ChangedEntry)

    for size in (0, 3, 1 << 40):
        made = make([], ended([replace(entry, size=size), data, end]))
        assert (made["srv"].size, made.content("srv")) == (6, b"shrunk")


@pytest.mark.parametrize("field", ["changed", "deleted", "bytes"])
def test_an_end_that_counts_otherwise_is_refused(field: str) -> None:
    *frames, end = ended([*a_file(b"a"), DeletedPath(b"etc/passwd")])
    assert isinstance(end, CaptureEnd)

    with pytest.raises(CaptureInvalidError, match="counts otherwise"):
        make(TREE, [*frames, replace(end, **{field: getattr(end, field) + 1})])


def test_a_stream_without_its_end_or_with_more_than_its_end_is_refused() -> None:
    frames = ended(a_file(b"a"))

    for cut in range(len(frames)):
        with pytest.raises(CaptureInvalidError):
            make(TREE, frames[:cut])
    with pytest.raises(CaptureInvalidError, match="goes on"):
        make(TREE, [*frames, CaptureProgress(entries=1, bytes=1)])


def test_a_base_out_of_order_is_a_defect_of_ours() -> None:
    with pytest.raises(InternalError):
        make(reversed(TREE), ended([]))


def test_limits_are_reached_exactly_and_not_exceeded() -> None:
    frames = ended([*a_file(b"large", b"x" * 3000), *a_file(b"small", b"y")])
    made = make([], frames)
    exact = ImageLimits(
        raw_bytes=made.counts.raw_bytes, compressed_bytes=1 << 30, entries=made.counts.entries, file_bytes=3000
    )

    assert make([], frames, limits=exact).tar == made.tar
    for limit in ("raw_bytes", "entries", "file_bytes"):
        with pytest.raises(ImageTooLargeError) as caught:
            make([], frames, limits=replace(exact, **{limit: getattr(exact, limit) - 1}))
        assert caught.value.metadata["limit"] == limit
        assert caught.value.metadata["largest"].startswith("/large (2.9 KiB)")
        assert "/large" in caught.value.message


def test_a_refusal_names_what_it_helps_to_remove_and_no_crumbs() -> None:
    frames = [*a_file(b"crumb", b"x"), *a_file(b"half", b"x" * 1500), *a_file(b"large", b"x" * 3000), *a_file(b"last")]
    limits = ImageLimits(raw_bytes=1 << 20, compressed_bytes=1 << 20, entries=3, file_bytes=1 << 20)

    with pytest.raises(ImageTooLargeError) as caught:
        make([], ended(frames), limits=limits)

    assert caught.value.metadata["largest"] == "/large (2.9 KiB), /half (1.5 KiB)"


def test_a_sparse_file_meets_the_limit_long_before_its_end() -> None:
    limits = ImageLimits(raw_bytes=1 << 20, compressed_bytes=1 << 30)
    sent = 0

    def frames() -> Iterator[CaptureFrame]:
        nonlocal sent
        yield ChangedEntry(path=b"sparse", kind=EntryKind.FILE, mode=0o644, uid=0, gid=0, size=10 << 30)
        while True:
            sent += 1
            yield FileData(bytes(1 << 18))

    with pytest.raises(ImageTooLargeError, match="/sparse"):
        make([], frames(), limits=limits)
    assert sent == 4


def test_a_file_of_the_base_may_be_larger_than_any_limit_as_long_as_it_is_the_same() -> None:
    content = os.urandom(3 << 20)
    tree = base(Base(path=b"big", content=content))
    limits = ImageLimits(raw_bytes=1 << 20, compressed_bytes=1 << 30, file_bytes=1 << 19)

    made = make(tree, ended(a_file(b"big", content, names=1)), limits=limits)

    assert (made.counts.entries, made.spooled) == (0, 0)
    for other in (content[:-1] + b"x", content[:-1]):
        with pytest.raises(ImageTooLargeError):
            make(tree, ended(a_file(b"big", other)), limits=limits)
    with pytest.raises(ImageTooLargeError):  # its new name would bring it into the layer
        make(tree, ended([*a_file(b"big", content, names=2), *a_link(b"new", b"big")]), limits=limits)


def test_a_torn_file_of_a_program_is_refused_and_another_left_out_and_named() -> None:
    made = make(TREE, ended([*a_file(b"srv", torn=True, names=2), *a_link(b"srv2", b"srv")]))

    assert (made.names, made.left_out) == ([], {"torn": ["/srv", "/srv2"]})
    for path, mode in ((b"usr/bin/new", 0o644), (b"etc/new", 0o644), (b"opt/program", 0o755)):
        with pytest.raises(FileTornError):
            make(TREE, ended(a_file(path, mode=mode, torn=True)))
    assert make(TREE, ended(a_file(b"etc/passwd", b"root", torn=True))).counts.entries == 0


def test_what_is_never_kept_is_left_out_whoever_sends_it() -> None:
    frames = [
        *an_entry(b"proc"),
        *a_file(b"proc/1"),
        *an_entry(b"root"),
        *a_file(b"root/.bash_history"),
        *an_entry(b"root/.ssh"),
        *a_file(b"root/.ssh/id", names=2),
        *a_link(b"srv", b"root/.ssh/id"),
        *a_file(b"var/log/x"),
    ]

    made = make(TREE, ended(frames))

    assert made.names == ["root"]
    assert made.left_out == {
        "excluded": ["/proc", "/proc/1", "/var/log/x"],
        "secret": ["/root/.bash_history", "/root/.ssh", "/root/.ssh/id", "/srv"],
    }


def test_a_path_that_a_node_could_not_unpack_below_its_own_is_left_out_with_all_below_it() -> None:
    deep = [b"/".join([b"d" * 239] * depth) for depth in range(1, 17)]  # the last one has 3,839 bytes

    made = make([], ended([*itertools.chain.from_iterable(map(an_entry, deep)), *a_file(deep[-1] + b"/x")]))

    assert len(made.names) == 16
    assert list(made.left_out) == ["too_deep"]
    assert len(made.left_out["too_deep"]) == 1


def test_what_is_never_kept_is_not_deleted_either() -> None:
    tree = base(
        Base(path=b"root/.ssh/known", content=b""), Base(path=b"tmp", mode=0o1777), Base(path=b"var/log/x", content=b"")
    )
    gone = [DeletedPath(b"root/.ssh"), DeletedPath(b"tmp"), DeletedPath(b"var/log/x")]

    assert make(tree, ended(gone)).counts.entries == 0


def test_what_the_capture_left_out_is_counted_with_a_few_of_its_paths() -> None:
    skipped = [SkippedPath(path=b"s/%02d" % number, reason="socket") for number in range(12)]
    strange = [SkippedPath(path=b"\x1b[31m\n\xff", reason="<b>")]

    made = make(TREE, ended([*skipped, *strange]))

    (other, sockets) = made.counts.left_out
    assert (other.reason, other.paths) == ("other", ("/\\x1b[31m\\n\\xff",))
    assert (sockets.reason, sockets.count, len(sockets.paths)) == ("socket", 12, 10)


def test_keys_are_left_out_kept_or_refused_by_the_policy() -> None:
    frames = ended([*a_file(b"srv", b"key: " + KEY, names=2), *a_link(b"srv2", b"srv"), *a_file(b"usr/lib", KEY)])
    tree = base(Base(path=b"usr"))

    assert make(tree, frames).left_out == {"token": ["/srv", "/srv2"]}
    assert make(tree, frames).names == ["usr", "usr/lib"], "what a package brings is not looked at"
    kept = make(tree, frames, secrets=SecretPolicy.KEEP)
    assert (kept.names, kept.left_out) == (["srv", "srv2", "usr", "usr/lib"], {"secret_kept": ["/srv"]})
    with pytest.raises(SecretsFoundError, match="/srv"):
        make(tree, frames, secrets=SecretPolicy.REFUSE)
    assert make(base(Base(path=b"srv", content=b"key: " + KEY)), ended(a_file(b"srv", b"key: " + KEY))).left_out == {}


@pytest.mark.parametrize("policy", SecretPolicy)
def test_the_key_that_debian_makes_for_every_machine_is_kept(policy: SecretPolicy) -> None:
    key = b"-----BEGIN PRIVATE " + b"KEY-----\n" + b"Zm9vYmFyYmF6cXV4" * 8
    frames = ended(a_file(b"etc/ssl/private/ssl-cert-snakeoil.key", key))

    made = make(base(Base(path=b"etc/ssl/private", mode=0o710)), frames, secrets=policy)

    assert (made.names[-1], made.left_out) == ("etc/ssl/private/ssl-cert-snakeoil.key", {})


def test_settings_with_credentials_are_left_out_whatever_the_policy_is() -> None:
    frames = ended(a_file(b".npmrc", b"//registry/:_authToken=abc"))

    assert make([], frames, secrets=SecretPolicy.KEEP).left_out == {"secret": ["/.npmrc"]}


def test_pieces_do_not_show_in_the_layer() -> None:
    content = os.urandom(3000)

    whole, bytewise = make([], ended(a_file(b"a", content))), make([], ended(a_file(b"a", content, pieces=1)))

    assert whole.tar == bytewise.tar


def test_a_large_file_goes_through_the_spool_and_leaves_nothing_there() -> None:
    content = os.urandom(3 << 20)

    made = make([], ended([*a_file(b"a", content), *a_file(b"b", b"small")]))

    assert (made.content("a"), made.content("b"), made.spooled) == (content, b"small", 0)


def test_the_largest_paths_are_named_the_largest_first() -> None:
    made = make([], ended(itertools.chain.from_iterable(a_file(b"%02d" % size, b"x" * size) for size in range(20))))

    assert made.counts.largest == [(f"/{size:02}", size) for size in range(19, 9, -1)]


NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))


@given(
    path=NAMES,
    link=NAMES,
    uid=st.integers(0, (1 << 32) - 2),
    mtime=st.integers(-(1 << 31), 1 << 34),
    size=st.integers(0, 1 << 40),
    attributes=st.dictionaries(st.from_regex(rb"user\.[a-z]+", fullmatch=True), st.binary(max_size=400), max_size=3),
)
def test_a_header_says_to_others_what_it_was_told(
    path: bytes, link: bytes, uid: int, mtime: int, size: int, attributes: dict[bytes, bytes]
) -> None:
    header = entry_header(
        path, EntryKind.SYMLINK, mode=0o777, uid=uid, gid=uid, mtime=mtime, link=link, xattrs=attributes
    )
    whole = entry_header(path, EntryKind.FILE, mode=0o644, uid=0, gid=0, mtime=0, size=size)

    (read,) = members(header + bytes(1024))
    assert len(header) % 512 == len(whole) % 512 == 0
    assert os.fsencode(read.name) == path.rstrip(b"/")
    assert (os.fsencode(read.linkname), read.uid, read.gid, int(read.mtime)) == (link, uid, uid, mtime)
    assert {key: value for key, value in read.pax_headers.items() if key.startswith("SCHILY")} == {
        f"SCHILY.xattr.{name.decode()}": value.decode("utf-8", "surrogateescape") for name, value in attributes.items()
    }
    if size < 1 << 16:
        (read,) = members(whole + bytes(size) + padding(size) + bytes(1024))
        assert read.size == size


def test_a_file_of_eight_gibibytes_says_its_size_in_a_record() -> None:
    header = entry_header(b"a", EntryKind.FILE, mode=0o644, uid=0, gid=0, mtime=0, size=1 << 33)

    assert b"19 size=8589934592\n" in header


def test_the_same_frames_give_the_same_bytes_and_more_than_ext4_can_hold_is_bounded() -> None:
    frames = ended(a_file(b"a", mtime=1 << 60))

    assert make([], frames).tar == make([], frames).tar
    assert int(make([], frames)["a"].mtime) == (1 << 34) - (1 << 31) - 1
