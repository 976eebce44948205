"""Tables on narrow terminals: no number and no word is broken, and what cannot fit becomes records."""

import io

import pytest
from rich.console import Console

from tokenmill.cli.output import add_rows, table

ROWS = [("gb300-nvl72 *", "1,080", "TP1, prefill TP1", "12,345.67", "0.74 s"), ("x", "7", "TP1", "8", "9 s")]
COLUMNS = ("rack", ">accelerators", "layout", ">tokens/s each", ">ttft p99")


def shown(width: int, rows: list[tuple[str, ...]] = ROWS) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(add_rows(table(*COLUMNS), rows, "no racks"))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", range(30, 121, 5))
def test_cells_stay_whole_at_any_width(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for number in ("1,080", "12,345.67", "0.74 s"):
        assert number in text


def test_what_does_not_fit_is_a_record_of_each_row() -> None:
    assert any("accelerators" in line and "tokens/s each" in line for line in shown(100))
    narrow = [line.split(maxsplit=1) for line in shown(40) if line.strip()]
    assert narrow[0] == ["rack", "gb300-nvl72 *"]
    assert ["accelerators", "1,080"] in narrow
    assert len(narrow) == len(ROWS) * len(COLUMNS)


def test_an_empty_table_says_so_at_any_width() -> None:
    for width in (30, 120):
        assert "no racks" in "\n".join(shown(width, []))
