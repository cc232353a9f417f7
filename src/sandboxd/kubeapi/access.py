"""How a cluster is reached: a kubeconfig, or the service account of a pod.

Plain kubeconfigs, with certificates or a token, are read here: the library imports hundreds of models of the API with
its reader, three seconds of processor time at each start of a role. Whatever else a kubeconfig has, such as plugins
that are asked for a token, is the library's.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sandboxd.kubeapi.kubeconfig import PlainConfig, read_plain

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubeConfigError(Exception):
    """There is no usable configuration of a cluster; the text says where it was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a cluster is reached."""

    host: str
    ssl: ssl.SSLContext
    headers: Callable[[], Awaitable[Mapping[str, str]]]
    """Prove who asks; asked for at each request, as tokens are renewed."""


async def load_access(kubeconfig: Path | None, *, service_account: Path = SERVICE_ACCOUNT) -> Access:
    """Read how to reach the cluster: this kubeconfig, else the pod's service account, else KUBECONFIG or its default.

    Raises:
        KubeConfigError: None of them can be used.
    """
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _of_service_account(service_account)
    where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    plain = read_plain(kubeconfig)
    if plain is not None:
        return _of_plain(plain, where=f"the cluster's configuration in {where}")
    # All its typed models are imported with it, which takes seconds: not before it is needed, and beside the loop.
    kube_config = await asyncio.to_thread(import_module, "kubernetes_asyncio.config")
    client = import_module("kubernetes_asyncio.client")
    configuration = client.Configuration()
    try:
        await kube_config.load_kube_config(
            config_file=None if kubeconfig is None else str(kubeconfig), client_configuration=configuration
        )
    except (kube_config.ConfigException, OSError, ValueError, TypeError, import_module("yaml").YAMLError) as error:
        raise KubeConfigError(f"the cluster's configuration in {where} cannot be used: {error}") from error

    async def headers() -> Mapping[str, str]:
        return {one["key"]: one["value"] for one in (await configuration.auth_settings()).values()}

    return Access(host=str(configuration.host).rstrip("/"), ssl=_ssl_context(configuration), headers=headers)


def _of_plain(config: PlainConfig, *, where: str) -> Access:
    try:
        context = config.ssl_context()
        config.bearer()
    except (OSError, ValueError) as error:  # errors of TLS are OSErrors
        raise KubeConfigError(f"{where} cannot be used: {error}") from error

    async def headers() -> Mapping[str, str]:
        token = config.bearer()
        return {"authorization": f"Bearer {token}"} if token else {}

    return Access(host=config.server, ssl=context, headers=headers)


def _of_service_account(directory: Path) -> Access:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    config = PlainConfig(
        directory=directory, cluster={"server": server, "certificate-authority": "ca.crt"}, user={"tokenFile": "token"}
    )
    return _of_plain(config, where=f"the service account in {directory}")


def _ssl_context(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    # Authorities made by older tools lack what Python 3.13 demands; they are trusted by the person's own choice.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
