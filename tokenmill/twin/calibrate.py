"""Measured rows to a fitted engine model and what it was wrong by.

Rows are CSV: ``decode,prefill,cached,context,seconds`` per iteration. The fit is least squares on relative
errors with no negative coefficient; the stated error is that of rows left out of the fit, one at a time.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from tokenmill.domain.errors import DataError
from tokenmill.twin.engine_model import LinearModel

COLUMNS = ("decode", "prefill", "cached", "context", "seconds")
MIN_ROWS = 8
MAX_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One iteration as it was measured."""

    decode: int
    prefill: int
    cached: int
    context: int
    seconds: float

    @property
    def features(self) -> tuple[float, ...]:
        pairs = self.prefill * (self.context + self.prefill / 2)
        return (1.0, float(self.decode), float(self.cached), float(self.prefill), pairs)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted model with its relative errors on rows that the fit had not seen, sorted by size."""

    name: str
    model: LinearModel
    errors: tuple[float, ...]

    def error_at(self, share: float) -> float:
        """The relative error that ``share`` of the left-out rows stayed within."""
        if not self.errors:
            return math.nan
        return self.errors[min(len(self.errors) - 1, math.ceil(share * len(self.errors)) - 1)]

    @property
    def mean_error(self) -> float:
        return math.fsum(self.errors) / len(self.errors) if self.errors else math.nan


def read_rows(lines: Iterable[str], name: str) -> tuple[MeasuredRow, ...]:
    """Rows of a CSV file; lines that begin with # are comments. Raises ``DataError`` with file and line."""
    rows: list[MeasuredRow] = []
    header: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = next(csv.reader([line.strip()]))
        if header is None:
            header = cells
            if sorted(header) != sorted(COLUMNS):
                raise DataError("the header is not that of measured rows", expected=",".join(COLUMNS),
                                where=f"{name}:{number}")  # fmt: skip
            continue
        rows.append(_row(header, cells, f"{name}:{number}"))
        if len(rows) > MAX_ROWS:
            raise DataError("too many rows", expected=f"at most {MAX_ROWS}", where=f"{name}:{number}")
    return tuple(rows)


def _row(header: list[str], cells: list[str], where: str) -> MeasuredRow:
    try:
        values = dict(zip(header, cells, strict=True))
        decode, prefill, cached, context = (int(values[c]) for c in COLUMNS[:4])
        row = MeasuredRow(decode, prefill, cached, context, float(values["seconds"]))
    except ValueError as error:
        raise DataError(f"the row cannot be read: {error}", expected=",".join(COLUMNS), where=where) from None
    if min(row.decode, row.prefill, row.cached, row.context) < 0 or not 0 < row.seconds < 3600:
        raise DataError("the row holds a negative or impossible value", where=where)
    return row


def fit(name: str, rows: Sequence[MeasuredRow]) -> Calibration:
    """Fit the linear model. Raises ``DataError`` for fewer than eight rows."""
    if len(rows) < MIN_ROWS:
        raise DataError(f"{len(rows)} measured rows are too few", expected=f"at least {MIN_ROWS}")
    errors = []
    for left_out in range(len(rows)):
        model = _fit([row for number, row in enumerate(rows) if number != left_out])
        row = rows[left_out]
        predicted = model.iteration_s(row.decode, row.prefill, row.cached, row.context)
        errors.append(abs(predicted / row.seconds - 1))
    return Calibration(name, _fit(rows), tuple(sorted(errors)))


def _fit(rows: Sequence[MeasuredRow]) -> LinearModel:
    """Non-negative least squares of relative errors over all 31 active sets: exact for five coefficients."""
    best: tuple[float, tuple[float, ...]] | None = None
    size = len(rows[0].features)
    for count in range(1, size + 1):
        for active in itertools.combinations(range(size), count):
            found = _solve(rows, active)
            if found is None or min(found) < 0:
                continue
            weights = [0.0] * size
            for index, value in zip(active, found, strict=True):
                weights[index] = value
            loss = math.fsum((_dot(weights, row.features) / row.seconds - 1) ** 2 for row in rows)
            if best is None or loss < best[0] - 1e-12:
                best = (loss, tuple(weights))
    if best is None:
        raise DataError("no model fits the measured rows", expected="rows of more than one kind")
    return LinearModel(*best[1])


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def _solve(rows: Sequence[MeasuredRow], active: Sequence[int]) -> tuple[float, ...] | None:
    """Normal equations by Gaussian elimination; None when they are singular."""
    scaled = [[row.features[i] / row.seconds for i in active] for row in rows]
    scale = [math.sqrt(math.fsum(line[i] ** 2 for line in scaled)) for i in range(len(active))]
    if 0.0 in scale:
        return None
    unit = [[value / scale[i] for i, value in enumerate(line)] for line in scaled]
    size = len(active)
    matrix = [
        [math.fsum(line[i] * line[j] for line in unit) for j in range(size)]
        + [math.fsum(line[i] for line in unit)]
        for i in range(size)
    ]
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(matrix[r][column]))
        if abs(matrix[pivot][column]) < 1e-10:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        for other in range(size):
            if other != column:
                factor = matrix[other][column] / matrix[column][column]
                matrix[other] = [a - factor * b for a, b in zip(matrix[other], matrix[column], strict=True)]
    return tuple(matrix[i][size] / matrix[i][i] / scale[i] for i in range(size))


def cpu_embedded() -> Calibration | None:
    """The packaged calibration of the embedded engine; None when the package holds no measured rows."""
    source = files("tokenmill.twin").joinpath("cpu_embedded.csv")
    if not source.is_file():
        return None
    rows = read_rows(source.read_text(encoding="utf-8").splitlines(), "cpu_embedded.csv")
    return fit("cpu-embedded", rows) if len(rows) >= MIN_ROWS else None
