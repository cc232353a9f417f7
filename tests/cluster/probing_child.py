"""A process that probes an image as `serve` does, to be killed in the middle of it.

Usage: python -m tests.cluster.probing_child KUBECONFIG INSTANCE HOME SANDBOX IMAGE SECONDS
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.backends.certificates import CertificateAuthority
from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.images.ports import ImageReference
from sandboxd.kubeapi.client import KubeClient
from sandboxd.model.ids import SandboxId


async def main(kubeconfig: str, instance: str, home: str, sandbox: str, image: str, seconds: str) -> None:
    """Probe it."""
    clock = SystemClock()
    authority = CertificateAuthority.open(Path(home) / "pki", clock=clock)
    service = authority.issue_service()
    connector = GrpcAgentConnector(
        certificate=service.certificate, key=service.key, agent_authority=authority.certificate
    )
    names = Installation(instance=instance, namespace_prefix=f"{instance}-", template=instance)
    async with KubeClient(Path(kubeconfig)) as api:
        backend = KubernetesBackend(api=api, installation=names, place=POD_PLACE, connector=connector, clock=clock)
        following = asyncio.create_task(backend.run())
        await backend.probe.probe(
            SandboxId(sandbox), ImageReference.parse(image), timeout=timedelta(seconds=float(seconds))
        )
        following.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
