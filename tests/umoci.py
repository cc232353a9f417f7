"""umoci as the judge of layers: unpacks a base with a layer on it, by code that has nothing in common with ours."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

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


def unpack(layers: list[bytes], into: Path) -> Path:
    """Unpack tars, each on the one before; returns the root file system."""
    layout = into / "layout"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    described = [_put(layout, "application/vnd.oci.image.layer.v1.tar", layer) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in described]},
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
    done = subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:latest", into / "rootfs"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(layout)
    return into / "rootfs"


def _put(layout: Path, media_type: str, data: bytes) -> dict[str, Any]:  # Any: it becomes JSON
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
