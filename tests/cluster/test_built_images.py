"""Images of a real pod: its base is read from the registry exactly, what is built on it starts, and is complete."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.baselines import RegistryBaselines
from sandboxd.images.building import BuildRules, RegistryImageBuilder, entries_of
from sandboxd.images.layer_process import WorkerLayerWriter
from sandboxd.images.ports import BuildOrder, BuiltImage, ImageLimits, ImageReference
from sandboxd.images.spool import Spool
from tests.cluster.capturing import INCARNATION, LONG, SANDBOX, capture_of
from tests.cluster.pod_world import PodWorld, a_pod, image
from tests.kube import Cluster
from tests.rootfs_trees import read

pytestmark = pytest.mark.timeout(480)
SOON = timedelta(seconds=30)
INSTALL = r"""
set -e
cd "$(mktemp -d)"
mkdir -p kept/DEBIAN kept/usr/bin kept/var/log/kept
printf 'Package: kept\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: kept\n' > kept/DEBIAN/control
printf '#!/bin/sh\necho it runs\n' > kept/usr/bin/kept
chmod 755 kept/usr/bin/kept
dpkg-deb --root-owner-group --build kept > /dev/null
sudo dpkg --install kept.deb > /dev/null
sudo install -o 1000 -g 1000 -m 6755 /usr/bin/kept /usr/bin/kept-too
sudo ln /usr/bin/kept-too /usr/local/bin/kept-too
sudo rm -r /usr/share/doc/bash
sudo head -c 3000000 /dev/urandom | sudo tee /opt/random > /dev/null
sudo setfattr -n user.kept -v yes /opt/random 2>/dev/null || true
sha256sum /opt/random
echo done
"""
LOOK = r"""
kept; dpkg-query -W -f '${Status}\n' kept; stat -c '%a %u %h' /usr/bin/kept-too
test -e /usr/share/doc/bash || echo gone
test -d /var/log/kept && sha256sum /opt/random; sudo -n true && echo sudo
"""


@pytest.fixture
async def registry(cluster: Cluster) -> AsyncIterator[OciRegistry]:
    async with OciRegistry(cluster.registry, plain=True) as client:
        yield client


@pytest.fixture
def baselines(registry: OciRegistry, tmp_path: Path) -> RegistryBaselines:
    return RegistryBaselines(registry=registry, directory=tmp_path / "bases", size_bytes=1 << 30)


async def test_a_fresh_pod_has_what_its_images_layers_say_and_nothing_else(
    cluster: Cluster, instance: str, baselines: RegistryBaselines
) -> None:
    base = ImageReference.parse(image("sandbox"))
    async with a_pod(cluster, instance) as world:
        await world.connect()
        made = await baselines.baseline(base, timeout=LONG)
        capture = await capture_of(world)
        frames = capture.capture(SANDBOX, INCARNATION, entries_of(made), previous=(), exclude=(), timeout=LONG)

        found = read([frame async for frame in frames])

    assert found.deleted == []
    assert found.entries == {}
    assert found.end is not None
    assert made.entries > 20_000
    assert found.end.entries > made.entries * 0.9, "and nearly all of it was looked at"


async def test_what_was_installed_is_in_the_next_pod_and_committing_that_changes_nothing(
    cluster: Cluster, instance: str, registry: OciRegistry, baselines: RegistryBaselines, tmp_path: Path
) -> None:
    base = ImageReference.parse(image("sandbox"))
    repository = f"{instance}/gemini-cli-user-kept"

    async def build(world: PodWorld, generation: int, previous: ImageReference | None) -> BuiltImage:
        builder = RegistryImageBuilder(
            registry=registry,
            baselines=baselines,
            capture=await capture_of(world),
            writer=WorkerLayerWriter(),
            spool=Spool(directory=tmp_path / "spool", size_bytes=1 << 30, least_free_bytes=0),
            rules=BuildRules(registry=base.registry),
        )
        order = BuildOrder(
            sandbox=SANDBOX,
            incarnation=INCARNATION,
            base=base,
            repository=repository,
            generation=generation,
            limits=ImageLimits(raw_bytes=1 << 30, compressed_bytes=1 << 30),
            previous=previous,
        )
        return await builder.build(order, timeout=LONG, progress=lambda _: None)

    async with a_pod(cluster, instance) as world:
        await world.connect()
        untouched = await build(world, 1, None)
        said = await world.run(INSTALL)
        assert "done" in said, said
        built = await build(world, 1, None)
        again = await build(world, 2, built.image)
    assert (untouched.unchanged, untouched.image) == (True, base)
    assert (built.unchanged, again.unchanged, again.image) == (False, True, built.image)
    assert 3_000_000 < built.raw_bytes < 10_000_000, "and nothing of the base in it"
    assert built.image is not None

    second = f"{instance}-next"
    try:
        async with a_pod(cluster, second, sandbox=str(built.image)) as world:
            await world.connect()
            there = await world.run(LOOK)
            from_there = await build(world, 2, built.image)
    finally:
        await cluster.clean(second)

    random = next(line for line in said.splitlines() if line.endswith("/opt/random"))
    assert there.splitlines() == [
        "it runs",
        "install ok installed",
        "6755 1000 2",
        "gone",
        random,
        "sudo",
    ]
    assert (from_there.unchanged, from_there.image) == (True, built.image)
    for tag in await registry.tags(repository, timeout=SOON):
        found = await registry.manifest(repository, tag, timeout=SOON)
        await registry.delete(repository, found.digest, timeout=SOON)
