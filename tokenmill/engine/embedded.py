"""The embedded engine: llama.cpp's server in one process of ours, for chat (GGUF) and for embeddings.

``python -m tokenmill.engine.embedded --weights X.gguf --alias NAME --port P`` serves until SIGTERM. It checks
no digest and no key, which are the floor's and the gateway's tasks, so it listens on a loopback address only.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import (
    CorruptWeightsError,
    EngineError,
    MissingExtraError,
    ResourceError,
    TokenmillError,
    UsageError,
)
from tokenmill.engine import environment
from tokenmill.engine.template import template_of, with_tools

BATCH_TOKENS = 512  # tokens of one decode call: larger ones gain nothing on CPUs and cost buffers
# llama.cpp's HTTP server keeps a thread for each open connection, idle ones too; with too few of them a
# health check waits behind the gateway's connection pool.
HTTP_THREADS_MIN = 32
EMBEDDING_BATCH_CONTEXTS = 4
ERRORS_ONLY = 1  # llama.cpp's verbosity


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """What to serve and with how much. ``context_tokens`` is for each of the ``slots`` requests."""

    weights: Path
    alias: str
    lora: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0  # 0 lets the system choose
    slots: int = 4
    context_tokens: int = 2048
    threads: int = 0  # 0 is all cores that this process may use
    embedding: bool = False


def open_server(options: EmbeddedOptions) -> Any:
    """Load the weights and listen. Returns xllamacpp's ``Server``; it closes when the last reference goes.

    Raises ``MissingExtraError`` without the ``engine`` extra, ``CorruptWeightsError`` for files that cannot
    be loaded, ``UsageError`` for an address that is not loopback and ``ResourceError`` for a port that is
    taken.
    """
    environment.prepare()
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError(
            "the embedded engine is not installed", fix="pip install 'tokenmill[engine]'"
        ) from error
    if not ipaddress.ip_address(options.host).is_loopback:
        raise UsageError(
            f"the embedded engine would listen on {options.host}, where anybody could use it without a key",
            expected="a loopback address; clients come through the gateway",
        )
    for path in (options.weights, options.lora):
        if path is not None:
            _check_gguf(path)
    try:
        return xllamacpp.Server(_parameters(xllamacpp, options))
    except RuntimeError as error:
        if options.port and _taken(options.host, options.port):
            raise ResourceError(
                f"port {options.port} on {options.host} is taken", fix="Choose another port."
            ) from error
        adapter = f" with the adapter {options.lora}" if options.lora else ""
        raise CorruptWeightsError(
            f"llama.cpp could not load {options.weights}{adapter}: {error}",
            expected="a whole GGUF model of an architecture that llama.cpp knows, and memory for its context",
            fix="Import the model again; or lower context_tokens and slots if memory was short.",
        ) from error


def address_of(server: Any) -> str:
    """``http://host:port`` where an open server listens."""
    return str(server.listening_address)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parameters(xllamacpp: Any, options: EmbeddedOptions) -> Any:
    threads = options.threads or usable_cores()
    p = xllamacpp.CommonParams()
    p.model.path = str(options.weights)
    p.model_alias = {options.alias}
    if options.lora is not None:
        p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(options.lora), 1.0)]
    p.hostnames = [options.host]
    p.port = options.port
    p.n_parallel = options.slots
    p.n_ctx = options.slots * options.context_tokens
    p.n_batch = BATCH_TOKENS
    p.n_ubatch = BATCH_TOKENS
    p.cpuparams.n_threads = threads
    p.cpuparams_batch.n_threads = threads
    p.cpuparams.poll = p.cpuparams_batch.poll = 0  # idle threads sleep: the cores are shared with jobs
    p.n_threads_http = max(HTTP_THREADS_MIN, 4 * options.slots)
    p.n_gpu_layers = 0
    p.fit_params = False  # it would change the context that was asked for
    p.cache_ram_mib = 0  # prompts stay cached in their slots; a second copy in memory is not worth it
    p.n_ctx_checkpoints = 0
    p.ctx_shift = False  # a request that is too long is refused, not silently cut
    p.use_jinja = True  # chat templates and tools
    if not options.embedding:
        p.chat_template = with_tools(template_of(options.weights))
    p.endpoint_metrics = True
    p.endpoint_slots = False  # would show one client's prompt to another
    p.endpoint_props = False
    p.ui = False
    p.offline = True
    p.verbosity = ERRORS_ONLY
    if options.embedding:
        p.embedding = True
        # Inputs longer than a batch are the server's fault (500) to llama.cpp, longer than the context the
        # client's (400). So the batch is larger, and inputs that clients really send meet the context first.
        p.n_batch = p.n_ubatch = EMBEDDING_BATCH_CONTEXTS * options.context_tokens
        p.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return p


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}", expected="a GGUF file") from error
    if magic != b"GGUF":
        raise CorruptWeightsError(
            f"{path} is not a GGUF file", expected="a file that starts with the letters GGUF"
        )


def _taken(host: str, port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def _parse(argv: Sequence[str]) -> EmbeddedOptions:
    parser = argparse.ArgumentParser(prog="python -m tokenmill.engine.embedded", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="GGUF model file")
    parser.add_argument("--lora", type=Path, default=None, help="GGUF LoRA adapter file")
    parser.add_argument("--alias", required=True, help="name of the model in answers")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--slots", type=int, default=4, help="requests decoded together")
    parser.add_argument(
        "--context", type=int, default=2048, dest="context_tokens", help="tokens of one request"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 is all cores")
    parser.add_argument(
        "--embedding", action="store_true", help="serve embeddings (mean of tokens, length 1)"
    )
    return EmbeddedOptions(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code of the error when it cannot."""
    ending = {signal.SIGTERM, signal.SIGINT}
    # Blocked before llama.cpp starts its threads, which inherit this: the signal then reaches sigwait only.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        server = open_server(_parse(sys.argv[1:] if argv is None else argv))
    except TokenmillError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"listening on {address_of(server)}\n")
    sys.stderr.flush()
    signal.sigwait(ending)
    # Requests were drained by the gateway. Unwinding llama.cpp's threads would only make the exit slow.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
