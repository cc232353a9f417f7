"""The pinned definitions of VolumeSnapshots (kubernetes-csi/external-snapshotter, Apache-2.0), to test against.

They come with the project's Go module and are not copied into this repository; an installation gets them from there.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sandboxd.dev.node import ToolchainError

MODULE = "github.com/kubernetes-csi/external-snapshotter/client/v8"
VERSION = "v8.6.0"
KINDS = ("volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots")


def ensure_snapshot_definitions() -> Sequence[Path]:
    """Return the definitions' files. Raises ToolchainError where they cannot be had."""
    go = shutil.which("go")
    if go is None:
        raise ToolchainError("There is no Go to fetch the definitions of VolumeSnapshots with.")
    try:
        said = subprocess.run(
            [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"],
            cwd="/",
            capture_output=True,
            timeout=120,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise ToolchainError(f"{MODULE} could not be fetched: {error.stderr.decode(errors='replace')}") from error
    place = Path(json.loads(said.stdout)["Dir"]) / "config" / "crd"
    return [place / f"snapshot.storage.k8s.io_{kind}.yaml" for kind in KINDS]
