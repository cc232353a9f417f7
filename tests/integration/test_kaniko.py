"""The real kaniko, run on this machine: what it makes of a difference is the tree, less what it is said to lose."""

import gzip
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.handover import pack as hand_over
from sandboxd.images.kaniko import KanikoOrder, dockerfile
from sandboxd.images.manifests import read_config, read_manifest
from sandboxd.images.ports import ImageReference
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SandboxId
from tests.integration.test_layer_applied import without_user_attributes
from tests.integration.test_layer_oracle import Commit, Image, image, links, root
from tests.kaniko_place import PYTHON, LocalKanikoBuilds, needs_kaniko
from tests.layers import members
from tests.oci_images import SOON, an_image
from tests.registry_front import a_registry
from tests.rootfs_changes import snapshot
from tests.umoci import needs_umoci, unpack

__all__ = ["image", "root"]
pytestmark = [needs_kaniko, needs_umoci, pytest.mark.timeout(180)]
TIMEOUT = timedelta(seconds=120)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep


@dataclass(kw_only=True)
class Bench:
    """A registry, and kaniko beside it."""

    registry: OciRegistry
    builds: LocalKanikoBuilds
    directory: Path
    runs: int = 0

    async def replay(self, image: Image, commit: Commit) -> tuple[str, bytes]:
        """Have kaniko apply a commit to its base; return the manifest's digest and the tar of the layer."""
        self.runs += 1
        base = await an_image(image.base_tar).push(self.registry, "base/sandbox")
        below = ImageReference(registry=self.builds.address, repository=base.repository, digest=base.digest)
        place = self.directory / f"build-{self.runs}"
        place.mkdir()
        text = dockerfile(below, {"config": {"User": "1000"}}, PYTHON)
        handed = hand_over(place, commit.layer, text, architecture="amd64")
        for digest, content in ((handed.layer_digest, handed.file), (handed.config_digest, handed.config)):
            await self.registry.upload("own", content, digest=digest, timeout=SOON)
        await self.registry.push("own", handed.manifest.digest, handed.manifest, timeout=SOON)
        order = KanikoOrder(
            sandbox=SandboxId("sbx-1"),
            generation=self.runs,
            base=below,
            handover=ImageReference(registry="registry.test", repository="own", digest=handed.manifest.digest),
            repository="own",
            tag=f"g{self.runs:06}",
            labels={"dev.sandboxd.client": "client-a"},
            raw_bytes=commit.layer.raw_bytes,
        )
        digest = await self.builds.run(order, timeout=TIMEOUT)
        tagged = await self.registry.manifest("own", order.tag, timeout=SOON)
        assert tagged.digest == digest
        made = read_manifest(tagged)
        config = await read_config(self.registry, "own", made, timeout=SOON)
        assert (config["config"]["User"], config["config"]["Labels"]) == ("1000", {"of": "base", **order.labels})
        assert len(made.layers) == 2
        layer = made.layers[-1]
        pieces = [piece async for piece in self.registry.blob("own", layer.digest, size=layer.size, timeout=SOON)]
        return digest, gzip.decompress(b"".join(pieces))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    (tmp_path / "registry").mkdir()
    async with (
        a_registry(tmp_path / "registry") as real,
        OciRegistry(real.address, plain=True) as registry,
    ):
        builds = LocalKanikoBuilds(registry=registry, address=real.address, directory=tmp_path)
        yield Bench(registry=registry, builds=builds, directory=tmp_path)
    assert real.open_uploads() == []


def change(root: Path) -> None:
    """Everything that a difference may have."""
    before = (root / "usr/lib/python/os.py").stat()
    (root / "usr/lib/python/os.py").write_bytes(b"x" * before.st_size)
    os.utime(root / "usr/lib/python/os.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.rmtree(root / "usr/lib/python/deep")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd/inside").mkdir(parents=True)
    (root / "bin").unlink()
    (root / "bin").mkdir()
    (root / "bin/program").write_bytes(b"x" * 100_000)
    os.chown(root / "bin/program", 33, 70_000)
    (root / "bin/program").chmod(0o6755)
    (root / "srv/again").hardlink_to(root / "bin/program")
    (root / "srv/link").symlink_to("../usr/lib")
    os.utime(root / "srv/link", (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    os.mkfifo(root / "srv/pipe", 0o640)
    os.setxattr(root / "usr/bin/sh", "security.capability", CAPABILITY)
    os.setxattr(root / "srv/again", "user.note", b"kept by us")
    (root / "srv" / ("long" * 60)).mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/srv/\xff\n")).write_bytes(b"odd")
    (root / "var/log").chmod(0o1777)
    with (root / "opt/sparse").open("wb") as sparse:
        sparse.truncate(1_000_000)


async def test_the_tree_is_what_comes_out_but_for_what_it_is_said_to_lose(
    bench: Bench, image: Image, root: Path
) -> None:
    change(root)
    commit = image.commit(zstd=False)

    first, tar = await bench.replay(image, commit)
    second, again = await bench.replay(image, commit)

    started = unpack([image.base_tar, tar], bench.directory / "first")
    ours = image.started(commit)
    assert without_user_attributes(snapshot(started)) == without_user_attributes(snapshot(ours))
    assert frozenset((b"bin/program", b"srv/again")) in links(started)
    assert frozenset((b"usr/bin/sh", b"usr/bin/dash")) in links(started)
    # What it loses:
    assert os.getxattr(ours / "srv/again", "user.note") == b"kept by us"
    assert os.listxattr(started / "srv/again") == []
    assert first != second, "it writes down the moment of its build"
    assert again != tar, "and when each file was read and changed there"
    names = {os.fsencode(member.name).strip(b"/") for member in members(tar)}
    assert {os.fsencode(member.name).strip(b"/") for member in members(commit.tar)} <= names
    restarted = image.restart(Commit(layer=commit.layer, data=b"", tar=tar))
    assert restarted.layer.diff_id != commit.layer.diff_id, "the attribute is gone, so something has changed"


async def test_what_it_has_made_is_the_same_difference_again(bench: Bench, image: Image, root: Path) -> None:
    change(root)
    os.removexattr(root / "srv/again", "user.note")
    commit = image.commit(zstd=False)

    _, tar = await bench.replay(image, commit)

    restarted = image.restart(Commit(layer=commit.layer, data=b"", tar=tar))
    assert restarted.layer.diff_id == commit.layer.diff_id


async def test_links_in_a_circle_make_it_forget_paths_which_the_builder_looks_for(
    bench: Bench, image: Image, root: Path
) -> None:
    for number in range(5):
        (root / f"srv/circle-{number}").symlink_to(f"circle-{number}")
    for number in range(20):
        (root / f"srv/file-{number}").write_bytes(b"1")
    commit = image.commit(zstd=False)

    _, tar = await bench.replay(image, commit)

    names = {os.fsencode(member.name).strip(b"/") for member in members(tar)}
    assert {os.fsencode(member.name).strip(b"/") for member in members(commit.tar)} - names


async def test_what_leads_to_the_account_of_a_build_takes_nothing_of_it_along(
    bench: Bench, image: Image, root: Path
) -> None:
    (root / "opt/tool/account").symlink_to("/kaniko/difference/Dockerfile")
    (root / "opt/tool/all").symlink_to("/kaniko")

    _, tar = await bench.replay(image, image.commit(zstd=False))

    names = {os.fsencode(member.name).strip(b"/") for member in members(tar)}
    assert {b"opt/tool/account", b"opt/tool/all"} <= names
    assert not [name for name in names if name.startswith(b"kaniko")]
    assert b"FROM" not in tar


async def test_a_difference_that_cannot_be_applied_ends_it_with_its_words(
    bench: Bench, image: Image, root: Path
) -> None:
    (root / "opt/a").write_bytes(b"1")
    commit = image.commit(zstd=False)
    damaged = gzip.compress(b"no tar" * 1000)
    commit.layer.file.write_bytes(damaged)
    commit.layer = replace(commit.layer, compressed_bytes=len(damaged))

    with pytest.raises(UnavailableError, match="applying: the layer is damaged"):
        await bench.replay(image, commit)
    assert await bench.registry.tags("own", timeout=SOON) == []
