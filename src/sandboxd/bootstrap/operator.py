"""`sandboxd operator`: settings, the cluster, the installation's authority, health and metrics, joined."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from datetime import timedelta
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry
from typing_extensions import override

from sandboxd import __version__
from sandboxd.api.web.operations import OperationsServer
from sandboxd.backends.certificates import CertificateAuthority
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.places import works_on_snapshots
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.bootstrap.stopping import stop_signals, unless_stopped
from sandboxd.kubeapi.access import KubeConfigError
from sandboxd.kubeapi.client import KubeClient
from sandboxd.kubeapi.errors import KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import IncarnationId
from sandboxd.monitor.process_metrics import ProcessMetrics
from sandboxd.operator.backup_shape import BackupMeans, SnapshotMeans
from sandboxd.operator.kinds import Kind
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.ports import AgentIdentities, AgentIdentity
from sandboxd.operator.pull_secrets import PULL_SECRET
from sandboxd.operator.room import Operator, OperatorSettings
from sandboxd.operator.snapshot_store import MISSING
from sandboxd.operator.tenancy import Network, read_allowed
from sandboxd.operator.writing import TIMEOUT
from sandboxd.settings import Settings, SettingsError, redact
from sandboxd.settings_rules import is_loopback
from sandboxd.tls.files import TlsFiles, TlsFilesError

log = structlog.get_logger("sandboxd.bootstrap")


class AuthorityIdentities(AgentIdentities):
    """Identities of the installation's own authority, the one whose agents `serve` trusts."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority

    @override
    def issue(self, incarnation: IncarnationId) -> AgentIdentity:
        made = self._authority.issue_agent(incarnation)
        return AgentIdentity(certificate=made.certificate, key=made.key, authority=self._authority.certificate)


async def operator(settings: Settings) -> None:
    """Run until a signal says stop, then give the Lease up.

    Raises:
        SettingsError: Something that this role needs is missing.
        UnavailableError: The cluster cannot be reached.
        OSError: An address is taken.
    """
    clock = SystemClock()
    registry = CollectorRegistry()
    process = ProcessMetrics(registry, role="operator", version=__version__)
    try:
        authority = CertificateAuthority.open(KeyFiles(home=settings.home).agent_authority, clock=clock)
        shape = operator_settings(settings)
    except ValueError as error:
        raise SettingsError(f"The settings cannot be used:\n  {error}") from error
    measuring = asyncio.create_task(process.run(), name="loop-lag")
    with stop_signals() as stop:
        log.info("role.settings", **redact(settings))
        try:
            async with KubeClient(settings.kubeconfig) as api:
                if shape.plan.snapshots is not None:
                    await warn_without_snapshots(api)
                made = Operator(
                    api,
                    settings=shape,
                    identities=AuthorityIdentities(authority),
                    clock=clock,
                    metrics=OperatorMetrics(registry),
                )
                await _run(settings, made, registry=registry, stop=stop)
        except KubeConfigError as error:
            raise UnavailableError(f"There is no cluster: {error}.") from error
        finally:
            measuring.cancel()


def operator_settings(settings: Settings) -> OperatorSettings:
    """What of the settings the operator is made from.

    Raises:
        ValueError: Addresses cannot be read, or there is not all that backups need.
    """
    means, snapshots = backup_means(settings), snapshot_means(settings)
    blocked = [one.strip() for one in settings.kubernetes_blocked_ranges.split(",") if one.strip()]
    network = Network(
        own_namespace=settings.kubernetes_namespace,
        gateway_port=int(settings.gateway_listen.rpartition(":")[2]),
        blocked=blocked,
        allowed=read_allowed(settings.kubernetes_allowed_addresses),
        storage=read_allowed(settings.kubernetes_backup_addresses) if means is not None else (),
        storage_named=means is not None and not _is_number(urlsplit(means.location.removeprefix("s3:")).hostname or ""),
    )
    return OperatorSettings(
        plan=PlanSettings(
            instance=settings.kubernetes_instance,
            network=network,
            prepull=settings.kubernetes_prepull,
            backups=means,
            snapshots=snapshots,
            own_pull_secret=PULL_SECRET if settings.image_pulls_secret else "",
        ),
        image_pulls=settings.image_pulls_secret,
        namespace=settings.kubernetes_namespace,
        # Names may be given, and twice: whoever holds the Lease must be this very process.
        identity=f"{settings.replica}-{secrets.token_hex(4)}",
        lease=timedelta(seconds=settings.operator_lease_seconds),
    )


def backup_means(settings: Settings) -> BackupMeans | None:
    """What backups are made with; None where none are made.

    Raises:
        ValueError: Something is missing.
    """
    location, credentials = settings.backups_location, settings.backups_s3_credentials_file
    if not location:
        return None
    if not location.startswith("s3:"):
        raise ValueError(
            "SANDBOXD_BACKUPS_LOCATION: pods reach S3-compatible storage alone: s3:https://host/bucket/prefix"
        )
    needed = {
        "SANDBOXD_KUBERNETES_BACKUP_IMAGE": settings.kubernetes_backup_image,
        "SANDBOXD_KUBERNETES_BACKUP_ADDRESSES": settings.kubernetes_backup_addresses,
        "SANDBOXD_BACKUPS_S3_CREDENTIALS_FILE": credentials,
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise ValueError(f"{', '.join(missing)}: needed with SANDBOXD_BACKUPS_LOCATION")
    assert credentials is not None
    try:
        credentials.read_bytes()
    except OSError as error:
        raise ValueError(f"SANDBOXD_BACKUPS_S3_CREDENTIALS_FILE: {error.strerror}") from error
    return BackupMeans(
        image=settings.kubernetes_backup_image,
        location=location,
        credentials=credentials.read_bytes,
        upload_kibibytes=settings.backups_upload_kibibytes,
        download_kibibytes=settings.backups_download_kibibytes,
        cpu=settings.kubernetes_backup_cpu,
        memory=settings.kubernetes_backup_memory,
        cpu_request=settings.kubernetes_backup_cpu_request,
        memory_request=settings.kubernetes_backup_memory_request,
    )


def snapshot_means(settings: Settings) -> SnapshotMeans | None:
    """What VolumeSnapshots are made with; None where nobody works on any.

    Raises:
        ValueError: Something is missing.
    """
    if not works_on_snapshots(settings):
        return None
    if not settings.kubernetes_backup_image:
        raise ValueError("SANDBOXD_KUBERNETES_BACKUP_IMAGE: needed with snapshots, whose pods flush and mount volumes")
    return SnapshotMeans(image=settings.kubernetes_backup_image, snapshot_class=settings.kubernetes_snapshot_class)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def warn_without_snapshots(api: KubeApi) -> None:
    """Say at the start what a cluster lacks that is to make snapshots; all else works, and backups say it again."""
    try:
        await api.get(Kind.SNAPSHOT_CONTENT.everywhere(), query={"limit": "1"}, timeout=TIMEOUT)
    except KubeNotFoundError:
        log.warning("operator.snapshots_missing", advice=MISSING)
    except KubeError as error:
        log.warning("operator.snapshots_unknown", error=error.message)


async def _run(settings: Settings, made: Operator, *, registry: CollectorRegistry, stop: asyncio.Event) -> None:
    async def mirrors_are_fresh() -> None:
        if cut := sorted(kind for kind, problem in made.mirrors.problems().items() if problem):
            raise UnavailableError(f"The watches of {', '.join(cut)} are cut off.")
        if not made.mirrors.synced:
            raise UnavailableError("The cluster has not been read yet.")

    web = OperationsServer(registry=registry, checks={"cluster": mirrors_are_fresh})
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    own_tls = TlsFiles(certificate=certificate, key=key) if certificate and key else None
    try:
        port = await web.start(
            settings.operator_web_listen, tls=None if is_loopback(settings.operator_web_listen) else own_tls
        )
    except TlsFilesError as error:
        raise SettingsError(f"The settings cannot be used:\n  SANDBOXD_TLS_CERTIFICATE_FILE: {error}") from error
    log.info("role.started", role="operator", web_port=port)
    try:
        web.set_ready(ready=True)
        await unless_stopped(stop, made.run())
    finally:
        web.set_ready(ready=False)
        await web.stop()
