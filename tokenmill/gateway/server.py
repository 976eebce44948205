"""The gateway process: listen, tick, and on SIGTERM finish what is open, settle it and exit 0."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import ssl
import sys
from collections.abc import Sequence

import uvloop

from tokenmill.domain.errors import ResourceError, TokenmillError
from tokenmill.gateway.edge import Gateway, clock
from tokenmill.gateway.endings import give_back
from tokenmill.gateway.health import write_state
from tokenmill.gateway.options import Options, parse
from tokenmill.gateway.probe import Prober
from tokenmill.gateway.routes import dispatch, dispatch_shared
from tokenmill.gateway.shared import PROCESSES_MOST
from tokenmill.gateway.spool import Spool

TICK_S = 0.1
SETTLE_S = 3.0  # for counting cut streams after the drain
BACKLOG = 2048

log = logging.getLogger("tokenmill.gateway")


class Server:
    """One listening gateway. ``start``, then ``stop`` or ``serve`` until a signal."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.gateway: Gateway | None = None
        self._listener: asyncio.Server | None = None
        self._inside: asyncio.Server | None = None  # for the other processes on this port
        self._ticker: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def start(self) -> Gateway:
        """Open the spool, read the table, listen. Raises ``ResourceError`` when the port is taken."""
        options = self.options
        context = _tls(options)
        spool = Spool(
            options.spool,
            rotate_bytes=options.spool_bytes,
            free_bytes=options.free_bytes,
            siblings=_siblings(options),
        )
        route = dispatch_shared if options.allowed_origins else dispatch
        gateway = self.gateway = Gateway(options, asyncio.get_running_loop(), spool, route)
        self._take_over(gateway)
        try:
            if options.processes > 1:
                sibling = options.sibling(options.index)
                sibling.unlink(missing_ok=True)
                self._inside = await gateway.loop.create_unix_server(gateway.sibling, str(sibling))
                sibling.chmod(0o600)
            self._listener = await gateway.loop.create_server(
                gateway.client,
                options.host,
                options.port,
                ssl=context,
                backlog=BACKLOG,
                reuse_port=options.processes > 1,
            )
        except OSError as error:
            spool.close()
            raise ResourceError(
                f"{options.host}:{options.port} cannot be listened on: {error.strerror or error}",
                expected="a free port",
                fix="Stop what uses it (`ss -ltnp`), or choose another port.",
            ) from error
        gateway.port = self._listener.sockets[0].getsockname()[1]
        write_state(gateway, options.state)
        self._ticker = gateway.loop.create_task(self._tick(gateway))
        log.info("listening on %s:%d", options.host, gateway.port)
        return gateway

    def _take_over(self, gateway: Gateway) -> None:
        """Settle what an earlier life left open, and give back what it had reserved."""
        now_us, options = clock(), self.options
        gone = range(options.processes, PROCESSES_MOST) if options.index == 0 else ()
        gateway.shared.clear_open((options.index, *gone))
        left = gateway.spool.start(now_us)
        if left:
            log.warning("settled %d requests as interrupted, which an earlier gateway left open", len(left))
        gateway.poll_table()
        gateway.clock_set_back()  # it may have been while no gateway ran
        with gateway.shared:
            for opened in left:
                gateway.memory = give_back(gateway.serving.index, gateway.memory, opened, now_us)

    async def serve(self) -> None:
        """Start, wait for SIGTERM or SIGINT, stop. A second signal ends the drain at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):  # before the state file says that it is there
            loop.add_signal_handler(number, self.ask_to_stop)
        await self.start()
        await self._stop.wait()
        await self.stop()

    def ask_to_stop(self) -> None:
        """What a signal does."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def stop(self) -> None:
        """Admit nothing more, finish streams up to the deadline, settle everything, flush the spool. Once."""
        gateway, self.gateway = self.gateway, None
        if gateway is None:
            return
        gateway.draining = True
        for listener in (self._listener, self._inside):
            if listener is not None:
                listener.close()
        log.info("draining %d open requests", len(gateway.exchanges))
        await self._drained(gateway, self.options.drain_s)
        for exchange in list(gateway.exchanges):
            if not exchange.settling:
                exchange.interrupt()
        self._hurry.clear()
        await self._drained(gateway, SETTLE_S)
        for exchange in list(gateway.exchanges):
            exchange.interrupt()
        if self._ticker is not None:
            self._ticker.cancel()
        await self._hang_up(gateway)
        gateway.captures.close()
        gateway.spool.close()
        if gateway.spool.waiting:
            log.error("%d settlements could not be written: %s", gateway.spool.waiting, gateway.spool.problem)
        write_state(gateway, self.options.state)
        gateway.close_memory()
        log.info("stopped")

    async def _hang_up(self, gateway: Gateway) -> None:
        """Close what is left, giving written answers a moment to go out."""
        await asyncio.sleep(0)
        for connection in list(gateway.connections):
            connection.close()
        gateway.pool.close()
        for _ in range(10):
            if not gateway.connections:
                break
            await asyncio.sleep(0.02)
        for connection in list(gateway.connections):
            connection.abort()

    async def _drained(self, gateway: Gateway, limit_s: float) -> None:
        deadline = gateway.loop.time() + limit_s
        while gateway.exchanges and gateway.loop.time() < deadline and not self._hurry.is_set():
            for connection in list(gateway.connections):
                connection.sweep(gateway.loop.time())
            await asyncio.sleep(0.02)

    async def _tick(self, gateway: Gateway) -> None:
        """Ten times a second: the table and probes; once a second: limits, the disk. The state file is
        written once a second, and with a new table at once: somebody waits until all know it."""
        prober = Prober(gateway)
        count = 0
        due = gateway.loop.time()
        while True:
            due = max(due + TICK_S, gateway.loop.time())
            await asyncio.sleep(due - gateway.loop.time())
            gateway.loop_lag_s = max(gateway.loop.time() - due, gateway.loop_lag_s * 0.9)
            newer = gateway.poll_table()
            prober.look()
            count += 1
            if count % 10 == 0:
                gateway.sweep()
            if newer or count % 10 == 0:
                write_state(gateway, self.options.state)


def _siblings(options: Options) -> frozenset[str] | None:
    """The spools of the other processes, for the one that looks after what is nobody's."""
    if options.index != 0:
        return None
    stem = options.spool.stem.rpartition("-")[0]
    return frozenset(f"{stem}{number}" for number in options.siblings)


def _tls(options: Options) -> ssl.SSLContext | None:
    if not options.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ResourceError(
            f"the certificate cannot be used: {error}",
            expected="a PEM certificate chain and its key",
            fix="Check --tls-cert and --tls-key.",
            where=options.tls_cert,
        ) from error
    return context


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal. Returns the exit code: 0 after a drain, 13 when the port or disk is not ours."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        options = parse(argv)
        gc.freeze()  # what was imported lives as long as the process: never walk it again
        gc.set_threshold(20_000, 20, 50)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Server(options).serve())
    except TokenmillError as error:
        log.error("%s", error)
        return error.exit_code
    return 0
