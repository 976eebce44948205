"""The one place that builds a factory out of the rooms, and the controller's process.

``python -m tokenmill.compose control --dir DIR`` leads the factory in DIR until SIGTERM, SIGINT or
``POST /api/down``. Who starts, awaits and ends such a process is ``floor.controller``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from tokenmill import __version__
from tokenmill.console.api import make_app
from tokenmill.console.context import ApiContext
from tokenmill.domain.errors import MissingExtraError, NotLeaderError, ResourceError, TokenmillError
from tokenmill.floor import procfs
from tokenmill.floor.books import Books
from tokenmill.floor.clock import since_boot_us
from tokenmill.floor.controller import desired_file, left_for_us
from tokenmill.floor.inbox import RuntimeOptions
from tokenmill.floor.line_watch import LineWatch
from tokenmill.floor.load import LoadWatch
from tokenmill.floor.local import LocalFloor
from tokenmill.floor.lock import (
    ControllerFile,
    DirectoryLock,
    home_of,
    read_controller,
    write_controller,
)
from tokenmill.floor.log_lines import log_to
from tokenmill.floor.node import signatures_of
from tokenmill.floor.ports import Floor
from tokenmill.floor.runtime import Runtime
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings, load_settings
from tokenmill.store.opening import Store, open_store
from tokenmill.twin.rehearse import rehearse_plain

log = logging.getLogger("tokenmill.control")

FOLDERS = ("run", "spool", "logs", "jobs", "artifacts")
POLL_S = 0.05
LOCAL = "local"


@dataclass(slots=True)
class Controller:
    """Everything of one controller, built and not yet running."""

    paths: Paths
    settings: Settings
    store: Store
    floor: Floor
    runtime: Runtime
    app: Starlette
    factory_file: Path
    started_us: int


def now_us() -> int:
    return time.time_ns() // 1000


def build_controller(paths: Paths, settings: Settings, factory_file: Path) -> Controller:
    """Open the store and put the parts together; nothing runs yet. Raises ``StoreError``."""
    for folder in FOLDERS:
        (paths.root / folder).mkdir(parents=True, exist_ok=True)
    paths.root.chmod(0o700)  # prompts, keys' digests and the socket are the factory user's alone
    store = open_store(paths.database_url(settings))
    floor = make_floor(paths, settings, factory_file.parent)
    runtime = Runtime(
        store,
        floor,
        Books(store.ledger, paths.spool, floor.energy()),
        LoadWatch(paths.run),
        now_us,
        RuntimeOptions(
            holder=f"{socket.gethostname()}:{paths.root}",
            home=home_of(paths),
            queue_events=settings.queue_events,
            leader_ttl_us=settings.leader_ttl_us,
            snapshot_every=settings.snapshot_every,
            openlineage=settings.openlineage,
            steady_us=since_boot_us,
            sign=signatures_of(paths).sign,
        ),
        LineWatch(factory_file.parent, paths.captures),
    )
    started_us = now_us()
    context = ApiContext(
        runtime=runtime,
        store=store,
        settings=settings,
        paths=paths,
        factory_file=factory_file,
        now_us=now_us,
        started_us=started_us,
        stop=runtime.stop,
        forecast=rehearse_plain,
    )
    return Controller(paths, settings, store, floor, runtime, make_app(context), factory_file, started_us)


def make_floor(paths: Paths, settings: Settings, factory_dir: Path) -> Floor:
    """The floor that the setting names, else that of the last time. Raises ``MissingExtraError``."""
    chosen = settings.floor or last_floor(paths)
    write_atomically(paths.run / "floor", chosen.encode())
    if chosen == LOCAL:
        return LocalFloor(paths, settings, factory_dir, now_us)
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("Ray is not installed", fix="pip install 'tokenmill[ray]'")
    from tokenmill.floor.ray.floor import RayFloor  # only a factory on Ray pays for loading it

    return RayFloor(paths, settings, factory_dir, now_us, chosen)


def last_floor(paths: Paths) -> str:
    """What this factory ran on last; ``local`` when it never ran."""
    path = paths.run / "floor"
    return path.read_text().strip() or LOCAL if path.is_file() else LOCAL


async def serve(controller: Controller) -> None:
    """Lead the factory and answer the admin API until stopped. Raises ``NotLeaderError`` when replaced."""
    runtime = controller.runtime
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.stop)
    api = _ApiServer(
        uvicorn.Config(controller.app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
    )
    listener = listen(controller.paths.control_socket)
    own = controller.paths.control_socket.stat()
    answering = asyncio.create_task(api.serve(sockets=[listener]), name="api")
    announcing = asyncio.create_task(_announce(controller), name="announce")
    try:
        await runtime.run(left_for_us(controller.paths, now_us()))
    except BaseException:
        # Whoever leads now, or will lead, takes over what runs here.
        with contextlib.suppress(Exception):
            await controller.floor.close(stop_all=False)
        raise
    finally:
        announcing.cancel()
        api.should_exit = True
        await asyncio.gather(answering, announcing, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):  # whoever took over may have opened one of its own
            if os.path.samestat(controller.paths.control_socket.stat(), own):
                controller.paths.control_socket.unlink()
        controller.store.close()


class _ApiServer(uvicorn.Server):
    """Leaves signals to us: they stop the factory first, and the API with it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(path: Path) -> socket.socket:
    """Open the admin socket, for this user only. Raises ``ResourceError``."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.parent.stat().st_uid != os.getuid():
        raise ResourceError(f"{path.parent} belongs to another user", expected="a folder of our own")
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ResourceError(f"the admin socket {path} cannot be opened: {error}") from error
    path.chmod(0o600)
    listener.listen(128)
    listener.setblocking(False)
    return listener


async def _announce(controller: Controller) -> None:
    """Write ``run/control.json`` once at the start, and again with the URL when the gateway listens."""
    paths = controller.paths
    own = procfs.stat(os.getpid())
    found = ControllerFile(
        pid=os.getpid(),
        start_time=own.start_time if own else 0,
        started_us=controller.started_us,
        url="",
        factory_file=str(controller.factory_file),
        version=__version__,
    )
    await asyncio.to_thread(write_controller, paths, found)
    await controller.runtime.ready.wait()
    desired_file(paths).unlink(missing_ok=True)
    url = controller.floor.url()
    await asyncio.to_thread(write_controller, paths, replace(found, url=url))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a controller. Returns the exit code of ``domain.errors``; 0 after a clean stop."""
    parser = argparse.ArgumentParser(prog="python -m tokenmill.compose", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    control = verbs.add_parser("control", help="lead the factory of a data directory")
    control.add_argument("--dir", type=Path, required=True, help="the data directory")
    control.add_argument("--factory", type=Path, default=None, help="the factory file it belongs to")
    options = parser.parse_args(argv)
    paths = Paths(options.dir.absolute())
    try:
        settings = load_settings(os.environ)
        lock = DirectoryLock(paths)
        lock.take()
    except TokenmillError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    handler = log_to(paths.log("control"), settings.log_level, settings.log_rotate_bytes)
    try:
        return _lead(paths, settings, options.factory or _last_factory_file(paths))
    finally:
        lock.release()
        handler.close()


def _lead(paths: Paths, settings: Settings, factory_file: Path) -> int:
    controller: Controller | None = None
    try:
        controller = build_controller(paths, settings, factory_file.absolute())
        gc.freeze()  # what was imported lives as long as the process; states are trees that free themselves
        gc.set_threshold(20_000, 20, 50)
        asyncio.run(serve(controller))
    except Exception as error:
        cause = _cause(error)
        if not isinstance(cause, TokenmillError):
            log.exception("the controller failed; engines and gateway go on")
            return 1
        led = controller is not None and controller.runtime.epoch > 0
        replaced = "another controller took over: " if isinstance(cause, NotLeaderError) and led else ""
        log.error("%s%s", replaced, cause)
        sys.stderr.write(f"{cause}\n")
        return cause.exit_code
    log.info("stopped")
    return 0


def _cause(error: Exception) -> Exception:
    """Of a group of tasks that one brought down, what that one failed of; else the error as it is."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _last_factory_file(paths: Paths) -> Path:
    last = read_controller(paths)
    return Path(last.factory_file) if last is not None else paths.root.parent / "factory.yaml"


if __name__ == "__main__":
    sys.exit(main())
