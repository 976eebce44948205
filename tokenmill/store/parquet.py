"""Rows of a Parquet file as lines of JSON, a bounded number at a time. Does not know what a row means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from tokenmill.domain.errors import DataError, MissingExtraError

BATCH_ROWS = 1024


def parquet_lines(path: Path) -> Iterator[bytes]:
    """Each row as one JSON object. Raises ``DataError`` for a broken file, ``MissingExtraError`` without
    pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            "reading Parquet needs pyarrow", fix="pip install 'tokenmill[parquet]'"
        ) from error
    if not path.is_file():
        raise DataError("there is no such data file", where=str(path), expected="a Parquet file")
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for values in batch.to_pylist():
                    row += 1
                    yield orjson.dumps(values, default=str, option=orjson.OPT_NON_STR_KEYS)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the Parquet file is broken after row {row:,}: {error}",
            where=f"{path}:{row}",
            expected="a whole Parquet file",
        ) from error
