"""A table of text."""

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
        return "\n".join([f"{self.caption}:", "", *("| " + " | ".join(line) + " |" for line in lines)])
