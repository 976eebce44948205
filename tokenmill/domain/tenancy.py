"""What a tenant keeps with us: its files and its batches. All of it belongs to one project of one tenant.

A batch's life: validating, in_progress, finalizing, completed; or failed (its input is wrong), expired (its
window closed) or cancelled. ``BatchCounts.total`` is known once the input has been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Purpose(StrEnum):
    """What a file is for, in OpenAI's words."""

    BATCH = "batch"
    FINE_TUNE = "fine-tune"
    USER_DATA = "user_data"
    BATCH_OUTPUT = "batch_output"
    FINE_TUNE_RESULTS = "fine-tune-results"


UPLOADED = (Purpose.BATCH, Purpose.FINE_TUNE, Purpose.USER_DATA)
"""What a tenant may upload; the others are written by the factory."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose something is. Nothing is ever shown to another owner, not even that it exists."""

    tenant: str
    project: str


@dataclass(frozen=True, slots=True)
class TenantFile:
    """One file. ``digest`` names its bytes in the tenant's own artifacts."""

    id: str
    owner: Owner
    purpose: Purpose
    name: str
    size_bytes: int
    digest: str
    created_us: int
    expires_us: int = 0  # 0 is never


class BatchStatus(StrEnum):
    """Where a batch is. The last four are ends."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (
            BatchStatus.COMPLETED,
            BatchStatus.FAILED,
            BatchStatus.EXPIRED,
            BatchStatus.CANCELLED,
        )


@dataclass(frozen=True, slots=True)
class BatchCounts:
    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class BatchProblem:
    """One thing wrong with an input file. ``line`` counts from 1; 0 is the file as a whole."""

    code: str
    message: str
    line: int = 0
    param: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. ``key`` is the key that created it: its lines are admitted and billed as that key's."""

    id: str
    owner: Owner
    key: str
    endpoint: str  # "/v1/chat/completions"
    input_file: str
    window: str  # "24h"
    created_us: int
    deadline_us: int
    status: BatchStatus = BatchStatus.VALIDATING
    model: str = ""
    output_file: str = ""
    error_file: str = ""
    results_keep_us: int = 0  # how long output files live; 0 is for ever
    counts: BatchCounts = BatchCounts()
    problems: tuple[BatchProblem, ...] = ()
    reached_us: Mapping[str, int] = field(default_factory=dict)  # status -> when it was reached
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchLine:
    """The end of one line of a batch. ``body`` is its line in the output or error file, without newline."""

    number: int  # from 1, as in the input file
    ok: bool
    body: str
