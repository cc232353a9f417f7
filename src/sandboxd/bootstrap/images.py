"""What keeping images needs of the outside, made from settings: the registry, base images, and the builder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sandboxd.backends.image_keys import KeyFileError, PemSigningKey, PemTrustedKeys
from sandboxd.backends.kubernetes.kaniko_builds import AGENT_ROOT, BuildPlace, KubernetesKanikoBuilds
from sandboxd.bootstrap.places import Placement
from sandboxd.bootstrap.registries import make_registry
from sandboxd.images.baselines import RegistryBaselines
from sandboxd.images.building import BuildRules, RegistryImageBuilder
from sandboxd.images.kaniko import KanikoImageBuilder
from sandboxd.images.layer_process import WorkerLayerWriter
from sandboxd.images.ports import Baselines, ImageBuilder, ImageLimits, RootfsCapture, SecretPolicy
from sandboxd.images.projects import ImageProjects
from sandboxd.images.registry import Registry
from sandboxd.images.signing import ImageSignatures, SignaturePolicy
from sandboxd.images.spool import Spool
from sandboxd.images.upload_notes import UploadNotes
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.manager.commit_steps import ImageTools
from sandboxd.manager.push_gate import GatedRegistry, PushGate
from sandboxd.manager.push_hold_ports import PushHolds
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.sandbox import Tier
from sandboxd.operator.pod_shape import agent_python
from sandboxd.settings import Settings, SettingsError

NO_TIME: Final = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRoom:
    """All that builds images, and how."""

    registry: Registry
    baselines: Baselines
    builder: ImageBuilder
    pushes: PushGate
    """What every write to the registry passes."""
    repository_of: Callable[[ClientId, FreelancerId], str]
    projects: ImageProjects | None
    """What keeps clients apart in the registry; None where it has nothing of that."""
    limits: Mapping[Tier, ImageLimits]
    secrets: SecretPolicy
    signatures: ImageSignatures | None
    """What signs images and verifies that; None where neither is done."""
    signature_policy: SignaturePolicy
    build_timeout: timedelta
    probe_timeout: timedelta
    install_quiet: timedelta | None
    close: Callable[[], Awaitable[None]]
    """Gives up the registry's connections."""


def image_room(
    settings: Settings,
    *,
    capture: RootfsCapture,
    cluster: KubeApi | None = None,
    uploads: UploadNotes | None = None,
    holds: PushHolds | None = None,
) -> ImageRoom | None:
    """Make what builds images; None where the settings name no registry. Nothing connects yet.

    Args:
        settings: Read.
        capture: Of the sandboxes of this installation's backend.
        cluster: Its API server, where they are placed in one.
        uploads: Where it is noted which uploads are open.
        holds: Who holds pushes; None where nobody can.

    Raises:
        SettingsError: They name kaniko, and there is no cluster, or a file of keys that holds none.
    """
    if not settings.images_registry:
        return None
    room = make_registry(settings, cluster=cluster, uploads=uploads)
    # A Job of kaniko's pushes on where this process dies.
    pushes = PushGate(holds, outlives=settings.image_build_timeout if settings.images_builder == "kaniko" else NO_TIME)
    registry = GatedRegistry(room.registry, pushes)
    baselines = RegistryBaselines(
        registry=registry,
        directory=settings.images_cache_dir or settings.home / "images" / "bases",
        size_bytes=settings.images_cache_bytes,
        architecture=settings.images_architecture,
    )
    builder = _make_builder(settings, cluster, registry=registry, baselines=baselines, capture=capture)
    return ImageRoom(
        registry=registry,
        baselines=baselines,
        builder=builder,
        pushes=pushes,
        repository_of=room.repository_of,
        projects=room.projects,
        limits=settings.image_limits,
        secrets=settings.images_secrets,
        signatures=_signatures(settings, registry),
        signature_policy=settings.images_signatures,
        build_timeout=settings.image_build_timeout,
        probe_timeout=settings.image_probe_timeout,
        install_quiet=settings.image_install_quiet,
        close=room.close,
    )


def _make_builder(
    settings: Settings, cluster: KubeApi | None, *, registry: Registry, baselines: Baselines, capture: RootfsCapture
) -> ImageBuilder:
    writer = WorkerLayerWriter(workers=settings.images_workers)
    spool = Spool(
        directory=settings.images_spool_dir or settings.home / "images" / "spool",
        size_bytes=settings.images_spool_bytes,
        least_free_bytes=settings.images_spool_free_bytes,
    )
    rules = BuildRules(
        registry=settings.images_registry,
        architecture=settings.images_architecture,
        zstd=settings.images_compression == "zstd",
    )
    if settings.images_builder == "registry":
        return RegistryImageBuilder(
            registry=registry, baselines=baselines, capture=capture, writer=writer, spool=spool, rules=rules
        )
    if cluster is None:
        raise SettingsError("The settings cannot be used:\n  SANDBOXD_IMAGES_BUILDER: kaniko needs a cluster")
    reached = settings.images_kaniko_registry or settings.images_registry
    place = BuildPlace(
        namespace=settings.images_kaniko_namespace,
        instance=settings.kubernetes_instance,
        image=settings.images_kaniko_image,
        agent_image=settings.images_kaniko_agent_image,
        secret=settings.images_kaniko_secret,
        registry=reached,
        plain=settings.images_registry_plain,
        authority=settings.images_registry_authority_file is not None,
        host_users=settings.images_kaniko_host_users,
        zstd=rules.zstd,
        architecture=rules.architecture,
    )
    return KanikoImageBuilder(
        registry=registry,
        baselines=baselines,
        capture=capture,
        writer=writer,
        spool=spool,
        rules=rules,
        builds=KubernetesKanikoBuilds(cluster, place=place),
        python=agent_python(AGENT_ROOT),
        build_registry=reached,
    )


def image_tools(room: ImageRoom | None, placement: Placement) -> ImageTools | None:
    """Join what builds images with where they are started; None where one of both is not there."""
    if room is None or placement.images is None or placement.probe is None:
        return None
    return ImageTools(
        builder=room.builder,
        probe=placement.probe,
        running=placement.images,
        registry=room.registry,
        baselines=room.baselines,
        pushes=room.pushes,
        repository_of=room.repository_of,
        projects=room.projects,
        limits=room.limits,
        secrets=room.secrets,
        signatures=room.signatures,
        signature_policy=room.signature_policy,
        build_timeout=room.build_timeout,
        probe_timeout=room.probe_timeout,
        install_quiet=room.install_quiet,
    )


def _signatures(settings: Settings, registry: Registry) -> ImageSignatures | None:
    file, directory = settings.images_signing_key_file, settings.images_signing_trust_dir
    if file is None and directory is None:
        return None
    try:
        key = None if file is None else PemSigningKey.read(file)
        return ImageSignatures(registry=registry, trusted=PemTrustedKeys.read(directory, own=key), key=key)
    except KeyFileError as error:
        raise SettingsError(f"The settings cannot be used:\n  SANDBOXD_IMAGES_SIGNING_…: {error}") from error
