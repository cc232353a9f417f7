"""Local volumes on loop devices: ext4 of a true size, which the kubelet formats and mounts.

Unlike the development cluster's host paths they are full when they are full. Nobody grows them by himself: the storage
driver is played by the test.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sandboxd.model.cluster import INSTANCE_LABEL
from tests.eventually import eventually
from tests.kube import Cluster, Json


@dataclass(kw_only=True)
class LoopVolumes:
    """The class of one test, and its volumes."""

    cluster: Cluster
    instance: str
    directory: Path
    devices: dict[str, str] = field(default_factory=dict)
    """Device of each volume."""
    claims: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Namespace and name of the claim of each volume."""

    @property
    def storage_class(self) -> str:
        """Its name."""
        return f"{self.instance}-loop"

    async def offer(self, claims: Mapping[str, str], *, namespace: str, megabytes: int) -> None:
        """Make a volume for each of these claims, given by volume, and their class, which lets claims grow."""
        node = (await self.cluster.get("nodes"))["items"][0]["metadata"]["labels"]["kubernetes.io/hostname"]
        made: list[Json] = [
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": self.storage_class, "labels": {INSTANCE_LABEL: self.instance}},
                "provisioner": "kubernetes.io/no-provisioner",
                "volumeBindingMode": "WaitForFirstConsumer",
                "allowVolumeExpansion": True,
            }
        ]
        for volume, claim in claims.items():
            self.devices[volume] = self._attach(volume, megabytes)
            self.claims[volume] = (namespace, claim)
            made.append(
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": self.name(volume), "labels": {INSTANCE_LABEL: self.instance}},
                    "spec": {
                        "capacity": {"storage": f"{megabytes}Mi"},
                        "accessModes": ["ReadWriteOnce"],
                        "persistentVolumeReclaimPolicy": "Retain",
                        "storageClassName": self.storage_class,
                        "claimRef": {"namespace": namespace, "name": claim},
                        "local": {"path": self.devices[volume], "fsType": "ext4"},
                        "nodeAffinity": {"required": {"nodeSelectorTerms": [_only(node)]}},
                    },
                }
            )
        await self.cluster.apply(made)

    async def grow(self, volume: str, *, megabytes: int) -> None:
        """Do what a driver that grows volumes offline does, of one that nobody has mounted.

        Online the kernel lets only those grow ext4 who have CAP_SYS_RESOURCE, which not every machine's root has.
        """
        device = self.devices[volume]
        await eventually(lambda: f"{device} " not in Path("/proc/mounts").read_text(), within=60, every=0.2)
        with self._file(volume).open("r+b") as file:
            file.truncate(megabytes << 20)
        _run("losetup", "--set-capacity", device)
        _run("resize2fs", "-f", device)
        size = {"capacity": {"storage": f"{megabytes}Mi"}}
        namespace, claim = self.claims[volume]
        told, spec = (f"-p={json.dumps({part: size})}" for part in ("status", "spec"))
        await self.cluster.kubectl("patch", "pvc", claim, "-n", namespace, "--subresource=status", "--type=merge", told)
        await self.cluster.kubectl("patch", "pv", self.name(volume), "--type=merge", spec)

    def name(self, volume: str) -> str:
        """Of the PersistentVolume."""
        return f"{self.instance}-{volume}"

    def _file(self, volume: str) -> Path:
        return self.directory / f"{volume}.img"

    def _attach(self, volume: str, megabytes: int) -> str:
        with self._file(volume).open("wb") as file:
            file.truncate(megabytes << 20)
        done = subprocess.run(
            ("losetup", "--find", "--show", str(self._file(volume))),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if done.returncode != 0:
            pytest.skip(f"loop devices cannot be had here: {done.stderr.strip()}")
        return done.stdout.strip()


@contextmanager
def loop_volumes(cluster: Cluster, instance: str, directory: Path) -> Iterator[LoopVolumes]:
    """Volumes of a test. To be left when nothing uses them any more."""
    if cluster.places is None:
        pytest.skip("loop devices are made on the development cluster's own node")
    made = LoopVolumes(cluster=cluster, instance=instance, directory=directory)
    try:
        yield made
    finally:
        for device in made.devices.values():
            # Lazily: it goes when the kubelet has unmounted it.
            subprocess.run(("losetup", "--detach", device), capture_output=True, check=False, timeout=30)


def _only(node: str) -> Json:
    return {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True, timeout=30)
