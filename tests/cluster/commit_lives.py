"""Lives of one sandbox, each with an install of its own that is committed; the next one has to have all of them."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.model.cluster import pod_of
from sandboxd.v1 import image_pb2, sandbox_pb2
from tests.cluster.installs import an_install
from tests.cluster.stack import ClusterStack, committed, image_of, sandbox_id
from tests.eventually import eventually

KILLS: Final = (
    "commit.after_commit",
    "commit.after_build",
    "commit.after_push",
    "commit.after_probe",
    "commit.after_verify",
    "commit.after_activate",
    "commit.after_backend",
    "commit.after_tag",
)
"""Where the service can die while it commits, in their order."""
WRITE: Final = 'set -e; for d in /workspace /home/gemini; do printf %s "$2" > "$d/$1.txt"; done; sync'
READ: Final = r"""
dpkg-query --show --showformat '${Package} ${db:Status-Status}\n' 'life-*'
for each in $(ls /usr/bin | grep ^life-); do "$each"; done
for d in /workspace /home/gemini; do cat $d/life-*.txt | sha256sum; done
"""
DEATH_SECONDS: Final = 90.0
"""A start of the service and a step of a commit, on a busy machine."""


@dataclass(kw_only=True)
class Lives:
    """One sandbox, and what its lives have left so far."""

    stack: ClusterStack
    sandbox: sandbox_pb2.Sandbox
    packages: list[str] = field(default_factory=list)
    words: str = ""
    commit_seconds: list[float] = field(default_factory=list)
    start_seconds: list[float] = field(default_factory=list)

    @classmethod
    async def begin(cls, stack: ClusterStack) -> Lives:
        """Create the sandbox."""
        async with stack.client() as client:
            return cls(stack=stack, sandbox=await client.create(model="gemini-2.5-flash"))

    async def live(self, *, kills: Sequence[str] = (), pause: bool) -> image_pb2.Image:
        """Install, write, commit while the service dies at these steps, lose the pod or pause; then look for it all."""
        name = f"life-{len(self.packages):02d}"
        an_install(self.stack, self.sandbox, name)
        word = hashlib.sha256(name.encode()).hexdigest()
        self.stack.inside(self.sandbox, "sh", "-c", WRITE, "sh", name, word)
        self.packages.append(name)
        self.words += word

        image = await self._commit(kills)
        await self._next_life(pause=pause)

        assert self.stack.resource(self.sandbox)["status"]["image"].endswith(image.digest)
        digest = hashlib.sha256(self.words.encode()).hexdigest()
        found = self.stack.inside(self.sandbox, "sh", "-c", READ).splitlines()
        installed = [f"{package} installed" for package in self.packages]
        assert found == [*installed, *self.packages, f"{digest}  -", f"{digest}  -"], f"after {len(self.packages)}"
        return image

    async def are_latest(self) -> bool:
        """The freelancer's tag `latest` names what the sandbox runs from."""
        repository, _, digest = image_of(self.stack, self.sandbox).partition("/")[2].partition("@")
        async with OciRegistry(self.stack.installation.cluster.registry, plain=True) as registry:
            return (await registry.manifest(repository, "latest", timeout=timedelta(seconds=20))).digest == digest

    async def _commit(self, kills: Sequence[str]) -> image_pb2.Image:
        began = time.monotonic()
        async with self.stack.client() as client:
            if kills:
                image = await self._commit_among_deaths(kills)
            else:
                image = await committed(client, self.sandbox)
                self.commit_seconds.append(time.monotonic() - began)
            assert image.status == image_pb2.IMAGE_STATUS_ACTIVE, image
            assert not (await client.get(self.sandbox.name)).HasField("unsaved")
        return image

    async def _commit_among_deaths(self, kills: Sequence[str]) -> image_pb2.Image:
        await self.stack.restart("serve", failpoints=f"{kills[0]}=exit9")
        async with self.stack.client() as client:
            begun = await client.images.begin(self.sandbox.name)
        for step, following in zip(kills, [*kills[1:], ""], strict=True):
            await self._dies(step)
            await self.stack.start("serve", failpoints=f"{following}=exit9" if following else "", ready=False)
        await self.stack.ready("serve")
        async with self.stack.client() as client:

            async def known() -> image_pb2.Image:
                made, *_ = [one async for one in client.images.list(self.sandbox.name, everything=True)]
                assert (made.name, made.status) == (begun.name, image_pb2.IMAGE_STATUS_ACTIVE), made
                return made

            return await eventually(known, within=DEATH_SECONDS, every=0.2, what="the commit is active")

    async def _dies(self, step: str) -> None:
        try:
            await self.stack.died("serve", within=DEATH_SECONDS)
        except TimeoutError:
            raise AssertionError(f"it did not die at {step}:\n{self.stack.log('serve')}") from None
        assert self.stack.processes["serve"].returncode == -signal.SIGKILL, self.stack.log("serve")

    async def _next_life(self, *, pause: bool) -> None:
        """Pause and resume, or lose the pod and use the sandbox."""
        async with self.stack.client() as client:
            if not pause:
                pod = pod_of(sandbox_id(self.sandbox))
                await asyncio.to_thread(self.stack.kubectl, "delete", "pod", pod, "--grace-period=1", "--wait=true")

                async def lost() -> bool:
                    return (await client.get(self.sandbox.name)).state_reason != ""

                await eventually(lost, within=90, every=0.2, what="the loss is seen")
            began = time.monotonic()
            await client.pause(self.sandbox.name)
            resumed = await client.resume(self.sandbox.name)
            self.start_seconds.append(time.monotonic() - began)
        assert resumed.state == sandbox_pb2.SANDBOX_STATE_ACTIVE
