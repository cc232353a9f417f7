"""Volumes of real pods are backed up to S3-compatible storage and come back: byte for byte, after losses on the way."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.ctl.client import Client
from sandboxd.ctl.errors import ApiError
from sandboxd.dev.identity import DevIssuer
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.backup import BackupSetId, RestoreId
from sandboxd.model.cluster import KEPT_LABEL, claims_of, pod_of
from sandboxd.model.drill import DrillId, drill_sandbox
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import Tier
from sandboxd.persistence.engine import plain_url
from sandboxd.settings import Settings
from sandboxd.v1 import admin_pb2, backup_pb2, client_pb2, client_pb2_grpc, sandbox_pb2
from sandboxd.volumes.ports import RestoreOrder, TakenVolumes, VolumesOf, VolumesProgress
from sandboxd.volumes.volume_errors import VolumesInUseError
from tests.cluster.stack import a_cluster_stack, sandbox_id
from tests.contract.test_running_images import a_spec, an_incarnation
from tests.eventually import eventually
from tests.installation import ClusterInstallation, built_images, free_port
from tests.kube import Cluster
from tools.restic import ensure_s3_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
PATIENCE: Final = timedelta(seconds=200)
SLOW_KIBIBYTES: Final = 3072
"""A second to the storage: what is larger than that can be disturbed on its way."""
COMPLETE, DELETED = backup_pb2.BACKUP_STATUS_COMPLETE, backup_pb2.BACKUP_STATUS_DELETED
BY_SCHEDULE, BY_REQUEST = backup_pb2.BACKUP_TRIGGER_SCHEDULE, backup_pb2.BACKUP_TRIGGER_REQUEST
BY_TERMINATE = backup_pb2.BACKUP_TRIGGER_TERMINATE
NEWEST, LAST = backup_pb2.BACKUP_HOLD_NEWEST, backup_pb2.BACKUP_HOLD_LAST
FILL: Final = """
import os
os.chdir('/workspace')
os.makedirs('d/e')
open('program', 'wb').write(b'hello')
os.link('program', 'd/same')
os.symlink('../../etc/passwd', 'nowhere')
os.mkfifo('pipe', 0o620)
with open('holes', 'wb') as file:
    file.truncate(32 << 20)
    file.seek(20 << 20)
    file.write(b'middle')
for name in (b'na\\nme\\xff*?[a]', b'-rf', b' '):
    open(b'd/' + name, 'wb').write(name)
os.chown('d/e', 60000, 60001)
os.chown('d', 1000, 1000)
os.setxattr('program', 'user.x', b'\\0\\xff')
os.setxattr('program', 'security.capability', bytes.fromhex('0100000200040000000000000000000000000000'))
os.chmod('program', 0o4755)
os.chmod('d', 0o3775)
os.utime('program', ns=(1, 123456789123456789))
os.chdir('/home/gemini')
open('notes', 'w').write('of the freelancer')
os.chown('notes', 1000, 1000)
"""
"""What is hard to keep, made by root of the sandbox."""
BULK_BYTES: Final = 200 << 20
BULK: Final = f"""
import os
letters = bytes(65 + (byte & 3) for byte in range(256))
with open('/workspace/bulk', 'wb') as file:
    for _ in range({BULK_BYTES >> 20}):
        file.write(os.urandom(1 << 20).translate(letters))
"""
"""A file of which a quarter goes over the slow line: two bits of each byte are of chance."""
LOOK: Final = """
import hashlib, json, os, stat
said, links = {}, {}
for root in ('/home/gemini', '/workspace'):
    for place, directories, files in [(root, [''], []), *os.walk(root)]:
        for name in sorted(directories + files):
            path = os.path.join(place, name)
            found = os.lstat(path)
            what = [oct(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns]
            what.append({one: os.getxattr(path, one, follow_symlinks=False).hex()
                         for one in sorted(os.listxattr(path, follow_symlinks=False))})
            if stat.S_ISREG(found.st_mode):
                what += [found.st_size, hashlib.sha256(open(path, 'rb').read()).hexdigest()]
                links.setdefault(found.st_ino, []).append(ascii(path))
            elif stat.S_ISLNK(found.st_mode):
                what.append(os.readlink(path))
            said[ascii(path)] = what
print(json.dumps([said, sorted(sorted(names) for names in links.values() if len(names) > 1)]))
"""
LOOKER: Final = """
import json, os, socket, sys
seen = {'tokens': os.path.exists('/var/run/secrets'), 'addresses': []}
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), timeout=3).close()
        seen['addresses'].append('reached')
    except OSError as error:
        seen['addresses'].append(type(error).__name__)
print(json.dumps(seen))
"""


@dataclass(kw_only=True)
class Storage:
    """A server of buckets on the node, as pods see it."""

    address: str
    process: subprocess.Popen[bytes]


@dataclass(kw_only=True)
class BackingWorld:
    """What a test drives."""

    installation: ClusterInstallation
    storage: Storage
    backend: KubernetesBackend
    backups: KubernetesVolumeBackups

    @property
    def namespace(self) -> str:
        return f"{self.installation.instance}-acme"

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.installation.kubectl("-n", self.namespace, *arguments, check=check)

    def inside(self, sandbox: SandboxId, program: str) -> str:
        """What a program prints that root runs in the sandbox."""
        return self.kubectl("exec", pod_of(sandbox), "-c", "sandbox", "--", "python3", "-c", program)

    def work_pods(self) -> list[str]:
        found = self.kubectl("get", "pods", "-l", "sandboxd.dev/backup", "-o", "json")
        return [
            one["metadata"]["name"] for one in json.loads(found)["items"] if one["status"].get("phase") == "Running"
        ]

    def lose_volumes(self, sandbox: SandboxId) -> None:
        self.kubectl("delete", "pvc", *claims_of(sandbox).values(), "--wait=true")

    async def a_sandbox(self) -> tuple[SandboxSpec, IncarnationId]:
        spec, incarnation = a_spec(), an_incarnation()
        await self.backend.start(spec, incarnation, timeout=PATIENCE)
        return spec, incarnation

    async def stop(self, spec: SandboxSpec, incarnation: IncarnationId) -> None:
        await self.backend.stop(spec.sandbox, incarnation, grace=timedelta(seconds=1), timeout=PATIENCE)

    async def take(self, spec: SandboxSpec, *, timeout: timedelta = PATIENCE) -> TakenVolumes:
        return await self.backups.take(a_set(), volumes_of(spec), timeout=timeout, progress=ignored)


def ignored(progress: VolumesProgress) -> None:
    pass


def a_set() -> BackupSetId:
    return BackupSetId(f"bak-{secrets.token_hex(13)}")


def volumes_of(spec: SandboxSpec) -> VolumesOf:
    return VolumesOf(
        sandbox=spec.sandbox,
        client=spec.client,
        freelancer=spec.freelancer,
        tier=Tier.BASIC,
        resources=spec.resources,
    )


def an_order(taken: TakenVolumes, spec: SandboxSpec) -> RestoreOrder:
    return RestoreOrder(
        id=RestoreId(f"rst-{secrets.token_hex(13)}"),
        into=volumes_of(spec),
        snapshots={one.volume: one.snapshot for one in taken.volumes},
    )


@pytest.fixture(scope="module")
def backing_installation(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ClusterInstallation, Storage]]:
    """An installation whose operator backs up to a server on the node."""
    home = tmp_path_factory.mktemp("installation")
    made = ClusterInstallation(
        cluster=cluster,
        instance=f"t-{secrets.token_hex(4)}",
        home=home,
        images=built_images(cluster, "server"),
    )
    storage = None
    try:
        made.prepare()
        storage = a_storage(f"{made.gateway_host}:{free_port()}")
        keys = home / "storage-keys"
        keys.write_text("[default]\naws_access_key_id = somebody\naws_secret_access_key = secret\n")
        host, _, port = storage.address.partition(":")
        made.extra = {
            "SANDBOXD_BACKUPS_LOCATION": f"s3:http://{storage.address}/backups/all",
            "SANDBOXD_KUBERNETES_BACKUP_IMAGE": made.images["server"],
            "SANDBOXD_KUBERNETES_BACKUP_ADDRESSES": f"{host}/32:{port}",
            "SANDBOXD_BACKUPS_S3_CREDENTIALS_FILE": str(keys),
            "SANDBOXD_BACKUPS_UPLOAD_KIBIBYTES": str(SLOW_KIBIBYTES),
        }
        made.start_operator()
        yield made, storage
    finally:
        made.clean()
        made.stop_operator()
        if storage is not None:
            storage.process.kill()
            storage.process.wait()


def a_storage(address: str) -> Storage:
    """Start it, and wait until it answers."""
    process = subprocess.Popen(
        [str(ensure_s3_server()), "-host", address, "-backend", "memory", "-initialbucket", "backups"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not answers(f"http://{address}/"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return Storage(address=address, process=process)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


@pytest.fixture
async def world(backing_installation: tuple[ClusterInstallation, Storage]) -> AsyncIterator[BackingWorld]:
    installation, storage = backing_installation
    async with installation.client() as api:
        backend, _ = installation.backend(api)
        names = Installation(
            instance=installation.instance,
            namespace_prefix=f"{installation.instance}-",
            template=installation.instance,
        )
        backups = KubernetesVolumeBackups(
            api, installation=names, clock=SystemClock(), name=lambda: secrets.token_hex(8)
        )
        following = asyncio.create_task(backend.run())
        yield BackingWorld(installation=installation, storage=storage, backend=backend, backups=backups)
        for observation in await backend.list():
            await backend.erase(observation.sandbox, timeout=PATIENCE)
        following.cancel()


async def backed_up(
    client: Client, sandbox: sandbox_pb2.Sandbox, told: list[backup_pb2.BackupProgress] | None = None
) -> backup_pb2.Backup:
    """Back a sandbox up, and wait until that is done."""
    backup = await client.backups.begin(sandbox.name)
    async with asyncio.timeout(PATIENCE.total_seconds()):
        async for seen in client.backups.follow(backup.name):
            backup = seen
            if told is not None and seen.HasField("progress"):
                told.append(seen.progress)
    assert backup.status == backup_pb2.BACKUP_STATUS_COMPLETE, backup
    return backup


async def test_a_sandbox_whose_volumes_are_lost_has_them_back_byte_for_byte(world: BackingWorld) -> None:
    spec, incarnation = await world.a_sandbox()
    world.inside(spec.sandbox, FILL)
    before = json.loads(world.inside(spec.sandbox, LOOK))
    assert len(before[1]) == 1, "there is a hard link"

    running = await world.take(spec)
    with pytest.raises(VolumesInUseError):
        await world.backups.restore(an_order(running, spec), timeout=PATIENCE, progress=ignored)
    await world.stop(spec, incarnation)
    world.lose_volumes(spec.sandbox)
    await world.backups.restore(an_order(running, spec), timeout=PATIENCE, progress=ignored)
    await world.backend.start(spec, an_incarnation(), timeout=PATIENCE)

    assert json.loads(world.inside(spec.sandbox, LOOK)) == before


async def test_a_pod_that_is_killed_in_the_middle_is_followed_by_another_which_reaches_nothing_but_the_storage(
    world: BackingWorld,
) -> None:
    spec, _ = await world.a_sandbox()
    world.inside(spec.sandbox, f"import os; open('/workspace/big', 'wb').write(os.urandom({SLOW_KIBIBYTES} << 13))")
    taking = asyncio.create_task(world.take(spec))
    (first,) = await eventually(lambda: asyncio.to_thread(world.work_pods), within=90, every=0.3)
    host, _, port = world.storage.address.partition(":")
    agent = json.loads(world.kubectl("get", "pod", pod_of(spec.sandbox), "-o", "json"))["status"]["podIP"]
    targets = [(host, int(port)), (host, 6443), ("10.96.0.1", 443), (agent, 7443), ("1.1.1.1", 443)]
    looked = world.kubectl(
        "exec", first, "--", "/opt/sandboxd/bin/python", "-c", LOOKER, json.dumps([list(one) for one in targets])
    )

    seen = json.loads(looked)
    world.kubectl("delete", "pod", first, "--grace-period=0", "--force")
    taken = await taking

    assert seen["addresses"][0] == "reached"
    assert "reached" not in seen["addresses"][1:]
    assert seen["tokens"] is False
    assert {one.volume.value for one in taken.volumes} == {"home", "workspace"}
    assert first.endswith("-1")
    await world.backups.verify(spec.client, content=True, timeout=PATIENCE)


def in_order(told: list[backup_pb2.BackupProgress]) -> bool:
    """Whether progress never goes back, and no part exceeds its whole."""
    far = [(one.kind, one.bytes, one.files) for one in told]
    return far == sorted(far) and all(one.bytes <= one.total_bytes and one.files <= one.total_files for one in told)


async def test_a_terminated_sandbox_whose_volumes_are_lost_is_restored_by_rpc_followed_and_cancelled(
    backing_installation: tuple[ClusterInstallation, Storage], postgres_url: str
) -> None:
    installation, _ = backing_installation
    async with a_cluster_stack(installation, postgres_url, start=False) as stack:
        stack.environment |= {
            "SANDBOXD_BACKUPS_LOCATION": installation.extra["SANDBOXD_BACKUPS_LOCATION"],
            "SANDBOXD_BACKUPS_LOOK_SECONDS": "0",  # nobody but this test asks for backups
        }
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client:
            sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
            stack.inside(sandbox, "sh", "-c", "echo mine > /workspace/file; echo notes > /home/gemini/notes")
            stack.inside(sandbox, "python3", "-c", BULK)
            await client.terminate(sandbox.name)
            told, views = list[backup_pb2.BackupProgress](), list[backup_pb2.WatchRestoreResponse]()

            await backed_up(client, sandbox, told)

            inside = {one.bytes for one in told if one.kind == backup_pb2.BACKUP_VOLUME_KIND_WORKSPACE}
            assert [size for size in inside if 0 < size < BULK_BYTES], told
            assert in_order(told), told

            async def begun() -> asyncio.Task[sandbox_pb2.Sandbox]:
                """A restore that is at work."""
                made = asyncio.create_task(client.restore(sandbox.name, timeout=PATIENCE.total_seconds()))

                async def restoring() -> bool:
                    return (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_RESTORING

                await eventually(restoring, within=30, every=0.1)
                return made

            cancelled = await begun()
            assert "TERMINATED as before" in await client.backups.cancel_restore(sandbox.name)
            with pytest.raises(ApiError, match="was cancelled"):
                await cancelled
            assert (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_TERMINATED
            left = json.loads(stack.kubectl("get", "sandboxbackups,pods", "-o", "json"))["items"]
            assert [name for one in left if "rst-" in (name := one["metadata"]["name"])] == []
            assert "restore.not_discarded" not in stack.log("serve")

            stack.kubectl("delete", "pvc", *claims_of(sandbox_id(sandbox)).values(), "--wait=true")
            restoring = await begun()
            async for view in client.backups.follow_restore(sandbox.name):
                views.append(view)
            restored = await restoring

            steps = [view.step for view in views]
            assert (steps == sorted(steps), steps[-1]) == (True, backup_pb2.RESTORE_STEP_ENDED), views
            back = [view.progress for view in views if view.step == backup_pb2.RESTORE_STEP_VOLUMES]
            assert back, views
            assert in_order(back), views
            assert restored.state == sandbox_pb2.SANDBOX_STATE_ACTIVE
            words = stack.inside(restored, "cat", "/workspace/file", "/home/gemini/notes")
            assert words.split() == ["mine", "notes"]
            for claim in claims_of(sandbox_id(sandbox)).values():
                labels = stack.get("pvc", claim)["metadata"]["labels"]
                assert KEPT_LABEL not in labels, "it lives"


async def test_a_backup_makes_another_sandbox_and_a_drill_of_it_passes_and_leaves_nothing(
    backing_installation: tuple[ClusterInstallation, Storage], postgres_url: str
) -> None:
    installation, _ = backing_installation
    async with a_cluster_stack(installation, postgres_url, start=False) as stack:
        stack.environment |= {
            "SANDBOXD_BACKUPS_LOCATION": installation.extra["SANDBOXD_BACKUPS_LOCATION"],
            "SANDBOXD_BACKUPS_LOOK_SECONDS": "0",
        }
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client:
            old = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
            stack.inside(old, "sh", "-c", "echo mine > /workspace/file; echo notes > /home/gemini/notes")
            await client.pause(old.name)
            backup = await backed_up(client, old)

            new = await client.create(from_backup=backup.name, timeout=PATIENCE.total_seconds())

            assert new.name != old.name
            assert stack.inside(new, "cat", "/workspace/file", "/home/gemini/notes").split() == ["mine", "notes"]
            for claim in claims_of(sandbox_id(new)).values():
                assert KEPT_LABEL not in stack.get("pvc", claim)["metadata"]["labels"], "it lives"
            await client.pause(new.name)

            async with stack.client(role="platform") as platform:
                drill = await platform.backups.drill(backup.name, timeout=PATIENCE.total_seconds())

            assert (drill.status, drill.failure.message) == (backup_pb2.DRILL_STATUS_PASSED, ""), drill
            assert all(one.expected == one.found and not one.difference_count for one in drill.volumes)
            left = claims_of(drill_sandbox(DrillId(drill.id)))
            found = json.loads(stack.kubectl("get", "pvc,sandbox", "-o", "json"))["items"]
            names = {one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]}
            assert not names & {*left.values(), drill_sandbox(DrillId(drill.id))}


async def test_volumes_of_a_terminated_pod_go_once_their_backup_was_read_and_come_back_from_it(
    backing_installation: tuple[ClusterInstallation, Storage], postgres_url: str
) -> None:
    installation, _ = backing_installation
    async with a_cluster_stack(installation, postgres_url, start=False) as stack:
        stack.environment |= {
            "SANDBOXD_BACKUPS_LOCATION": installation.extra["SANDBOXD_BACKUPS_LOCATION"],
            "SANDBOXD_BACKUPS_LOOK_SECONDS": "0.5",
            "SANDBOXD_BACKUPS_EVERY_SECONDS": "0",
            "SANDBOXD_BACKUPS_RELEASE_SECONDS": "1",
        }
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client, stack.client(role="platform") as platform:
            sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
            claims = set(claims_of(sandbox_id(sandbox)).values())
            stack.inside(sandbox, "sh", "-c", "echo mine > /workspace/file; echo notes > /home/gemini/notes")

            def there() -> set[str]:
                """Its claims."""
                found = json.loads(stack.kubectl("get", "pvc", "-o", "json"))["items"]
                return claims & {one["metadata"]["name"] for one in found}

            assert there() == claims
            await client.terminate(sandbox.name)

            async def over() -> bool:
                return (await client.get(sandbox.name)).volumes_release.HasField("end_time")

            await eventually(over, within=150, every=0.5)
            assert there() == set()
            looked = await platform.admin.abandoned()
            assert not [one for one in looked.abandoned if any(claim in one.name for claim in claims)]
            assert not looked.unasked, looked

            back = await client.restore(sandbox.name, timeout=PATIENCE.total_seconds())

            assert stack.inside(back, "cat", "/workspace/file", "/home/gemini/notes").split() == ["mine", "notes"]
            assert not back.HasField("volumes_release")


async def test_what_a_failed_backup_left_in_the_repository_is_told_with_its_cost_and_goes_after_grace(
    backing_installation: tuple[ClusterInstallation, Storage], postgres_url: str
) -> None:
    installation, _ = backing_installation
    async with a_cluster_stack(installation, postgres_url, start=False) as stack:
        stack.environment |= {
            "SANDBOXD_BACKUPS_LOCATION": installation.extra["SANDBOXD_BACKUPS_LOCATION"],
            "SANDBOXD_BACKUPS_LOOK_SECONDS": "0",
            "SANDBOXD_ABANDONED_LOOK_SECONDS": "5",  # of a gap between looks twice as much counts at most
            "SANDBOXD_ABANDONED_SURVEY_SECONDS": "1",
            "SANDBOXD_ABANDONED_GRACE_SECONDS": "8",
            "SANDBOXD_ABANDONED_PRICES": "backups=1000000,*=1",
        }
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client, stack.client(role="platform") as platform:
            sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
            stack.inside(sandbox, "sh", "-c", "head -c 100000 /dev/urandom > /workspace/file")
            failed = await backed_up(client, sandbox)
            name = failed.name.rpartition("/")[2]
            connection = await asyncpg.connect(plain_url(stack.database_url))
            await connection.execute("UPDATE backup_sets SET status = 'failed' WHERE id = $1", name)
            await connection.close()

            async def told() -> list[admin_pb2.Abandoned]:
                looked = await platform.admin.abandoned()
                return [one for one in looked.abandoned if name in one.name]

            (found,) = await eventually(told, within=60, every=1)
            assert (found.kind, found.reason) == (
                admin_pb2.ABANDONED_KIND_SNAPSHOT,
                admin_pb2.ABANDONED_REASON_SET_ENDED,
            )
            assert found.size_bytes > 0
            assert found.cost_micros > 0
            await stack.reports("abandoned.removed", name)

            async def quiet() -> bool:
                return not await told()

            await eventually(quiet, within=60, every=1)


async def test_policy_backs_up_keeps_lets_go_and_erases_and_a_running_pod_stands_still_for_who_asks(
    backing_installation: tuple[ClusterInstallation, Storage], postgres_url: str
) -> None:
    installation, storage = backing_installation
    async with a_cluster_stack(installation, postgres_url, start=False) as stack:
        stack.environment |= {
            "SANDBOXD_BACKUPS_LOCATION": installation.extra["SANDBOXD_BACKUPS_LOCATION"],
            "SANDBOXD_BACKUPS_LOOK_SECONDS": "0.5",
            "SANDBOXD_BACKUPS_EVERY_SECONDS": "1",
        }
        issuer = DevIssuer.open(Settings(data_dir=stack.home))
        stack.token = issuer.mint(client=stack.client_id, subject="dev", role="platform", seconds=3600)
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client:
            clients = client_pb2_grpc.ClientServiceStub(client.connection.channel)
            owner = f"clients/{stack.client_id}"

            async def wish(**kept: int | Duration) -> None:
                policy = client_pb2.ClientPolicy(backup_retention=backup_pb2.BackupRetention(**kept))  # type: ignore[arg-type]  # numbers and a span
                request = client_pb2.UpdateClientRequest(
                    request_id=secrets.token_hex(8),
                    client=client_pb2.Client(name=owner, policy=policy),
                    update_mask=FieldMask(paths=["policy.backup_retention"]),
                )
                await client.connection.call(clients.UpdateClient, request)

            async def sets() -> list[backup_pb2.Backup]:
                return [one async for one in client.backups.list(sandbox.name, deleted=True)]

            async def ended(*wanted: tuple[int, int]) -> list[backup_pb2.Backup]:
                """Wait for sets of these triggers and statuses, the newest first."""

                async def found() -> list[backup_pb2.Backup]:
                    made = await sets()
                    return made if [(one.trigger, one.status) for one in made] == [*wanted] else []

                return await eventually(found, within=90, every=0.3)

            sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
            scheduled, asked = (BY_SCHEDULE, COMPLETE), (BY_REQUEST, COMPLETE)
            await ended(scheduled)
            await wish(keep_last=1, keep_daily=0, keep_weekly=0)
            stack.inside(sandbox, "sh", "-c", "(while :; do date +%s%N >> /workspace/ticks; done) >/dev/null 2>&1 &")
            begun = await client.backups.begin(sandbox.name, freeze=backup_pb2.BACKUP_FREEZE_REQUIRED)
            async with asyncio.timeout(PATIENCE.total_seconds()):
                async for one in client.backups.follow(begun.name):
                    begun = one
            assert begun.consistency == backup_pb2.BACKUP_CONSISTENCY_QUIESCED, begun.failure
            assert (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_ACTIVE
            ticks = [stack.inside(sandbox, "wc", "-l", "/workspace/ticks") for _ in range(2)]
            assert ticks[0] != ticks[1], "it goes on"
            kept, gone = await ended(asked, (BY_SCHEDULE, DELETED))
            assert ([*kept.holds], bool(gone.deletion.snapshots)) == ([NEWEST, LAST], True)

            await wish(keep_last=1, keep_daily=0, keep_weekly=0, immutable_for=Duration(seconds=3600))
            ending = (await client.terminate(sandbox.name)).sandbox.final_backup
            assert ending.state == backup_pb2.FINAL_BACKUP_STATE_PENDING
            last, *_ = await ended((BY_TERMINATE, COMPLETE), (BY_REQUEST, DELETED), (BY_SCHEDULE, DELETED))
            final = (await client.get(sandbox.name)).final_backup
            assert (final.state, final.backup) == (backup_pb2.FINAL_BACKUP_STATE_COMPLETE, last.name)
            assert last.consistency == backup_pb2.BACKUP_CONSISTENCY_QUIESCED
            with pytest.raises(ApiError, match="whoever asks"):
                await client.backups.delete(last.name)

            request = client_pb2.DeleteClientRequest(request_id=secrets.token_hex(8), name=owner)
            await client.connection.call(clients.DeleteClient, request, timeout=PATIENCE.total_seconds())
            listing = f"http://{storage.address}/backups?prefix=all/{stack.client_id}/snapshots"
            assert "<Key>" not in await asyncio.to_thread(read, listing)
            secret = f"backup-password-{stack.namespace}"
            assert installation.kubectl("get", "secret", "-A", "-o", "name").count(secret) == 0
