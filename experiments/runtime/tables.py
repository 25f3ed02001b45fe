"""Tables of text: in Markdown, for files and pages, and in columns, for a terminal."""

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Cells of text.

    Attributes:
        caption: what it shows.
        header: of the columns.
        rows: each as long as the header.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown, below its caption."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([f"{self.caption}:", "", *map(markdown_row, lines)])


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def line(widths: Sequence[int], cells: Sequence[str]) -> str:
    """A row in columns of these widths, which a longer cell exceeds: text on the right of it, or on
    the left if it is negative.

    There may be fewer cells than columns.
    """
    return "".join(
        f"{cell:>{width}}" if width >= 0 else f"{cell:<{-width}}"
        for width, cell in zip(widths, cells, strict=False)
    ).rstrip()


def lines(widths: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns of these widths, one below the other."""
    return "\n".join(line(widths, row) for row in rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length, in columns as wide as their longest cell, text on the left."""
    return lines([-2 - max(map(len, column)) for column in zip(*rows, strict=True)], rows)
