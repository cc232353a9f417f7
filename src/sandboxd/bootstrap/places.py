"""Where sandboxes are placed, as `serve` and `sandboxd dev` build it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.backends.certificates import CertificateAuthority
from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.kept_volumes import KubernetesKeptVolumes
from sandboxd.backends.kubernetes.key_store import SecretKeyStore
from sandboxd.backends.kubernetes.objects import Installation, SandboxObjects
from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.backends.kubernetes.pool_board import KubernetesPoolBoard
from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.backends.local.backend import CliFiles, LocalBackend
from sandboxd.backends.local.kept_volumes import LocalKeptVolumes
from sandboxd.backends.local.launching import Launcher
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.gateway.key_store import DirectoryKeyStore
from sandboxd.images.ports import ImageProbe, RunningImages
from sandboxd.kubeapi.access import KubeConfigError
from sandboxd.kubeapi.client import KubeClient
from sandboxd.manager.backend_port import Backend
from sandboxd.manager.key_ports import KeyStore
from sandboxd.manager.pool_ports import PoolBoard
from sandboxd.manager.release_ports import KeptVolumes
from sandboxd.model.backup import BackupMethod
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.settings import Settings, SettingsError
from sandboxd.settings_rules import is_loopback
from sandboxd.volumes.ports import VolumeBackups

END_GRACE: Final = timedelta(seconds=2)
"""What runs in a sandbox has this long after TERM."""
END_TIMEOUT: Final = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A backend with what must run beside it."""

    backend: Backend
    open: Callable[[], Awaitable[None]]
    """To be awaited before anything else; raises SettingsError."""
    run: Callable[[], Coroutine[None, None, None]] | None = None
    """Runs until cancelled."""
    close: Callable[[], Awaitable[None]]
    pool_board: PoolBoard | None = None
    """Where people look at pools, where sandboxes are placed in a cluster."""
    images: RunningImages | None = None
    """Which images sandboxes run from, where they are started from images."""
    probe: ImageProbe | None = None
    """What boots a new image once, where there is such."""
    backups: Mapping[BackupMethod, VolumeBackups] = field(default_factory=dict)
    """What backs sandboxes' volumes up where they are placed, by method; with the local backend this machine does."""
    kept: KeptVolumes | None = None
    """Where removed sandboxes' volumes are, and how they are released."""
    cluster: KubeClient | None = None
    """The API server of the cluster, where sandboxes are placed in one."""


def make_connector(
    settings: Settings, clock: SystemClock, *, tracer: Tracer = NO_TRACES
) -> tuple[CertificateAuthority, GrpcAgentConnector]:
    """Open the installation's authority and take an identity of it."""
    authority = CertificateAuthority.open(KeyFiles(home=settings.home).agent_authority, clock=clock)
    identity = authority.issue_service()
    connector = GrpcAgentConnector(
        certificate=identity.certificate, key=identity.key, agent_authority=authority.certificate, tracer=tracer
    )
    return authority, connector


def find_cli(settings: Settings) -> CliFiles:
    """Say where this machine has the Gemini CLI.

    Raises:
        SettingsError: The settings do not say, or there is nothing there.
    """
    problems = [
        f"{name}: {f'the file {path} does not exist' if path else 'the local backend needs it'}"
        for name, path in (("SANDBOXD_NODE", settings.node), ("SANDBOXD_GEMINI_CLI", settings.gemini_cli))
        if path is None or not path.is_file()
    ]
    if settings.node is None or settings.gemini_cli is None or problems:
        hint = "`python -m sandboxd.dev.gemini_cli` installs the pinned CLI and prints both"
        raise SettingsError("\n  ".join(["The settings cannot be used:", *problems, f"({hint})"]))
    return CliFiles(node=settings.node, entry=settings.gemini_cli)


def make_placement(
    settings: Settings, *, authority: CertificateAuthority, connector: GrpcAgentConnector, clock: SystemClock
) -> Placement:
    """Make the backend that the settings name.

    Raises:
        SettingsError: They do not say what it needs.
    """

    async def nothing() -> None:
        return None

    if settings.backend == "local":
        _require_no_snapshots(settings)
        local = make_local_backend(settings, authority=authority, connector=connector, clock=clock)
        return Placement(backend=local, open=nothing, close=nothing, kept=LocalKeptVolumes(data=settings.home))
    _require_reachable_gateway(settings)
    _require_reachable_storage(settings)
    client = KubeClient(settings.kubeconfig)
    installation = Installation(
        instance=settings.kubernetes_instance,
        namespace_prefix=settings.kubernetes_namespace_prefix,
        template=settings.kubernetes_template,
        premium_gpus=settings.kubernetes_premium_gpus,
    )
    backend = KubernetesBackend(
        api=client, installation=installation, place=POD_PLACE, connector=connector, clock=clock
    )
    board = KubernetesPoolBoard(client, installation)
    methods = [BackupMethod.FILES] if settings.backups_location else []
    if works_on_snapshots(settings):
        methods.append(BackupMethod.SNAPSHOTS)
    backups = {
        method: KubernetesVolumeBackups(
            client, installation=installation, clock=clock, name=lambda: secrets.token_hex(8), method=method
        )
        for method in methods
    }

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(backend.run(), name="backend")
            tasks.create_task(board.run(), name="pool-board")

    async def connect() -> None:
        try:
            await client.open()
        except KubeConfigError as error:
            raise SettingsError(f"The settings cannot be used:\n  SANDBOXD_KUBECONFIG: {error}") from error

    return Placement(
        backend=backend,
        open=connect,
        run=run,
        close=client.close,
        pool_board=board,
        images=backend.images,
        probe=backend.probe,
        backups=backups,
        kept=KubernetesKeptVolumes(SandboxObjects(client, installation), clock=clock),
        cluster=client,
    )


def _require_reachable_gateway(settings: Settings) -> None:
    url = urlsplit(settings.gateway_url)
    host = url.hostname or ""
    if is_loopback(f"[{host}]:1" if ":" in host else f"{host}:1"):
        raise SettingsError(
            f"The settings cannot be used:\n  SANDBOXD_GATEWAY_URL: pods cannot reach {settings.gateway_url}; "
            "say the gateway's address as the cluster's pods see it"
        )


def _require_reachable_storage(settings: Settings) -> None:
    if settings.backups_location.startswith("/"):
        raise SettingsError(
            "The settings cannot be used:\n  SANDBOXD_BACKUPS_LOCATION: pods cannot reach a directory of this machine; "
            "name S3-compatible storage, s3:https://host/bucket/prefix"
        )


def works_on_snapshots(settings: Settings) -> bool:
    """Whether VolumeSnapshots are made, or those of a time before are still known."""
    return settings.kubernetes_snapshots or settings.backups_method == BackupMethod.SNAPSHOTS.value


def _require_no_snapshots(settings: Settings) -> None:
    if settings.backups_method == BackupMethod.SNAPSHOTS.value:
        raise SettingsError(
            "The settings cannot be used:\n  SANDBOXD_BACKUPS_METHOD: only volumes of a cluster have snapshots; set "
            "SANDBOXD_BACKEND to kubernetes, or back up files"
        )


def make_key_store(settings: Settings, placement: Placement, *, files: KeyFiles) -> KeyStore:
    """Make the place where the clients' API keys are kept.

    Raises:
        SettingsError: A Secret is named, and no cluster.
    """
    if not settings.gemini_keys_secret:
        return DirectoryKeyStore(settings.gemini_keys_dir or files.gemini_keys)
    if placement.cluster is None:
        raise SettingsError(
            "The settings cannot be used:\n  SANDBOXD_GEMINI_KEYS_SECRET: a Secret needs a cluster; "
            "set SANDBOXD_BACKEND to kubernetes, or keep keys in SANDBOXD_GEMINI_KEYS_DIR"
        )
    return SecretKeyStore(
        placement.cluster, namespace=settings.kubernetes_namespace, secret=settings.gemini_keys_secret
    )


def make_local_backend(
    settings: Settings, *, authority: CertificateAuthority, connector: GrpcAgentConnector, clock: SystemClock
) -> LocalBackend:
    """Make the backend that places sandboxes as processes of this machine."""
    return LocalBackend(
        data=settings.home,
        cli=find_cli(settings),
        launcher=Launcher(authority=authority, connector=connector, clock=clock),
        connector=connector,
        clock=clock,
    )


async def end_agents(settings: Settings) -> None:
    """End every sandbox of an installation; the files stay.

    For `sandboxd dev`, when nothing serves them any more. The next use of a sandbox finds its incarnation ended and
    makes another one.
    """
    clock = SystemClock()
    authority, connector = make_connector(settings, clock)
    placement = make_placement(settings, authority=authority, connector=connector, clock=clock)
    await placement.open()
    running = None if placement.run is None else asyncio.create_task(placement.run(), name="placement")
    try:
        async with asyncio.TaskGroup() as tasks:
            for found in await placement.backend.list():
                for life in found.running:
                    tasks.create_task(
                        placement.backend.stop(found.sandbox, life.incarnation, grace=END_GRACE, timeout=END_TIMEOUT),
                        name=f"end-{life.incarnation}",
                    )
    finally:
        if running is not None:
            running.cancel()
            # Before the connection is closed: who follows the cluster would ask once more, and fail for all to read.
            await asyncio.gather(running, return_exceptions=True)
        await placement.close()
