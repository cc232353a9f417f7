"""Ports for servers that are started, ended and started again at the same address."""

from __future__ import annotations

import random
import socket
from contextlib import closing, suppress
from typing import Final

PORTS: Final = range(20_000, 32_000)
"""Below those that the kernel gives to connections (32768 and up on Linux): while a server is away, no connection of
anybody can take its port by chance."""


def a_free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    for port in random.sample(PORTS, 200):
        with closing(socket.socket()) as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
