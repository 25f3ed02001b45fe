"""The claims and what was found: `python -m experiments.report --runs RUNS` makes one page of all
results in a folder.

It reads what experiments.parameters, .viewpoints, .adversarial, .jumble and .equivariance have left
in RUNS (not of `--quick`), and writes report.md, report.html and the pictures. The section of each
claim is in `experiments/claims`; `gather` puts them together.
"""

import dataclasses
import html
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.claims import adversarial, equivariance, jumble, parameters, viewpoints
from experiments.claims.sections import Picture, Section
from experiments.data.npz_files import read_arrays
from experiments.plots.pictures import draw_all
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import RunnerError, UsageError
from experiments.runtime.records import Record, check_folder, read_record, write_atomically
from experiments.runtime.tables import Table

TITLE = "Capsules and the CNN: the claims, put to the test"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 "
    "1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto;font-size:.85em}"
    "th,td{border:1px solid #ccc;padding:.2rem .6rem;text-align:left;white-space:nowrap}"
    "caption{text-align:left;font-weight:600}img{max-width:100%}code{font-size:.85em;overflow-wrap:anywhere}"
)


@dataclasses.dataclass(frozen=True)
class ReportCommand:
    """Make a page of all results."""

    runs: Path = Path("runs/claims")
    """The folder of the results."""
    output: Path | None = None
    """The folder of the page; the default is RUNS/report."""


def read_json(path: Path, *required: str) -> Record:
    """A record. Raises RunnerError unless the file holds one with these fields."""
    record = read_record(path)
    if missing := [name for name in required if name not in record]:
        raise RunnerError(f"{path} is not a record of an experiment: no {missing[0]}")
    return record


def gather(runs: Path) -> list[Section]:
    """All that was found, a section for each claim and data set.

    Raises:
        UsageError: that is nothing, or the seeds of an experiment were asked different things.
        RunnerError: a file is damaged.
    """
    sections = []
    for folder in sorted(path for path in runs.glob("*") if path.is_dir() and path.name != "quick"):
        trained = [
            read_json(path, "model", "test_error")
            | {"network": path.parent.name.rpartition("-")[0]}
            for path in sorted(folder.glob("*/result.json"))
        ]
        if trained:
            sections.append(parameters.section(folder.name, trained))
        for views in sorted(folder.glob("viewpoints-*")):
            if records := read_records(views, "networks", "unmatched"):
                sections.append(
                    viewpoints.section(folder.name, views.name.partition("-")[2], records)
                )
        if records := read_records(folder / "adversarial", "white_box", "black_box"):
            sections.append(
                adversarial.section(folder.name, records, read_examples(folder / "adversarial"))
            )
        if records := read_records(folder / "jumble", "rows", same=("networks", "amounts")):
            sections.append(jumble.section(folder.name, records, read_examples(folder / "jumble")))
        if records := read_records(
            folder / "equivariance", "layers", same=("networks", "num_views")
        ):
            sections.append(
                equivariance.section(folder.name, records, read_examples(folder / "equivariance"))
            )
    if not sections:
        names = ".parameters, .viewpoints, .adversarial, .jumble or .equivariance"
        raise UsageError(f"{runs} holds no results of experiments{names}")
    return sections


def read_records(folder: Path, *required: str, same: Sequence[str] = ()) -> list[Record]:
    """The records of the seeds in a folder.

    Raises:
        UsageError: they differ in one of the fields `same`.
        RunnerError: one is damaged, or lacks a field.
    """
    paths = sorted(folder.glob("seed-*.json"))
    records = [read_json(path, "seed", "seconds", "command", *required, *same) for path in paths]
    for path, record in zip(paths, records, strict=True):
        for name in same:
            if record[name] != records[0][name]:
                raise UsageError(
                    f"{path} cannot be compared with {paths[0]}: {name} {record[name]} and "
                    f"{records[0][name]}"
                )
    return records


def read_examples(folder: Path) -> Any:
    """The arrays beside the first record; None if there are none.

    Raises RunnerError if the file is damaged.
    """
    paths = sorted(folder.glob("seed-*.npz"))
    return read_arrays(paths[0]) if paths else None


def to_markdown(sections: Iterable[Section]) -> str:
    """The page in Markdown."""

    def table(given: Table) -> Iterable[str]:
        return [given.markdown(), ""]

    def picture(given: Picture) -> Iterable[str]:
        return [f"![{given.caption}]({given.name}.png)", "", given.caption, ""]

    return "\n".join(
        page(sections, f"# {TITLE}", "## {}".format, str, table, picture, "- {}".format)
    )


def to_html(sections: Iterable[Section]) -> str:
    """The page in HTML."""

    def cells(kind: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"

    def table(given: Table) -> Iterable[str]:
        rows = [cells("th", given.header), *(cells("td", row) for row in given.rows)]
        return ["<table>", f"<caption>{html.escape(given.caption)}</caption>", *rows, "</table>"]

    def picture(given: Picture) -> Iterable[str]:
        caption = html.escape(given.caption)
        image = f'<img src="{given.name}.png" alt="{caption}"/>'
        return [f"<figure>{image}<figcaption>{caption}</figcaption></figure>"]

    def paragraph(text: str) -> str:
        return f"<p>{html.escape(text)}</p>"

    def source(text: str) -> str:
        command, _, rest = text.strip("`").partition("`")
        return f"<p><code>{html.escape(command)}</code>{html.escape(rest)}</p>"

    heading = lambda text: f"<h2>{html.escape(text)}</h2>"  # noqa: E731
    body = page(
        sections, f"<h1>{html.escape(TITLE)}</h1>", heading, paragraph, table, picture, source
    )
    head = (
        '<head><meta charset="utf-8"/><meta name="viewport" '
        f'content="width=device-width"/><title>{html.escape(TITLE)}</title>'
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f"{head}<style>{STYLE}</style></head><body>",
            *body,
            "</body></html>",
            "",
        ]
    )


def page(
    sections: Iterable[Section],
    title: str,
    heading: Callable[[str], str],
    paragraph: Callable[[str], str],
    table: Callable[[Table], Iterable[str]],
    picture: Callable[[Picture], Iterable[str]],
    source: Callable[[str], str],
) -> list[str]:
    """The lines of the page, its parts written by these functions."""
    lines = [title, ""]
    for section in sections:
        lines += [heading(section.heading), "", paragraph(section.claim), ""]
        for given in section.tables:
            lines += table(given)
        for given in section.pictures:
            lines += picture(given)
        lines += [*map(source, section.sources), ""]
    return lines


def write(sections: Sequence[Section], output: Path) -> None:
    """Write the page, and then its pictures. Raises RunnerError if not all could be drawn."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "report.md", to_markdown(sections))
    write_atomically(output / "report.html", to_html(sections))
    figures = {picture.name: picture.figure for section in sections for picture in section.pictures}
    drawings = {name: lambda figure=figure: figure for name, figure in figures.items()}
    draw_all(output, drawings, dpi=110)


def run(command: ReportCommand, _: str) -> None:
    """Write the page."""
    output = command.output or command.runs / "report"
    check_folder(output)
    write(gather(command.runs), output)
    print(f"wrote {output / 'report.md'} and {output / 'report.html'}")


main = entry_point("experiments.report", ReportCommand, run)

if __name__ == "__main__":
    sys.exit(main())
