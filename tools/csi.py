"""Storage that makes snapshots, to test against: `python -m tools.csi` builds it.

Real are csi-provisioner, csi-snapshotter and snapshot-controller (kubernetes-csi, Apache-2.0), from their Go modules at
the versions of `devcluster/csi/go.mod`; the driver behind them is ours, in the same place. csi-driver-host-path, which
could be in its stead, is no module that the Go module proxy has.
"""

import sys
from pathlib import Path
from typing import Final

from sandboxd.dev.node import ToolchainError
from tools.go_tool import ensure_own_go_programs, found_own_go_programs

SOURCE: Final = Path(__file__).resolve().parent.parent / "devcluster" / "csi"
KUBERNETES_CSI: Final = "github.com/kubernetes-csi"
PACKAGES: Final = (
    ".",
    f"{KUBERNETES_CSI}/external-provisioner/v6/cmd/csi-provisioner",
    f"{KUBERNETES_CSI}/external-snapshotter/v8/cmd/csi-snapshotter",
    f"{KUBERNETES_CSI}/external-snapshotter/v8/cmd/snapshot-controller",
)


def ensure_csi() -> Path:
    """Return the directory of `csi` (our driver), `csi-provisioner`, `csi-snapshotter` and `snapshot-controller`.

    Raises:
        ToolchainError: There is no Go, or the build failed.
    """
    return ensure_own_go_programs(SOURCE, PACKAGES)


def found_csi() -> Path | None:
    """Return that directory where it is built already."""
    return found_own_go_programs(SOURCE, PACKAGES)


if __name__ == "__main__":
    try:
        print(ensure_csi())
    except ToolchainError as error:
        sys.exit(str(error))
