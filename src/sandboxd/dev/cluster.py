"""`sandboxd dev` on a cluster: the template of its pods, the address at which they reach this machine, a certificate.

The gateway listens on the one address of this machine that the cluster's nodes are reached from, by TLS with an
authority of its own; everything else stays on loopback. The operator runs here too, under the installation's name.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.dev.home import write_private
from sandboxd.kubeapi.access import KubeConfigError
from sandboxd.kubeapi.client import KubeClient
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json
from sandboxd.model.cluster import API_VERSION, INSTANCE_LABEL, SERVE_MANAGER, TEMPLATES
from sandboxd.model.errors import SandboxdError
from sandboxd.settings import Settings, SettingsError

SANDBOX_IMAGE: Final = "localhost:5000/sandboxd/sandbox:dev"
AGENT_IMAGE: Final = "localhost:5000/sandboxd/agent:dev"
"""What `make images` pushes for the development cluster."""
CERTIFICATE_DAYS: Final = 30
REGISTRY_TIMEOUT: Final = timedelta(seconds=10)
_LOCAL: Final = "localhost:"


@dataclass(frozen=True, slots=True, kw_only=True)
class DevCluster:
    """What is special where sandboxes are pods."""

    host: str
    """Address of this machine as pods see it."""
    template: str
    certificate: Path
    """The gateway's; it is its own authority."""
    key: Path
    registry: str = ""
    """This machine's registry that the sandbox image is in, as nodes pull from it: what is installed is kept there."""
    signing_key: Path | None = None
    """Signs images that are kept; stays from one run to the next, as they do."""

    def variables(self, settings: Settings, *, gateway_port: int, operator_port: int) -> dict[str, str]:
        """Settings of the roles."""
        family = 128 if ":" in self.host else 32
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {
            "SANDBOXD_BACKEND": "kubernetes",
            **({"SANDBOXD_KUBECONFIG": str(settings.kubeconfig)} if settings.kubeconfig else {}),
            "SANDBOXD_KUBERNETES_INSTANCE": settings.kubernetes_instance,
            "SANDBOXD_KUBERNETES_NAMESPACE": settings.kubernetes_namespace,
            "SANDBOXD_KUBERNETES_NAMESPACE_PREFIX": settings.kubernetes_namespace_prefix,
            "SANDBOXD_KUBERNETES_TEMPLATE": self.template,
            "SANDBOXD_KUBERNETES_ALLOWED_ADDRESSES": f"{self.host}/{family}:{gateway_port},{self.host}/{family}:53",
            "SANDBOXD_OPERATOR_WEB_LISTEN": f"127.0.0.1:{operator_port}",
            "SANDBOXD_GATEWAY_LISTEN": f"{host}:{gateway_port}",
            "SANDBOXD_GATEWAY_URL": f"https://{host}:{gateway_port}",
            "SANDBOXD_GATEWAY_TLS_CERTIFICATE_FILE": str(self.certificate),
            "SANDBOXD_GATEWAY_TLS_KEY_FILE": str(self.key),
            "SANDBOXD_GATEWAY_AUTHORITY_FILE": str(self.certificate),
            **(self._keeping() if not settings.images_registry else {}),
        }

    def _keeping(self) -> dict[str, str]:
        if not self.registry:
            return {}
        return {
            "SANDBOXD_IMAGES_REGISTRY": self.registry,
            "SANDBOXD_IMAGES_REGISTRY_ADDRESS": _own(self.registry),
            "SANDBOXD_IMAGES_REGISTRY_PLAIN": "true",
            **(self._signing() if self.signing_key else {}),
        }

    def _signing(self) -> dict[str, str]:
        return {"SANDBOXD_IMAGES_SIGNING_KEY_FILE": str(self.signing_key), "SANDBOXD_IMAGES_SIGNATURES": "warn"}


async def prepare_cluster(
    settings: Settings, directory: Path, *, environment: Mapping[str, str] = os.environ
) -> DevCluster:
    """Make ready what is needed in the cluster and here.

    Raises:
        SettingsError: There is no cluster, or our resources are not installed in it.
    """
    try:
        async with KubeClient(settings.kubeconfig) as client:
            host = await own_address(client)
            image = await by_digest(environment.get("SANDBOXD_DEV_SANDBOX_IMAGE", SANDBOX_IMAGE))
            template = await _ensure_template(client, settings, environment, image)
            await _ensure_namespace(client, settings)
    except KubeNotFoundError as error:
        raise SettingsError(
            "The cluster does not know the resources of sandboxd: kubectl apply --server-side -f helm/sandboxd/crds "
            f"({error.message})"
        ) from error
    except (KubeConfigError, KubeError) as error:
        raise SettingsError(f"There is no cluster to use: {error}") from error
    certificate, key = directory / "gateway.pem", directory / "gateway.key"
    make_certificate(certificate, key, host)
    registry = image.partition("/")[0] if "@" in image and image.startswith(_LOCAL) else ""
    signing_key = directory / "image-signing.pem" if registry else None
    if signing_key is not None and not signing_key.exists():
        write_private(signing_key, private_pem(ec.generate_private_key(ec.SECP256R1())))
    return DevCluster(
        host=host, template=template, certificate=certificate, key=key, registry=registry, signing_key=signing_key
    )


async def by_digest(image: str) -> str:
    """Name an image of this machine's registry by its digest, as a base of what is kept must be; others stay as given.

    So does one that the registry does not tell of: whoever needs its digest, or the image, says so then.
    """
    place, _, tag = image.rpartition(":")
    registry, _, repository = place.partition("/")
    if "@" in image or not image.startswith(_LOCAL) or not repository:
        return image
    try:
        async with OciRegistry(_own(registry), plain=True) as asked:
            found = await asked.manifest(repository, tag, timeout=REGISTRY_TIMEOUT)
    except SandboxdError:
        return image
    return f"{place}@{found.digest}"


def _own(registry: str) -> str:
    """How this machine reaches a registry that nodes know as `localhost`, which may mean ::1 first."""
    return registry.replace("localhost", "127.0.0.1", 1)


async def own_address(client: KubeClient) -> str:
    """The address from which this machine reaches the cluster's first node: pods find us there."""
    nodes = (await client.get("/api/v1/nodes"))["items"]
    addresses = [
        str(one["address"])
        for node in nodes
        for one in node["status"].get("addresses", ())
        if one["type"] == "InternalIP"
    ]
    if not addresses:
        raise SettingsError("The cluster has no node with an address.")
    family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((addresses[0], 9))  # sends nothing: only the route is asked for
        return str(probe.getsockname()[0])


async def _ensure_template(client: KubeClient, settings: Settings, environment: Mapping[str, str], image: str) -> str:
    """The template that the settings name, if it is there; else one of the installation's own, with the dev images."""
    name = settings.kubernetes_template
    if await _exists(client, f"/apis/{API_VERSION}/{TEMPLATES}/{name}"):
        return name
    name = settings.kubernetes_instance
    body: Json = {
        "apiVersion": API_VERSION,
        "kind": "SandboxTemplate",
        "metadata": {"name": name, "labels": {INSTANCE_LABEL: settings.kubernetes_instance}},
        "spec": {
            "image": image,
            "agentImage": environment.get("SANDBOXD_DEV_AGENT_IMAGE", AGENT_IMAGE),
        },
    }
    path = f"/apis/{API_VERSION}/{TEMPLATES}"
    try:
        await client.create(path, body, field_manager=SERVE_MANAGER)
    except KubeConflictError:
        await client.patch(f"{path}/{name}", {"spec": body["spec"]}, field_manager=SERVE_MANAGER)
    return name


async def _ensure_namespace(client: KubeClient, settings: Settings) -> None:
    name = settings.kubernetes_namespace
    body: Json = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {INSTANCE_LABEL: settings.kubernetes_instance}},
    }
    if not await _exists(client, f"/api/v1/namespaces/{name}"):
        await client.create("/api/v1/namespaces", body, field_manager=SERVE_MANAGER)


async def _exists(client: KubeClient, path: str) -> bool:
    try:
        await client.get(path)
    except KubeNotFoundError as error:
        if error.reason != "NotFound" or "could not find the requested resource" in error.message:
            raise
        return False
    return True


def make_certificate(certificate: Path, key: Path, host: str) -> None:
    """A fresh one for each stack: it is trusted by this stack's sandboxes alone."""
    made, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sandboxd dev gateway")])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .sign(made, hashes.SHA256())
    )
    write_private(key, private_pem(made))
    write_private(certificate, signed.public_bytes(serialization.Encoding.PEM).decode())


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Write a key as keys are read from files: PEM, PKCS #8, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
