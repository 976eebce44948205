"""The gateway's command line. Checks what can be checked before anything is opened."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenmill.domain.errors import UsageError
from tokenmill.gateway.shared import PROCESSES_MOST
from tokenmill.spec.settings import parse_origins

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """Where the gateway listens, what it reads and writes, and every limit that it keeps."""

    table: Path
    spool: Path
    control: Path
    state: Path
    host: str = "127.0.0.1"
    port: int = 8000
    index: int = 0
    processes: int = 1
    tls_cert: str = ""
    tls_key: str = ""
    insecure_bind: bool = False
    allowed_origins: tuple[str, ...] = ()  # whose pages may call from a browser; "*" is any
    drain_s: float = 30.0
    head_bytes: int = 32 * 1024
    body_bytes: int = 64 * MEBIBYTE
    anonymous_body_bytes: int = MEBIBYTE  # without a valid key nobody may make us hold more
    buffered_bytes: int = 256 * MEBIBYTE  # request bodies held at once, all clients together
    connections: int = 4096
    head_s: float = 10.0  # from a request's first byte to the end of its headers
    body_s: float = 30.0  # longest silence inside a body
    idle_s: float = 75.0  # keep-alive without a request
    stalled_s: float = 60.0  # a client that takes no bytes
    first_byte_s: float = 600.0  # an engine that says nothing
    silence_s: float = 300.0  # an engine that stops inside an answer
    connect_s: float = 3.0
    spool_bytes: int = 64 * MEBIBYTE
    free_bytes: int = 16 * MEBIBYTE  # below this much free disk, new requests are refused

    @property
    def meters(self) -> Path:
        """What all processes on this port remember together."""
        return self.state.with_name("meters")

    def sibling(self, index: int) -> Path:
        """The socket on which one of several processes answers the others."""
        return self.control.with_name(f"{self.control.stem}-gateway{index}.sock")

    @property
    def siblings(self) -> tuple[int, ...]:
        """The other processes on this port."""
        return tuple(n for n in range(self.processes) if n != self.index)


def is_loopback(host: str) -> bool:
    """True when only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tokenmill.gateway", description=__doc__)
    parser.add_argument(
        "--table", type=Path, required=True, help="run/table.json, watched for newer versions"
    )
    parser.add_argument("--spool", type=Path, required=True, help="first settlement file, gateway-<n>.jsonl")
    parser.add_argument("--control", type=Path, required=True, help="the controller's unix socket")
    parser.add_argument("--state", type=Path, required=True, help="run/gateway.json, written every second")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port")
    parser.add_argument("--index", type=int, default=0, help="which of several processes on one port this is")
    parser.add_argument("--processes", type=int, default=1, help="how many share the port")
    parser.add_argument("--tls-cert", default="")
    parser.add_argument("--tls-key", default="")
    parser.add_argument("--insecure-bind", action="store_true", help="allow a non-loopback host without TLS")
    parser.add_argument(
        "--allowed-origins",
        type=parse_origins,
        default=(),
        help="whose pages may call from a browser: origins, separated by commas, or *",
    )
    parser.add_argument("--drain-seconds", type=float, default=30.0, dest="drain_s")
    parser.add_argument("--head-seconds", type=float, default=10.0, dest="head_s", help="to whole headers")
    parser.add_argument("--connections", type=int, default=4096, help="clients at once")
    parser.add_argument("--body-bytes", type=int, default=64 * MEBIBYTE, help="largest request body")
    parser.add_argument("--buffered-bytes", type=int, default=256 * MEBIBYTE, help="of all bodies at once")
    parser.add_argument("--spool-bytes", type=int, default=64 * MEBIBYTE, help="of one settlement file")
    return parser


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the command line. Raises ``UsageError`` for what makes no sense together."""
    options = Options(**vars(_parser().parse_args(argv)))
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port} is no port", expected="0 to 65535", fix="Give another port.")
    if bool(options.tls_cert) != bool(options.tls_key):
        raise UsageError(
            "one of --tls-cert and --tls-key is missing", expected="both or none", fix="Give both files."
        )
    if not is_loopback(options.host) and not options.tls_cert and not options.insecure_bind:
        raise UsageError(
            f"{options.host} can be reached from other machines, and there is no TLS",
            expected="a loopback host, or --tls-cert and --tls-key",
            fix="Give a certificate, or say --insecure-bind when TLS ends at a proxy in front.",
        )
    if not 0 <= options.index < options.processes <= PROCESSES_MOST:
        raise UsageError(
            f"--index {options.index} does not fit --processes {options.processes}",
            expected=f"an index from 0 up to processes - 1, and {PROCESSES_MOST} processes at most",
            fix="Number the processes from 0.",
        )
    return options
