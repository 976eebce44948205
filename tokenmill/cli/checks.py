"""What ``tokenmill doctor`` looks at: the machine, the installation, the store. Each look changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tokenmill import __version__
from tokenmill.cli.options import Place
from tokenmill.console.context import read_json
from tokenmill.console.text import size
from tokenmill.domain.errors import TokenmillError
from tokenmill.store.database import Database
from tokenmill.store.migrate import check_revision, head_revision

GIB = 2**30
EXTRAS = {
    "engine": ("xllamacpp", "gguf", "numpy"),
    "ray": ("ray",),
    "tune": ("torch", "peft", "trl", "accelerate", "safetensors"),
    "postgres": ("psycopg",),
    "parquet": ("pyarrow",),
    "gpu": ("pynvml",),
    "s3": ("fsspec", "s3fs"),
    "hub": ("huggingface_hub",),
}
NEEDED_EXTRAS = ("engine", "tune")


@dataclass(frozen=True, slots=True)
class Check:
    """One look. ``status`` is ok, warn or fail."""

    name: str
    status: str
    found: str
    fix: str = ""


def python(_place: Place) -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    found = f"Python {version}, Tokenmill {__version__}, {sys.platform}"
    return [Check("python", "ok" if fine else "fail", found, "" if fine else "Install Python 3.11 or newer.")]


def cores(_place: Place) -> list[Check]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fix = "" if count >= 2 else "Two cores or more keep serving responsive while a line runs."
    return [Check("cores", "ok" if count >= 2 else "warn", f"{count} usable", fix)]


def memory(_place: Place) -> list[Check]:
    found = psutil.virtual_memory()
    status = "ok" if found.available >= 3 * GIB else "warn" if found.available >= GIB else "fail"
    fix = "" if status == "ok" else "Tuning the example needs about 3 GiB; serving it about 1 GiB."
    return [Check("memory", status, f"{size(found.available)} free of {size(found.total)}", fix)]


def disk(place: Place) -> list[Check]:
    folder = next(p for p in (place.paths.root, *place.paths.root.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    status = "ok" if free >= 5 * GIB else "warn" if free >= GIB else "fail"
    fix = "" if status == "ok" else "Free some space, or set TOKENMILL_DATA_DIR to a larger disk."
    checks = [Check("disk", status, f"{size(free)} free at {folder}", fix)]
    if not os.access(folder, os.W_OK):
        checks.append(
            Check("disk", "fail", f"{folder} cannot be written", "Change its owner, or TOKENMILL_DATA_DIR.")
        )
    return checks


def port(place: Place) -> list[Check]:
    host, number = place.settings.host, place.settings.port
    if not number:
        return [Check("port", "ok", "any free one")]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            if _own_gateway(place):
                return [Check("port", "ok", f"{host}:{number} is used by this factory's gateway")]
            fix = "End what listens there, or set TOKENMILL_PORT; 0 takes a free one."
            return [Check("port", "fail", f"{host}:{number} cannot be used: {error.strerror}", fix)]
    return [Check("port", "ok", f"{host}:{number} is free")]


def _own_gateway(place: Place) -> bool:
    """Whether a gateway of this factory lives, perhaps one that waits for its next controller."""
    states = [read_json(path) for path in place.paths.gateway_files]
    return any(
        found.get("port") == place.settings.port and psutil.pid_exists(int(found.get("pid", 0)) or -1)
        for found in states
    )


def extras(_place: Place) -> list[Check]:
    checks = []
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if not missing:
            checks.append(Check(f"extra {extra}", "ok", "installed"))
            continue
        status = "warn" if extra in NEEDED_EXTRAS else "off"
        fix = f"pip install 'tokenmill[{extra}]'"
        checks.append(Check(f"extra {extra}", status, f"not installed: {', '.join(missing)}", fix))
    return checks


def gpu(_place: Place) -> list[Check]:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return [Check("gpu", "off", "none; models run on the CPU")]
    if importlib.util.find_spec("pynvml") is None:
        return [
            Check(
                "gpu", "warn", "a GPU is there, its counters cannot be read", "pip install 'tokenmill[gpu]'"
            )
        ]
    import pynvml  # optional

    try:
        pynvml.nvmlInit()
        names = [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)))
            for i in range(pynvml.nvmlDeviceGetCount())
        ]
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return [Check("gpu", "warn", f"NVML cannot be used: {error}", "Check the driver with nvidia-smi.")]
    return [Check("gpu", "ok", ", ".join(names) or "none")]


def energy(_place: Place) -> list[Check]:
    counters = list(Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj"))
    readable = [path for path in counters if os.access(path, os.R_OK)]
    if readable:
        return [Check("energy", "ok", f"RAPL, {len(readable)} counters")]
    why = "RAPL may not be read by this user" if counters else "this machine has no RAPL counter"
    fix = "Joules are modelled and marked so; TOKENMILL_CPU_ACTIVE_WATTS_PER_CORE sets the model."
    return [Check("energy", "warn", why, fix)]


def cgroup(_place: Place) -> list[Check]:
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        return [Check("cgroup", "off", "version 2 is not mounted; memory limits are watched instead")]
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition(":")[2]
    except OSError:
        own = "/"
    group = root / own.lstrip("/")
    if os.access(group / "cgroup.procs", os.W_OK) and os.access(group, os.W_OK):
        return [Check("cgroup", "ok", f"{group} can be written")]
    return [Check("cgroup", "off", f"{group} is read-only; memory limits are watched instead")]


def store(place: Place) -> list[Check]:
    url = place.paths.database_url(place.settings)
    if not place.settings.database_url and not place.paths.database.exists():
        return [Check("store", "ok", "SQLite; made on the first start")]
    try:
        database = Database(url, wait_s=3.0)
        try:
            with database.read() as connection:
                revision = check_revision(connection, database.where)
        finally:
            database.close()
    except TokenmillError as error:
        return [Check("store", "fail", error.problem.message, error.problem.fix)]
    behind = bool(revision) and revision != head_revision()
    note = f"; revision {revision}, this version writes {head_revision()}" if behind else ""
    return [
        Check(
            "store",
            "warn" if behind else "ok",
            database.where + note,
            "tokenmill store migrate" if behind else "",
        )
    ]


def socket_folder(place: Place) -> list[Check]:
    folder = place.paths.control_socket.parent
    if (
        str(folder).startswith(tempfile.gettempdir())
        and folder.exists()
        and folder.stat().st_uid != os.getuid()
    ):
        return [Check("socket", "fail", f"{folder} belongs to someone else", "Remove it, or set TMPDIR.")]
    return [Check("socket", "ok", str(place.paths.control_socket))]


CHECKS: tuple[Callable[[Place], list[Check]], ...] = (
    python, cores, memory, disk, port, socket_folder, store, extras, gpu, energy, cgroup,
)  # fmt: skip


def all_checks(place: Place) -> list[Check]:
    return [check for look in CHECKS for check in look(place)]
