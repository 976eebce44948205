"""docs/cli.md says what the commands say."""

from __future__ import annotations

from pathlib import Path

from tokenmill.cli.reference import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "make it anew: python -m tokenmill.cli.reference docs/cli.md"
    )
