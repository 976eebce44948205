"""The workers of a job: what is written before they start, their command, environment and exit code.

A worker runs below a shell that writes its exit code to a file: after a controller was killed, only this
file can tell the next one how a worker ended. Starts nothing itself.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.effects import StartJob
from tokenmill.domain.errors import DataError
from tokenmill.domain.work import WorkUsage
from tokenmill.floor.machine import device_index
from tokenmill.floor.process import UNKNOWN_CODE, Order
from tokenmill.floor.records import Record
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths

# ``trap :`` lets the shell outlive a SIGTERM to the group, so that it can still write the worker's code.
SHELL = (
    'trap : TERM INT; "$@"; code=$?; file="$TOKENMILL_JOB_EXIT"; '
    'echo "$code" > "$file.tmp" && mv "$file.tmp" "$file"; exit "$code"'
)
NICE = 10
"""Jobs yield to engines: what a client waits for comes first."""


@dataclass(frozen=True, slots=True)
class Share:
    """The workers of a gang that one node runs. ``address`` and ``port`` are where rank 0 is met; port 0 lets
    the node choose."""

    ranks: tuple[int, ...]
    node_rank: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def prepare(paths: Paths, factory_dir: Path, effect: StartJob, now_us: int, share: Share) -> list[Order]:
    """Write ``job.json``, clear what an earlier attempt left, and return one order per worker. Blocks."""
    folder = paths.job(effect.job)
    paths.job_work(effect.job).mkdir(parents=True, exist_ok=True)
    stale = [path for rank in share.ranks for path in folder.glob(f"exit-*-{rank}")]
    if 0 in share.ranks:
        write_pace(paths, effect.job, effect.checkpoint_us)
        stale += [paths.job_result(effect.job), paths.job_error(effect.job)]
    for path in stale:
        path.unlink(missing_ok=True)
    spec = to_plain(effect.spec)
    spec["params"] = {**spec["params"], "factory_dir": str(factory_dir)}
    body = {
        "job": effect.job,
        "attempt": effect.attempt,
        "spec": spec,
        "artifacts": str(paths.artifacts),
        "dir": str(folder),
        "started_us": now_us,
    }
    write_atomically(paths.job_file(effect.job), msgspec.json.encode(body))
    port = share.port
    if not port and (effect.spec.workers > 1 or effect.spec.kind != "station"):
        port = free_port()
    return [_order(paths, effect, rank, share, port) for rank in share.ranks]


def write_pace(paths: Paths, job: str, checkpoint_us: int) -> None:
    """Tell a trainer how often to keep a checkpoint; 0 leaves it to the trainer."""
    if checkpoint_us:
        write_atomically(paths.job_pace(job), msgspec.json.encode({"checkpoint_us": checkpoint_us}))
    else:
        paths.job_pace(job).unlink(missing_ok=True)


def _order(paths: Paths, effect: StartJob, rank: int, share: Share, port: int) -> Order:
    spec = effect.spec
    folder = paths.job(effect.job)
    command = (
        (sys.executable, "-m", "tokenmill.line", str(folder)) if spec.kind == "station" else spec.command
    )
    accelerators = effect.accelerators[rank] if rank < len(effect.accelerators) else ()
    exit_file = folder / f"exit-{effect.attempt}-{rank}"
    name = effect.job if rank == 0 else f"{effect.job}.{rank}"
    environment = {
        "TOKENMILL_JOB_ID": effect.job,
        "TOKENMILL_JOB_DIR": str(folder),
        "TOKENMILL_JOB_ATTEMPT": str(effect.attempt),
        "TOKENMILL_JOB_EXIT": str(exit_file),
        **device_environment(accelerators, spec.resources.cpu_millis),
    }
    if port:
        environment |= torchrun_environment(rank, spec.workers, share, port)
    return Order(
        id=name,
        kind="job",
        argv=("/bin/sh", "-c", SHELL, "sh", *command),
        log=paths.log(name),
        cwd=folder,
        env=environment,
        memory_bytes=spec.resources.memory_bytes,
        cpu_millis=spec.resources.cpu_millis,
        accelerators=accelerators,
        nice=NICE,
        facts={
            "job": effect.job,
            "attempt": effect.attempt,
            "rank": rank,
            "workers": len(share.ranks),
            "station": spec.kind == "station",
            "exit_file": str(exit_file),
        },
    )


def device_environment(accelerators: tuple[str, ...], cpu_millis: int) -> dict[str, str]:
    """Return what shows a process its own GPUs, and no other, and how many threads it may start."""
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(device_index(a) for a in accelerators)}
    if cpu_millis:
        environment["OMP_NUM_THREADS"] = str(max(1, cpu_millis // 1000))
    return environment


def torchrun_environment(rank: int, workers: int, share: Share, port: int) -> dict[str, str]:
    """Return the variables of https://docs.pytorch.org/docs/stable/elastic/run.html for one worker."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(share.ranks.index(rank)),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(len(share.ranks)),
        "GROUP_RANK": str(share.node_rank),
        "NODE_RANK": str(share.node_rank),
        "NNODES": str(share.nodes),
        "MASTER_ADDR": share.address,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return a loopback port that is free now. Somebody may take it before it is used; then the start fails
    and is tried again with another one."""
    return free_ports(1)[0]


def free_ports(count: int) -> tuple[int, ...]:
    """Like ``free_port``: so many different ones."""
    with contextlib.ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in found)


def add_used(paths: Paths, job: str, attempt: int, first: int, usage: WorkUsage) -> WorkUsage:
    """Add what an attempt used before the factory was stopped, and write the sum down for the next time.

    ``first`` is the first rank of the share that used it: the nodes of a gang each keep their own sum.
    """
    path = paths.job(job) / f"used-{attempt}-{first}.json"
    try:
        before = from_plain(msgspec.json.decode(path.read_bytes()), WorkUsage)
    except (OSError, msgspec.DecodeError, DataError):
        before = WorkUsage()
    added = WorkUsage(
        wall_us=before.wall_us + usage.wall_us,
        cpu_us=before.cpu_us + usage.cpu_us,
        peak_memory_bytes=max(before.peak_memory_bytes, usage.peak_memory_bytes),
        accelerator_us=before.accelerator_us + usage.accelerator_us,
        energy_mj=before.energy_mj + usage.energy_mj,
        energy_source=usage.energy_source,
    )
    with contextlib.suppress(OSError):  # a full disk costs the sum of several attempts, not this one's end
        write_atomically(path, msgspec.json.encode(to_plain(added)))
    return added


def total(usages: Iterable[WorkUsage]) -> WorkUsage:
    """Add up what the workers of a gang used; wall time is that of the longest."""
    found = tuple(usages)
    return WorkUsage(
        wall_us=max((u.wall_us for u in found), default=0),
        cpu_us=sum(u.cpu_us for u in found),
        peak_memory_bytes=sum(u.peak_memory_bytes for u in found),
        accelerator_us=sum(u.accelerator_us for u in found),
        energy_mj=sum(u.energy_mj for u in found),
        energy_source=next((u.energy_source for u in found if u.energy_source), ""),
    )


def exit_of(record: Record) -> tuple[int, int]:
    """Return the exit code that a worker's shell wrote down and when, or ``UNKNOWN_CODE`` and 0."""
    path = Path(str(record.facts.get("exit_file", "")))
    try:
        return signal_code(int(path.read_text())), path.stat().st_mtime_ns // 1000
    except (OSError, ValueError):
        return UNKNOWN_CODE, 0


def signal_code(code: int) -> int:
    """Turn a shell's 128 + n back into -n, where n is a signal."""
    return 128 - code if 128 < code < UNKNOWN_CODE and code - 128 in set(signal.Signals) else code
