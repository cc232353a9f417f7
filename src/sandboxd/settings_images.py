"""Settings of images that are kept: the registry, where layers are written, and what becomes part of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from sandboxd.images.ports import ImageLimits, SecretPolicy
from sandboxd.images.signing import SignaturePolicy
from sandboxd.model.image_keeping import KeepingPolicy
from sandboxd.model.replay import ReplayPolicy
from sandboxd.model.sandbox import Tier

_GB: Final = 10**9
_GIB: Final = 1 << 30
_REGISTRY: Final = r"^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?)?$"
_CRON: Final = r"^$|^[0-9A-Za-z*/,?-]+( [0-9A-Za-z*/,?-]+){5}$"
_PREFIX: Final = r"^([a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*)?$"


class ImageSettings(BaseSettings):
    """How root file systems are kept. A part of `Settings`."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    images_registry: str = Field(default="", pattern=_REGISTRY, max_length=253)
    """Registry where images of sandboxes are kept, `host` or `host:port` as nodes pull from it. Base images must be in
    it, too. If empty nothing is kept, and Commit says so."""
    images_registry_address: str = Field(default="", pattern=_REGISTRY, max_length=253)
    """How sandboxd itself reaches that registry, where that is another address; `images_registry` if empty."""
    images_registry_kind: Literal["distribution", "harbor"] = "distribution"
    """What it speaks: OCI distribution, as every registry does, or Harbor's API beside it; then each client has a
    project with a quota and an account of its own. docs/images-kept.md says which rights the account needs."""
    images_harbor_project_bytes: int = Field(default=0, ge=-1)
    """With Harbor: quota of each client's project, in bytes; -1 for none, 0 leaves what Harbor gives by itself."""
    images_harbor_untagged_days: int = Field(default=7, ge=0, le=3650)
    """With Harbor: after how many days it removes by itself what has no tag, the leftovers of builds; 0 for never."""
    images_harbor_account_days: int = Field(default=90, ge=3, le=3650)
    """With Harbor: how long an account that pulls a client's images is good for. It is replaced before."""
    images_harbor_gc_schedule: str = Field(default="", pattern=_CRON, max_length=100)
    """With Harbor: when it collects its garbage, as its six fields of cron (`0 0 4 * * 0`: Sundays at 4), where it has
    no schedule; another one is left alone and told. It is the whole Harbor's; empty leaves it to its administrator."""
    images_registry_plain: bool = False
    """Speak HTTP without TLS with it. With a password only on loopback."""
    images_registry_authority_file: Path | None = None
    """PEM authorities that may vouch for it; the system's if empty."""
    images_registry_user: str = Field(default="", max_length=255)
    """Account at the registry, which may push below `images_repository_prefix` and pull base images."""
    images_registry_password: SecretStr | None = None
    """Its password or token."""
    images_repository_prefix: str = Field(default="", pattern=_PREFIX, max_length=200)
    """What repositories of kept images begin with: `sandboxes` gives
    `sandboxes/<client>/gemini-cli-user-<freelancer>`, or with Harbor the projects `sandboxes-<client>`."""
    images_builder: Literal["registry", "kaniko"] = "registry"
    """How an image is made of base and difference: `registry` appends one layer on the registry, `kaniko` applies the
    difference in a Job in the cluster, which pushes what it finds. docs/images-kept.md says what that costs."""
    images_kaniko_namespace: str = Field(default="", max_length=63)
    """Namespace of the Jobs of kaniko, where nothing else is."""
    images_kaniko_image: str = Field(default="", max_length=512)
    """Image with kaniko's executor, as `make images IMAGES_ARGS=kaniko` makes it."""
    images_kaniko_agent_image: str = Field(default="", max_length=512)
    """Image of the agent, whose interpreter applies the difference in those Jobs."""
    images_kaniko_secret: str = Field(default="", max_length=253)
    """Secret of that namespace, of the type `kubernetes.io/dockerconfigjson`, whose account pulls bases and pushes
    images; with an entry `ca.crt` where `images_registry_authority_file` is set. None if empty."""
    images_kaniko_registry: str = Field(default="", pattern=_REGISTRY, max_length=253)
    """How pods reach the registry, where that is another address than for nodes; `images_registry` if empty."""
    images_kaniko_host_users: bool = False
    """Run those Jobs without a user namespace, for nodes that have none: root in them is then root of the node, but
    for its capabilities."""
    images_architecture: Literal["amd64", "arm64"] = "amd64"
    """Of the nodes for sandboxes: which image of an index is their base."""
    images_compression: Literal["zstd", "gzip"] = "zstd"
    """Of layers. gzip takes five times as long, and is for nodes or registries that know no zstd."""
    images_secrets: SecretPolicy = SecretPolicy.STRIP
    """What happens with files in which keys or tokens are found: `strip` leaves them out, `refuse` keeps nothing until
    they are gone, `keep` only names them."""
    images_layer_bytes_basic: int = Field(default=5 * _GB, ge=0)
    """How much a sandbox of the tier basic may change of its root file system and still be committed, in bytes."""
    images_layer_bytes_standard: int = Field(default=10 * _GB, ge=0)
    """The same of the tier standard."""
    images_layer_bytes_premium: int = Field(default=20 * _GB, ge=0)
    """The same of the tier premium."""
    images_layer_entries: int = Field(default=300_000, ge=1, le=5_000_000)
    """Most files, directories and links of a layer."""
    images_workers: int = Field(default=2, ge=1, le=64)
    """Layers that this process writes at once; more commits wait."""
    images_build_seconds: float = Field(default=1800, gt=0, le=86_400)
    """Longest time from the beginning of a capture until the registry has the image."""
    images_probe_seconds: float = Field(default=120, gt=0, le=3600)
    """Longest time for a new image's first boot."""
    images_install_seconds: float = Field(default=180, ge=0, le=86_400)
    """How long after an install a sandbox is committed that nobody has used since, while it goes on; 0 leaves that to
    its next rest."""
    images_spool_dir: Path | None = None
    """Where layers are written before they are pushed; `images/spool` in the data directory if empty."""
    images_spool_bytes: int = Field(default=20 * _GIB, ge=1 << 20)
    """Most of all layers in it together."""
    images_spool_free_bytes: int = Field(default=_GIB, ge=0)
    """With less room in its file system no layer is written, and one that is being written is given up."""
    images_cache_dir: Path | None = None
    """Where the entries of base images are kept, some 10 MB for 300,000 files; `images/bases` in the data directory if
    empty. Several replicas may share it."""
    images_cache_bytes: int = Field(default=_GIB, ge=0)
    """Most of them together; those go that were not used for longest."""

    images_signing_key_file: Path | None = None
    """PEM file with the private key that signs images, ECDSA on P-256 or Ed25519 and without a password, the same for
    all replicas; nothing is signed if empty."""
    images_signing_trust_dir: Path | None = None
    """Directory of further public keys whose signatures count, `*.pem` each: a former key of ours, for example."""
    images_signatures: SignaturePolicy = SignaturePolicy.NEVER
    """What a start does about the signature of a sandbox's own image: `never` does nothing, `warn` logs and counts what
    it finds, `require` starts none that no trusted key has signed; then a commit whose image cannot be signed fails."""

    images_care_seconds: float = Field(default=3600, ge=0, le=604_800)
    """How often images that are needed no more are removed, by one replica; 0 leaves that to `sandboxctl admin sweep
    images`."""
    images_upgrade_bases: Literal["off", "fail", "skip"] = "off"
    """Whether images of resting sandboxes move to the template's image by themselves when that is another: `off`;
    `fail`, unless something would be lost; `skip` leaves out what cannot be made again, and names it."""
    images_kept_previous: int = Field(default=2, ge=0, le=100)
    """Images of each sandbox that are kept beside the active one, to roll back to."""
    images_grace_seconds: float = Field(default=86_400, ge=0, le=31_536_000)
    """How long an image stays after something named it last, and what no row knows of after it was found."""

    @property
    def base_upgrades(self) -> ReplayPolicy | None:
        """What happens in upgrades that nobody asked for; None where there are none."""
        return None if self.images_upgrade_bases == "off" else ReplayPolicy(self.images_upgrade_bases)

    @property
    def image_keeping(self) -> KeepingPolicy:
        """Which images are kept."""
        return KeepingPolicy(previous=self.images_kept_previous, grace=timedelta(seconds=self.images_grace_seconds))

    @property
    def image_limits(self) -> Mapping[Tier, ImageLimits]:
        """How large a layer may be, by tier."""
        most = {
            Tier.BASIC: self.images_layer_bytes_basic,
            Tier.STANDARD: self.images_layer_bytes_standard,
            Tier.PREMIUM: self.images_layer_bytes_premium,
        }
        return {
            tier: ImageLimits(raw_bytes=size, compressed_bytes=size, entries=self.images_layer_entries)
            for tier, size in most.items()
        }

    @property
    def image_build_timeout(self) -> timedelta:
        """Longest time of a build."""
        return timedelta(seconds=self.images_build_seconds)

    @property
    def image_install_quiet(self) -> timedelta | None:
        """How long after an install a sandbox is committed; None if never."""
        return timedelta(seconds=self.images_install_seconds) if self.images_install_seconds else None

    @property
    def image_probe_timeout(self) -> timedelta:
        """Longest time of a probe."""
        return timedelta(seconds=self.images_probe_seconds)
