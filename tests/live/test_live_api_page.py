"""Every example of docs/api.md, run as it stands against a real factory.

Prints what they print, which is what the page shows; numbers and words of a model differ by machine, so that
only what does not is compared.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from live_bed import LiveFactory

pytestmark = [pytest.mark.live, pytest.mark.model]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
EXAMPLE = re.compile(r"```(python|bash)\n((?:(?!```).)*)```\n```\n((?:(?!```).)*)```\n", re.DOTALL)
RUN = {"python": (sys.executable, "-c"), "bash": ("bash", "-euc")}


def test_every_example_of_the_page_runs(mill: LiveFactory) -> None:
    examples = EXAMPLE.findall(PAGE.read_text())
    assert len(examples) >= 7
    where = {**os.environ, "OPENAI_BASE_URL": mill.url + "/v1", "OPENAI_API_KEY": mill.secret}
    for kind, code, shown in examples:
        command = (*RUN[kind], code)
        done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, code + done.stderr[-2000:]
        print(f"{code}{done.stdout}")  # noqa: T201 - `pytest -s` gives the page's text
        assert done.stdout.count("\n") == shown.count("\n") or kind == "bash", done.stdout
        if '"error"' in shown:
            assert done.stdout.strip() == shown.strip()
