"""The steps at which an image can fail to boot, in their order. A closed set: a step is a word that programs act on."""

from __future__ import annotations

from enum import StrEnum


class BootStep(StrEnum):
    """Where the way from a registry to a sandbox that works ends."""

    PULL = "pull"
    """The registry says that it has no such image."""
    UNPACK = "unpack"
    """What it has is no image: it cannot be unpacked, or is for other machines."""
    CONTAINER = "container"
    """The node's runtime cannot make the container, for example because a mount point is a file."""
    AGENT = "agent"
    """The agent ends in it, or never listens."""
    USER = "user"
    """There is no user `gemini` with its ids."""
    MOUNTS = "mounts"
    """Home, workspace or another mount point is not a directory."""
    SHELL = "shell"
    """`/bin/sh` does not run: it, its loader or its libraries are gone or broken."""
    PACKAGES = "packages"
    """dpkg finds packages that are not installed whole."""
    CLI = "cli"
    """Gemini CLI, or the Node that it runs on, does not start."""
    SUDO = "sudo"
    """sudo is there and does not work."""
