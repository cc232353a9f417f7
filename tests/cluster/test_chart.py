"""The chart on a real cluster: an installation works, and keeps streams and files through upgrades and crashes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from sandboxd.ctl.connection import new_request_id
from sandboxd.ctl.session_stream import SessionStream
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.v1 import key_pb2, key_pb2_grpc
from tests.chart.helm import NO_HELM, find_helm
from tests.cluster.images import push_variant
from tests.cluster.release import API_KEY, Release, read_images, settled
from tests.cluster.scaling import let_go_first, load, need_metrics, owner_of, ready, said
from tests.eventually import eventually
from tests.installation import free_port
from tests.kube import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = REPOSITORY / "build" / "images.json"
TURN_SECONDS = 180

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_helm() is None, reason=NO_HELM),
    pytest.mark.skipif(not IMAGES.exists(), reason="there are no images: `make images` builds them"),
    pytest.mark.timeout(900),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def release(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Release]:
    """One for all tests of this module, the last of which takes it away."""
    home = tmp_path_factory.mktemp("release")
    made = Release(cluster=cluster, instance=f"t-{secrets.token_hex(4)}", images=read_images(IMAGES), home=home)
    try:
        await made.prepare_place()
        await made.install()
        await made.open()
        yield made
    finally:
        await made.remove()


@dataclass(kw_only=True)
class Talk:
    """A conversation that notes what it hears, until it is told to stop."""

    stream: SessionStream
    rest: float = 0.0
    """Seconds between two turns: somebody who reads before asking again, and leaves the machine alone meanwhile."""
    heard: list[int] = field(default_factory=list)
    turns: int = 0
    failures: list[str] = field(default_factory=list)

    async def say(self, prompt: str) -> None:
        """One turn, to its end."""
        self.stream.prompt(prompt)
        async with asyncio.timeout(TURN_SECONDS):
            async for event in self.stream:
                if event.sequence:
                    self.heard.append(event.sequence)
                if event.HasField("command_failed"):
                    self.failures.append(event.command_failed.reason)
                    return
                if event.HasField("turn_completed"):
                    self.turns += 1
                    return

    async def go_on(self, stop: asyncio.Event) -> None:
        """Turn after turn."""
        while not stop.is_set():
            await self.say(f"Turn {self.turns}")
            if self.rest:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self.rest)


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[Talk]:
    """The conversation goes on while the block does something to the installation, and a turn after it."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        going = tasks.create_task(talk.go_on(stop), name="talk")
        try:
            yield talk
            before = talk.turns
            await eventually(lambda: talk.turns > before, within=TURN_SECONDS, every=0.2)
            stop.set()
        except BaseException:
            going.cancel()
            raise


async def once_and_in_order(talk: Talk, release: Release, client: str, session: str) -> None:
    """What was heard is the journal."""
    async with release.client(client) as caller:
        kept = [event.sequence async for event in caller.history(session) if event.sequence <= talk.heard[-1]]

    assert talk.failures == []
    assert talk.heard == sorted(set(talk.heard))
    assert talk.heard == kept


async def test_an_installation_ends_with_a_stream_that_works(release: Release) -> None:
    async with release.client("acme") as caller:
        sandbox = await caller.create(display_name="first", freelancer="ada", approval_mode="yolo")

        async with caller.stream(sandbox.name) as stream:
            talk = Talk(stream=stream)
            await talk.say("run: printf 'the answer is %d' 0x2a > answer && cat answer && id -un")

        assert (talk.turns, talk.failures) == (1, [])
        history = [event async for event in caller.history(stream.session)]
    told = "\n".join(str(event) for event in history)
    assert "the answer is 42" in told, told
    assert "gemini" in told.rpartition("the answer is 42")[2], told

    await _the_key_is_not_in_the_sandbox(release)
    await _a_new_key_arrives_without_a_restart(release)
    await _others_in_the_namespace_reach_the_api_alone(release)
    await _the_sweep_passes(release)


async def _the_key_is_not_in_the_sandbox(release: Release) -> None:
    found = await release.cluster.get("sandboxes.sandboxd.dev", "-A", "-l", f"{INSTANCE_LABEL}={release.instance}")
    where = found["items"][0]["metadata"]
    place = (where["namespace"], f"{where['name']}-0")
    inside = await release.cluster.run_in(*place, "sh", "-c", "env; cat /proc/*/environ | tr '\\0' '\\n'")

    assert "HOME=" in inside
    assert API_KEY not in inside


async def _a_new_key_arrives_without_a_restart(release: Release) -> None:
    async with release.client("acme") as caller:
        stub = key_pb2_grpc.KeyServiceStub(caller.connection.channel)
        name = "clients/acme/keys/gemini"
        request = key_pb2.SetKeyRequest(request_id=new_request_id(), name=name, key="another-key-of-acme")
        await caller.connection.call(stub.SetKey, request)
    before = (await release.pods("gateway"))[0]

    async def arrived() -> bool:
        entries = await release.run_in("gateway", "import os; print(os.listdir('/etc/sandboxd/api-keys'))")
        return "'acme'" in entries

    await eventually(arrived, within=180, every=2)
    after = (await release.pods("gateway"))[0]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0


async def _others_in_the_namespace_reach_the_api_alone(release: Release) -> None:
    doors = {"serve": 50051, "gateway": 8443, "postgresql": 5432}
    script = (
        "import socket, sys\n"
        "for host, port in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    try:\n        socket.create_connection((host, int(port)), 3).close()\n        print(host)\n"
        "    except OSError: pass\n"
    )
    named = [word for component, port in doors.items() for word in (f"{release.full}-{component}", str(port))]

    from_a_stranger = await release.cluster.run_in(release.namespace, "deploy/practice", "python", "-c", script, *named)
    from_serve = await release.run_in("serve", script, *named[2:])  # a pod reaches itself in any case

    assert from_a_stranger.split() == [f"{release.full}-serve"]
    assert from_serve.split() == [f"{release.full}-postgresql"]  # the database has a door, and not for strangers


async def _the_sweep_passes(release: Release) -> None:
    place = ("-n", release.namespace)
    await release.cluster.kubectl("create", "job", "now", f"--from=cronjob/{release.full}-sweep", *place)
    await release.cluster.kubectl("wait", "job/now", "--for=condition=Complete", "--timeout=90s", *place, within=100)

    report = json.loads((await release.cluster.kubectl("logs", "job/now", *place)).splitlines()[-1])

    assert (report["looked"], report["failed"]) == (1, 0), report


async def test_the_commands_of_the_notes_work_as_they_are_copied(
    release: Release, tmp_path: Path, grpcurl: Path
) -> None:
    notes = (await release.helm("status")).partition("NOTES:")[2]
    programs = ("kubectl", "mkdir", "sandboxd", "sandboxctl")
    port = free_port()
    lines = [line.strip() for line in notes.splitlines() if line.startswith("  ") and line.split()[0] in programs]
    assert {line.split()[0] for line in lines} == set(programs), notes
    script = "\n".join(lines).replace(" 50051:", f" {port}:").replace("localhost:50051", f"localhost:{port}")
    forwarded = next(line for line in script.splitlines() if line.endswith("&"))
    listens = f"until (: < /dev/tcp/localhost/{port}) 2>/dev/null; do sleep 0.1; done"
    script = script.replace(forwarded, f"{forwarded}\n{listens}")
    call = f'-cacert ca.crt -H "authorization: Bearer $(cat token)" localhost:{port} sandboxd.v1.SandboxService/List'

    ran = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p)' EXIT\n{script}\n{grpcurl} {call}"],
        cwd=tmp_path,
        env=os.environ
        | {
            "KUBECONFIG": str(release.cluster.kubeconfig),
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), str(Path(release.cluster.kubectl_binary).parent), os.environ["PATH"]]
            ),
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}"
    assert '"display_name": "first"' in ran.stdout, ran.stdout
    assert f"deployment.apps/{release.full}-serve" in ran.stdout, ran.stdout


async def test_load_brings_a_replica_and_rest_takes_one_whose_conversation_goes_on(release: Release) -> None:
    await need_metrics(release.cluster)
    soon = {"stabilizationSeconds": 5, "periodSeconds": 5}
    # Of 10m that are requested: a pod that works uses more than 0.2 of a processor, two that rest use less together.
    scaling = {"enabled": True, "minReplicas": 1, "maxReplicas": 2, "cpuPercent": 2000, "scaleDown": soon}

    async def are(number: int) -> bool:
        return len(await release.pods("serve")) == len(await ready(release)) == number

    async with release.client("acme") as caller:
        sandbox = await caller.create(display_name="scaled", freelancer="ada", approval_mode="yolo")
        async with caller.stream(sandbox.name) as stream:
            talk = Talk(stream=stream, rest=1.0)
            await talk.say("Before")
            async with talking(talk):
                # A field that is left out is its default: one replica, until the autoscaler says otherwise.
                await release.upgrade(serve={"autoscaling": scaling})
                try:
                    await eventually(lambda: are(1), within=90, every=0.5)
                    async with load(release, "acme", sandbox.name):
                        await eventually(lambda: are(2), within=240, every=0.5)
                        owner = await eventually(lambda: owner_of(release, sandbox.name), within=60, every=0.5)
                        await let_go_first(release, owner)
                        log = asyncio.create_task(_log_of(release, owner), name="log")
                    await eventually(lambda: are(1), within=300, every=0.5)
                except AssertionError as error:
                    error.add_note(await said(release))
                    raise
                last_words = await log
                assert await ready(release) != [owner]
            session = stream.session

    assert '"role.stopped"' in last_words, last_words[-3000:]
    assert "role.drain_step_failed" not in last_words, last_words[-3000:]
    await once_and_in_order(talk, release, "acme", session)
    await release.upgrade(serve={})


async def _log_of(release: Release, pod: str) -> str:
    """What it writes until it has ended."""
    return await release.cluster.kubectl("logs", "-f", "--tail=1", pod, "-n", release.namespace, within=360)


async def test_upgrades_rollbacks_and_crashes_lose_nothing_and_uninstalling_keeps_what_is_peoples(
    release: Release,
) -> None:
    async with release.client("acme") as caller:
        sandbox = await caller.create(display_name="kept", freelancer="ada", approval_mode="yolo")
        async with caller.stream(sandbox.name) as stream:
            talk = Talk(stream=stream)
            await talk.say("write note.txt: to be kept")
            keys = {name: await release.secret(name) for name in ("agent-authority", "signing", "serve-tls")}

            before = await _images_of(release, "serve")
            async with talking(talk):  # N -> N+1
                await release.upgrade(image=await _next_version(release))
                await settled(release)
                assert await _images_of(release, "serve") != before
            async with talking(talk):
                await release.rollback()
                await settled(release)
                assert await _images_of(release, "serve") == before
            async with talking(talk):
                await _kill_the_leading_operator(release)
            async with talking(talk):
                await _kill_the_owner(release, sandbox.name)
            session = stream.session

        await once_and_in_order(talk, release, "acme", session)
        another = await caller.create(display_name="after", freelancer="ada")  # the next operator does its work
        assert another.name != sandbox.name
    assert {name: await release.secret(name) for name in keys} == keys

    claims, sandboxes = await _claims(release), await _sandboxes(release)
    said = await release.helm("uninstall", "--wait")

    assert f"[ConfigMap] {release.full}-kept" in said, said
    assert await _sandboxes(release) == sandboxes
    assert {sandbox.name.rpartition("/")[2], another.name.rpartition("/")[2]} <= set(sandboxes)
    assert await _claims(release) == claims
    assert len(claims) == 2 * len(sandboxes)
    assert (await release.secret("signing")) == keys["signing"]
    assert await release.pods("serve") == []


async def _next_version(release: Release) -> dict[str, str]:
    """Values of another image of the same program: what an upgrade replaces is every pod."""
    following = await push_variant(release.cluster.registry, release.images.server, release.instance)
    return {"digest": following.partition("@")[2]}


async def _images_of(release: Release, component: str) -> set[str]:
    return {pod["spec"]["containers"][0]["image"] for pod in await release.pods(component)}


async def _kill_the_leading_operator(release: Release) -> None:
    before = await release.holder()
    pod = next(one for one in await release.pods("operator") if before.startswith(one["metadata"]["name"]))
    await release.cluster.kubectl(
        "delete", "pod", pod["metadata"]["name"], "-n", release.namespace, "--grace-period=0", "--force"
    )

    async def moved() -> bool:
        return await release.holder() not in {"", before}

    await eventually(moved, within=60, every=0.3)


async def _kill_the_owner(release: Release, sandbox: str) -> None:
    """The replica that owns the conversation, as the database has it."""
    pods = {pod["metadata"]["name"] for pod in await release.pods("serve")}
    owner = await eventually(lambda: owner_of(release, sandbox), within=60, every=0.5)
    await release.cluster.kubectl(
        "delete", "pod", owner, "-n", release.namespace, "--grace-period=0", "--force", "--wait=false"
    )

    async def replaced() -> bool:
        now = {pod["metadata"]["name"] for pod in await release.pods("serve")}
        return owner not in now and len(await ready(release)) == len(pods)

    await eventually(replaced, within=120, every=0.5)


async def _sandboxes(release: Release) -> list[str]:
    found = await release.cluster.get("sandboxes.sandboxd.dev", "-A", "-l", f"{INSTANCE_LABEL}={release.instance}")
    return sorted(one["metadata"]["name"] for one in found["items"])


async def _claims(release: Release) -> list[str]:
    found = await release.cluster.get("pvc", "-A", "-l", f"{INSTANCE_LABEL}={release.instance}")
    return sorted(json.dumps([claim["metadata"]["name"], claim["metadata"]["uid"]]) for claim in found["items"])
