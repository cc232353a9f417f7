"""Probes in real pods: each kind of broken image, what a hostile one finds there, and that none is ever left."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from sandboxd.images.ports import ImageReference
from sandboxd.model.cluster import CLI_ENTRY
from sandboxd.model.cluster_probe import KEPT
from sandboxd.model.image_errors import ImageBrokenError
from tests.contract.test_image_probe import TIMEOUT, ClusterWorld, on_a_cluster
from tests.contract.test_running_images import a_spec, an_incarnation
from tests.eventually import eventually
from tests.installation import ROOT

__all__ = ["on_a_cluster"]
pytestmark = pytest.mark.timeout(300)
CLI = CLI_ENTRY.lstrip("/")
DEADLINE = 20
"""Seconds of the probe whose service is killed: it must run by then."""
HALF_INSTALLED = b"""Package: half
Status: install ok half-installed
Priority: optional
Section: misc
Maintainer: nobody <nobody@example.org>
Architecture: all
Version: 1
Description: ended in the middle

"""
LOOKER = """
import fs from 'node:fs';
import net from 'node:net';
const seen = {env: Object.keys(process.env).sort(), secrets: [], addresses: []};
for (const place of ['/var/run/secrets', '/run/secrets', '/etc/sandboxd/agent', '/workspace', '/run/sandboxd'])
  try { seen.secrets.push(...fs.readdirSync(place).map(name => place + '/' + name)); } catch {}
const targets = %s;
const tried = targets.map(([host, port]) => new Promise(done => {
  const socket = net.connect({host, port, timeout: 3000});
  socket.on('connect', () => { socket.destroy(); done('reached'); });
  socket.on('timeout', () => { socket.destroy(); done('silent'); });
  socket.on('error', error => done(error.code));
}));
Promise.all(tried).then(found => {
  seen.addresses = found;
  console.log(JSON.stringify(seen));
  process.exit(1);
});
"""


async def broken(world: ClusterWorld, image: ImageReference) -> ImageBrokenError:
    with pytest.raises(ImageBrokenError) as caught:
        await world.probe.probe(await world.a_sandbox(), image, timeout=TIMEOUT)
    await world.nothing_left()
    return caught.value


@pytest.mark.parametrize(
    ("gone", "files", "step", "words"),
    [
        ("usr/bin/dash", {}, "shell", "/bin/sh"),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", {}, "shell", "libc.so.6"),
        ("etc/passwd", {}, "user", "/etc/passwd is no file"),
        ("", {"etc/passwd": b"root:x:0:0:root:/root:/bin/bash\n"}, "user", "no user gemini"),
        ("", {"workspace": b"a file"}, "mounts", "/workspace is no directory"),
        ("", {"var/lib/dpkg/status": HALF_INSTALLED}, "packages", "half"),
        ("opt/node/bin/node", {}, "cli", "No such file"),
        ("", {CLI: b"process.exit(7)"}, "cli", "exit status 7"),
        ("", {"usr/bin/sudo": b"#!/bin/sh\necho no more; exit 1\n"}, "sudo", "no more"),
    ],
    ids=["sh", "libc", "passwd", "user", "workspace", "dpkg", "node", "the CLI", "sudo"],
)
async def test_what_a_sandbox_cannot_do_without_is_found(
    on_a_cluster: ClusterWorld, gone: str, files: dict[str, bytes], step: str, words: str
) -> None:
    image = await on_a_cluster.own(*filter(None, [gone]), files=files)

    error = await broken(on_a_cluster, image)

    assert error.metadata["step"] == step, error.message
    assert words in error.message


async def test_an_image_that_the_registry_does_not_have_is_found(on_a_cluster: ClusterWorld) -> None:
    there = await on_a_cluster.good()
    gone = ImageReference(registry=there.registry, repository=there.repository, digest=f"sha256:{'c' * 64}")

    error = await broken(on_a_cluster, gone)

    assert error.metadata["step"] == "pull"


@pytest.fixture
async def listener(on_a_cluster: ClusterWorld) -> AsyncIterator[tuple[str, int]]:
    """Where sandboxes may speak to: the address of their gateway."""
    place = (on_a_cluster.installation.gateway_host, on_a_cluster.installation.gateway_port)
    server = await asyncio.start_server(lambda _, writer: writer.close(), *place)
    yield place
    server.close()


async def test_a_hostile_image_finds_no_network_no_token_and_nothing_of_its_owner(
    on_a_cluster: ClusterWorld, listener: tuple[str, int]
) -> None:
    world = on_a_cluster
    targets = [listener, (world.installation.gateway_host, 6443), ("10.96.0.1", 443), ("1.1.1.1", 443)]
    image = await world.own(files={CLI: (LOOKER % json.dumps(targets)).encode()})
    spec = a_spec(str(image))
    await world.backend.start(spec, an_incarnation(), timeout=TIMEOUT)
    sandbox = ("exec", "-n", f"{world.installation.instance}-acme", f"{spec.sandbox}-0", "-c", "sandbox", "--")
    world.installation.kubectl(*sandbox, "sh", "-c", "echo mine > /workspace/work.txt")
    # The control: the same program in the sandbox itself.
    there = json.loads(world.installation.kubectl(*sandbox, "sh", "-c", f"node {CLI_ENTRY} || true"))

    with pytest.raises(ImageBrokenError, match="step cli") as caught:
        await world.probe.probe(spec.sandbox, image, timeout=TIMEOUT)

    said = caught.value.message
    found = json.loads(said[said.index('{"env"') : said.rindex("}") + 1])
    assert there["addresses"][0] == "reached"
    assert "/workspace/work.txt" in there["secrets"]
    assert "/etc/sandboxd/agent/tls.key" in there["secrets"]
    assert "reached" not in found["addresses"]
    assert found["secrets"] == []
    assert set(found["env"]) <= {"PATH", "HOME", "LANG"}
    await world.nothing_left()


async def test_a_probe_whose_service_is_killed_goes_by_itself(on_a_cluster: ClusterWorld) -> None:
    world = on_a_cluster
    image = await world.own(files={CLI: b"setTimeout(() => {}, 600000)"})
    sandbox = await world.a_sandbox()
    installation = world.installation
    places = (str(installation.cluster.kubeconfig), installation.instance, str(installation.home))
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.cluster.probing_child", *places, sandbox, str(image), str(DEADLINE), cwd=ROOT
    )

    def running() -> bool:
        found = installation.kubectl(
            "get", "sandboxprobes.sandboxd.dev", "-n", f"{installation.instance}-acme", "-o", "json"
        )
        return [one.get("status", {}).get("state") for one in json.loads(found)["items"]] == ["Running"]

    await eventually(running, within=60, every=0.2)
    child.send_signal(signal.SIGKILL)
    await child.wait()

    async def gone() -> bool:
        await world.nothing_left()
        return True

    assert running()
    await eventually(gone, within=120, every=0.5)
    # The API server writes down in whole seconds when the probe was made, which was after `began`.
    least = DEADLINE + KEPT.total_seconds() - 1
    assert time.monotonic() - began > least, "somebody removed it before its time: the test shows nothing"


async def test_a_probe_takes_no_longer_than_a_commit_can_wait(on_a_cluster: ClusterWorld) -> None:
    image, sandbox = await on_a_cluster.good(), await on_a_cluster.a_sandbox()
    began = time.monotonic()

    await on_a_cluster.probe.probe(sandbox, image, timeout=timedelta(seconds=60))

    assert time.monotonic() - began < 45, "it took 5 s on two busy processors"
