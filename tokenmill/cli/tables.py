"""Tables for people that no narrow terminal breaks: words and numbers stay whole.

Text wraps between words as far as it must. Where that is not enough each row becomes a record, a line for
each of its fields, as psql shows what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

LONGEST_WORD = 20
"""A longer word, such as an address, may be broken before a table becomes records."""

BETWEEN = 3
EDGES = 2


class WholeTable(Table):
    """A table whose columns are right for numbers where their justification is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [[Text.from_markup(str(cell)) for cell in column.cells] for column in self.columns]
        heads = [Text.from_markup(str(column.header)) for column in self.columns]
        widths = self._widths(heads, rows, options.max_width)
        if widths is None:
            yield from _records(heads, rows)
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    def _widths(self, heads: Sequence[Text], rows: Sequence[Sequence[Text]], most: int) -> list[int] | None:
        """Of each column, so that all fit; None when they cannot."""
        wide, least = [], []
        for column, head, cells in zip(self.columns, heads, rows, strict=True):
            words = max((_longest(cell) for cell in cells), default=0)
            longest = max((cell.cell_len for cell in cells), default=0)
            whole = longest if column.justify == "right" else min(words, LONGEST_WORD)
            wide.append(max(longest, head.cell_len))
            least.append(max(whole, min(_longest(head), LONGEST_WORD)))
        over = sum(wide) + BETWEEN * (len(wide) - 1) + EDGES - most
        while over > 0:
            spare, number = max((w - low, -at) for at, (w, low) in enumerate(zip(wide, least, strict=True)))
            if spare <= 0:
                return None
            wide[-number] -= 1
            over -= 1
        return wide


def table(*columns: str, title: str = "") -> WholeTable:
    """An empty table. A column whose name starts with ``>`` is aligned to the right, as numbers are."""
    made = WholeTable(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        pad_edge=False,
        expand=False,
    )
    for column in columns:
        justify = "right" if column.startswith(">") else "left"
        made.add_column(column.removeprefix(">"), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return made


def _longest(text: Text) -> int:
    return max((Text(word).cell_len for word in text.plain.split()), default=0)


def _records(heads: Sequence[Text], columns: Sequence[Sequence[Text]]) -> Iterator[Text]:
    width = max(head.cell_len for head in heads)
    for row in zip(*columns, strict=True):
        yield Text()
        for head, cell in zip(heads, row, strict=True):
            pad = " " * (width - head.cell_len + 2)
            yield Text.assemble(" ", (head.plain, "dim"), pad, cell)
    yield Text()
