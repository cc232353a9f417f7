"""Images unpacked by umoci: an independent reader of layers, which tests hold ours against."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.oci_images import Image
from tests.rootfs_trees import all_paths

needs_umoci = pytest.mark.skipif(
    shutil.which("umoci") is None or os.geteuid() != 0, reason="needs root and umoci (Debian: apt-get install umoci)"
)


def unpack(image: Image, directory: Path) -> Path:
    """Unpack an image; return its root file system."""
    image.lay_out(directory / "layout")
    return unpack_layout(directory / "layout", directory / "bundle")


def unpack_layout(layout: Path, bundle: Path, *, tag: str = "latest") -> Path:
    """Unpack an image of a layout; return its root file system."""
    made = subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return bundle / "rootfs"


def contents_of(root: Path) -> dict[bytes, bytes]:
    """SHA-256 of every regular file, by path."""
    found = {}
    for path in all_paths(root):
        place = Path(os.fsdecode(os.fsencode(root) + b"/" + path))
        if place.is_file() and not place.is_symlink():
            with place.open("rb") as file:
                found[path] = hashlib.file_digest(file, "sha256").digest()
    return found


def xattrs_of(root: Path) -> dict[bytes, dict[bytes, bytes]]:
    """Extended attributes of whatever has some and is no link, by path."""
    found = {}
    for path in all_paths(root):
        place = os.fsencode(root) + b"/" + path
        names = os.listxattr(place, follow_symlinks=False)
        if names:
            found[path] = {os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in names}
    return found
