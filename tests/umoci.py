"""umoci as the judge of layers: unpacks a base with a layer on it, by code that has nothing in common with ours.

And buildah as another one: it unpacks as CRI-O and Podman do, each layer by itself.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandboxd.images.ports import WrittenLayer

needs_umoci = pytest.mark.skipif(
    shutil.which("umoci") is None or os.geteuid() != 0,
    reason="needs umoci (Debian: apt-get install umoci) and root, who may give files away",
)


def pack(root: Path) -> bytes:
    """A tree as a base image's layer, by Python's tarfile."""
    out = root.parent / f"{root.name}.tar"
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for directory, directories, files in os.walk(root):
            directories.sort()
            for name in sorted((*directories, *files)):
                path = Path(directory, name)
                member = archive.gettarinfo(path, arcname=str(path.relative_to(root)))
                member.mtime = int(path.lstat().st_mtime // 1)
                member.uname = member.gname = ""
                if member.isreg() or member.isdir():
                    member.pax_headers = {
                        f"SCHILY.xattr.{key}": os.fsdecode(os.getxattr(path, key)) for key in os.listxattr(path)
                    }
                if member.isreg():
                    with path.open("rb") as content:
                        archive.addfile(member, content)
                else:
                    archive.addfile(member)
    data = out.read_bytes()
    out.unlink()
    return data


needs_buildah = pytest.mark.skipif(
    shutil.which("buildah") is None or os.geteuid() != 0,
    reason="needs buildah (Debian: apt-get install buildah) and root",
)
TAR = "application/vnd.oci.image.layer.v1.tar"


@contextmanager
def mounted(base_tar: bytes, layer: WrittenLayer, place: Path) -> Iterator[Path]:
    """Base and compressed layer, unpacked and mounted by buildah.

    Args:
        base_tar: The base's only layer.
        layer: As it was written.
        place: A directory that is made. Buildah takes its path for a name, which has no capital letters and no
            underscore at an end.
    """
    base_id = f"sha256:{hashlib.sha256(base_tar).hexdigest()}"
    layers = [(TAR, base_tar, base_id), (layer.media_type, layer.file.read_bytes(), layer.diff_id)]
    layout = write_layout(layers, place / "layout")
    buildah = ["buildah", "--storage-driver", "vfs", "--root", f"{place}/storage", "--runroot", f"{place}/run"]
    _run(*buildah, "from", "--name", "it", f"oci:{layout}:latest")
    yield Path(_run(*buildah, "mount", "it").strip())
    _run(*buildah, "umount", "it")


def unpack(layers: list[bytes], into: Path) -> Path:
    """Unpack tars, each on the one before; returns the root file system."""
    told = [(TAR, layer, f"sha256:{hashlib.sha256(layer).hexdigest()}") for layer in layers]
    layout = write_layout(told, into / "layout")
    _run("umoci", "raw", "unpack", "--image", f"{layout}:latest", str(into / "rootfs"))
    shutil.rmtree(layout)
    return into / "rootfs"


def write_layout(layers: list[tuple[str, bytes, str]], layout: Path) -> Path:
    """Write an image to a directory, of layers with media type, bytes and the tar's digest."""
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    described = [_put(layout, media_type, data) for media_type, data, _ in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _put(layout, "application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
        "layers": described,
    }
    entry = _put(layout, "application/vnd.oci.image.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return layout


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _put(layout: Path, media_type: str, data: bytes) -> dict[str, Any]:  # Any: it becomes JSON
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
