"""``python -m tokenmill.line JOB_DIR``: run one station's job and leave result.json or error.json."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenmill.line.process import run_job

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tokenmill.line JOB_DIR")
    run_job(Path(sys.argv[1]))
