"""Entry point of `sandboxctl`."""

from __future__ import annotations

from sandboxd.ctl.app import app


def main() -> None:
    """Run one command line and exit."""
    app(prog_name="sandboxctl")


if __name__ == "__main__":
    main()
