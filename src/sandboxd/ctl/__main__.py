"""Entry point of `sandboxctl`."""

from __future__ import annotations

import os

from sandboxd.ctl.app import app


def main() -> None:
    """Run one command line and exit."""
    # gRPC's core writes to the terminal when a connection breaks. It looks here when it is imported, which is later.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app(prog_name="sandboxctl")


if __name__ == "__main__":
    main()
