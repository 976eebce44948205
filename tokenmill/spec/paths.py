"""The files of a factory's data directory, each named in one place."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tokenmill.spec.settings import Settings

SOCKET_LIMIT = 100  # bytes; the kernel takes 107, and macOS 103
# Not TMPDIR: two shells with different ones must find the same socket. The folder below it is made 0700.
SOCKET_HOME = Path("/tmp")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Paths:
    """Every file of one factory's data directory. Makes none of them."""

    root: Path

    @classmethod
    def of(cls, settings: Settings, factory_file: Path) -> Paths:
        """The directory that the setting names, else ``.tokenmill`` beside the factory file (or in it)."""
        beside = factory_file if factory_file.is_dir() else factory_file.parent
        return cls(Path(settings.data_dir or beside / ".tokenmill").absolute())

    def database_url(self, settings: Settings) -> str:
        return settings.database_url or f"sqlite:///{self.database}"

    @property
    def home(self) -> Path:
        """What this directory is told from all others by, wherever it is moved."""
        return self.root / "home"

    @property
    def database(self) -> Path:
        return self.root / "tokenmill.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def keys(self) -> Path:
        """The key that signs releases, and those that are trusted."""
        return self.root / "keys"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def control_socket(self) -> Path:
        """Below ``SOCKET_HOME`` when the path is too long for a socket."""
        plain = self.run / "control.sock"
        if len(os.fsencode(plain)) <= SOCKET_LIMIT:
            return plain
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return SOCKET_HOME / f"tokenmill-{os.getuid()}" / f"{name}.sock"

    @property
    def control_file(self) -> Path:
        return self.run / "control.json"

    @property
    def table(self) -> Path:
        return self.run / "table.json"

    @property
    def processes(self) -> Path:
        return self.run / "processes"

    def process(self, name: str) -> Path:
        return self.processes / f"{name}.json"

    @property
    def gateway_files(self) -> list[Path]:
        """What each process of the gateway says of itself every second; that of a dead one is old."""
        return sorted(self.run.glob("gateway*.json"))

    def gateway_file(self, index: int = 0) -> Path:
        return self.run / (f"gateway-{index}.json" if index else "gateway.json")

    @property
    def proof(self) -> Path:
        """The word by which the gateway knows the controller, for this user only."""
        return self.run / "proof.key"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    def spool_file(self, number: int, gateway: int = 0) -> Path:
        """A file of what one process of the gateway settles."""
        return self.spool / f"gateway{gateway or ''}-{number}.jsonl"

    @property
    def captures(self) -> Path:
        """Traffic that projects agreed to have kept: a folder per tenant and project."""
        return self.root / "captures"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, name: str) -> Path:
        """Log of ``control``, ``gateway``, or a replica's or job's id."""
        return self.logs / f"{name}.log"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def job(self, job: str) -> Path:
        return self.jobs / job

    def job_file(self, job: str) -> Path:
        return self.job(job) / "job.json"

    def job_pace(self, job: str) -> Path:
        """Says how often the job is to keep a checkpoint; changes while it runs."""
        return self.job(job) / "pace.json"

    def job_progress(self, job: str) -> Path:
        return self.job(job) / "progress.jsonl"

    def job_result(self, job: str) -> Path:
        return self.job(job) / "result.json"

    def job_error(self, job: str) -> Path:
        return self.job(job) / "error.json"

    def job_work(self, job: str) -> Path:
        return self.job(job) / "work"
