"""Packages that tests install in a sandbox's pod, with root's rights and without a network."""

from __future__ import annotations

from typing import Final

from sandboxd.v1 import sandbox_pb2
from tests.cluster.stack import ClusterStack

INSTALL: Final = r"""set -e
cd "$(mktemp -d)"
mkdir -p "$1/DEBIAN" "$1/usr/bin" "$1/var/log/$1"
printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: T <t@example.test>\nDescription: test\n' "$1" \
  > "$1/DEBIAN/control"
printf '#!/bin/sh\necho %s\n' "$1" > "$1/usr/bin/$1"
chmod 755 "$1/usr/bin/$1"
dpkg-deb --root-owner-group --build "$1" > /dev/null
dpkg --install "$1.deb" > /dev/null
"""


def an_install(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox, package: str) -> None:
    """Install a package of that name, with a program that says it."""
    stack.inside(sandbox, "sh", "-c", INSTALL, "sh", package)
