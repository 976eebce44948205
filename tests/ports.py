"""A port for a process that has to be told one."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Free now, and none of those that the kernel gives out by itself: nobody is given it meanwhile."""
    while True:
        port = random.SystemRandom().randint(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
