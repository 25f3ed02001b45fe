"""The claims and what was found: `python -m experiments.report --runs RUNS` makes one page of all
results in a folder.

It reads what experiments.parameters, .toys, .viewpoints, .adversarial, .jumble and .equivariance
have left in RUNS (not of `--quick`), and writes report.md with its pictures, and report.html, which
holds them and can be sent alone. The section of each claim is in `experiments/claims`; `gather`
puts them together.
"""

import base64
import dataclasses
import html
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.anchors.index import slugify

from experiments.claims import adversarial, equivariance, jumble, parameters, toys, viewpoints
from experiments.claims.sections import Section
from experiments.data.npz_files import read_arrays
from experiments.plots.pictures import draw_all
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import RunnerError, UsageError
from experiments.runtime.records import Record, check_folder, read_record, write_atomically
from experiments.runtime.tables import Table

TITLE = "Capsules and the CNN: the claims, put to the test"
ABOUT = (
    "Means over seeds, each with its 95% interval (Student's t). A claim holds, or does not hold, "
    "where the interval of the paired difference leaves out 0; otherwise it is undecided."
)
# What differs between seeds that were asked the same.
OF_A_SEED = ("seed", "victim_seed", "seconds", "command")
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.25; }
h2 { margin-top: 3rem; border-top: 1px solid #8886; padding-top: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .85rem; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .7rem; text-align: left; }
td { font-variant-numeric: tabular-nums; }
td:nth-child(n + 3) { white-space: nowrap; }
img { max-width: 100%; background: white; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


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
        if trained := read_runs(folder):
            sections.append(parameters.section(folder.name, trained))
        if records := read_records(folder / "toys", "errors"):
            sections.append(toys.section(folder.name, records))
        for views in sorted(folder.glob("viewpoints-*")):
            if records := read_records(views, "stopped", "matched", "networks", "unmatched"):
                sections.append(
                    viewpoints.section(folder.name, views.name.partition("-")[2], records)
                )
        if records := read_records(
            folder / "adversarial", "num_classes", "networks", "white_box", "black_box"
        ):
            sections.append(
                adversarial.section(folder.name, records, read_examples(folder / "adversarial"))
            )
        if records := read_records(folder / "jumble", "rows"):
            sections.append(jumble.section(folder.name, records, read_examples(folder / "jumble")))
        if records := read_records(folder / "equivariance", "layers"):
            sections.append(
                equivariance.section(folder.name, records, read_examples(folder / "equivariance"))
            )
    if not sections:
        names = ".parameters, .toys, .viewpoints, .adversarial, .jumble or .equivariance"
        raise UsageError(f"{runs} holds no results of experiments{names}")
    return sections


def read_runs(folder: Path) -> list[Record]:
    """The results of the runs in a folder, and of each its `network`, by name.

    Raises:
        UsageError: those of a network differ in more than their seeds.
        RunnerError: one is damaged, or lacks a field.
    """
    runs: dict[str, dict[Path, Record]] = {}
    for path in sorted(folder.glob("*/result.json")):
        network = path.parent.name.rpartition("-")[0]
        result = read_json(path, "model", "seed", "steps", "num_parameters", "test_error")
        runs.setdefault(network, {})[path] = result | {"network": network}
    for of_network in runs.values():
        check_comparable(of_network, ("steps", "num_parameters"))
    return [run for of_network in runs.values() for run in of_network.values()]


def read_records(folder: Path, *findings: str) -> list[Record]:
    """The records of the seeds in a folder.

    Args:
        folder: of the experiment.
        findings: the fields of what was found. All others are what was asked, but for `OF_A_SEED`.

    Raises:
        UsageError: seeds were asked different things.
        RunnerError: one is damaged, or lacks a field.
    """
    paths = sorted(folder.glob("seed-*.json"))
    records = {path: read_json(path, "seed", "seconds", "command", *findings) for path in paths}
    asked = set().union(*records.values()) - {*findings, *OF_A_SEED}
    check_comparable(records, sorted(asked))
    return list(records.values())


def check_comparable(records: Mapping[Path, Record], fields: Sequence[str]) -> None:
    """Raise UsageError unless records, by file, have these fields in common, but for the seed of a
    config.
    """
    chosen = {path: {name: record.get(name) for name in fields} for path, record in records.items()}
    for path in chosen:
        first = next(iter(chosen))
        if different := differences(chosen[path], chosen[first]):
            name, (here, there) = next(iter(different.items()))
            raise UsageError(f"{path} cannot be compared with {first}: {name} {here} and {there}")


def differences(one: Record, other: Record) -> dict[str, tuple[Any, Any]]:
    """Where records differ, by the path of names."""
    found = {}
    for name in sorted((one.keys() | other.keys()) - {"seed"}):
        here, there = one.get(name), other.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            inner = differences(here, there)
            found |= {f"{name}.{path}": values for path, values in inner.items()}
        elif here != there:
            found[name] = here, there
    return found


def read_examples(folder: Path) -> Any:
    """The arrays beside the first record; None if there are none.

    Raises RunnerError if the file is damaged.
    """
    paths = sorted(folder.glob("seed-*.npz"))
    return read_arrays(paths[0]) if paths else None


def to_markdown(sections: Sequence[Section]) -> str:
    """The page in Markdown: all verdicts, and then a section for each claim."""
    lines = [f"# {TITLE}", "", ABOUT, "", summary(sections).markdown(), ""]
    for section in sections:
        lines += [f"## {literal(section.heading)}", "", literal(section.claim), ""]
        for table in section.tables:
            lines += [in_markdown(table).markdown(), ""]
        for picture in section.pictures:
            caption = literal(picture.caption)
            lines += [f"![{caption}]({quote(picture.name)}.png)", "", f"*{caption}*", ""]
        lines += [*(f"- {source}" for source in section.sources), ""]
    return "\n".join(lines)


def summary(sections: Iterable[Section]) -> Table:
    """The verdicts of all sections, with links to these."""
    columns = ("claim", "difference", "verdict")
    rows = []
    for section in sections:
        link = f"[{literal(section.heading)}](#{slugify(section.heading)})"
        found = [
            tuple(literal(row[table.header.index(name)]) for name in columns)
            for table in section.tables
            if set(columns) <= set(table.header)
            for row in table.rows
        ]
        rows += [(link, *row) for row in found or [("", "", "see there")]]
    return Table("In short", ("measured", "claim", "difference, in points", "verdict"), rows)


def in_markdown(table: Table) -> Table:
    """The same table, none of whose text is taken for markup."""
    caption, header, rows = table
    return Table(literal(caption), [*map(literal, header)], [[*map(literal, row)] for row in rows])


def literal(text: str) -> str:
    """Markdown that shows this text, whatever stands in it."""
    return re.sub(r"([\\`*_<>\[\]|$~&])", r"\\\1", text)


def to_html(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """The page in HTML, a single file.

    Args:
        markdown: the page.
        pictures: PNG files, by the names that the page has for them.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").use(anchors_plugin)
    body = parser.render(markdown)
    for name, picture in pictures.items():
        data = base64.b64encode(picture).decode()
        body = body.replace(f'src="{quote(name)}"', f'src="data:image/png;base64,{data}"')
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{html.escape(TITLE)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}</body>
</html>
"""


def write(sections: Sequence[Section], output: Path) -> None:
    """Write the page, and then its pictures, and both in one file.

    Raises RunnerError if not all pictures could be drawn.
    """
    output.mkdir(parents=True, exist_ok=True)
    markdown = to_markdown(sections)
    write_atomically(output / "report.md", markdown)
    figures = {picture.name: picture.figure for section in sections for picture in section.pictures}
    drawings = {name: lambda figure=figure: figure for name, figure in figures.items()}
    for name in figures:  # of an earlier report: one that cannot be drawn now is missing
        (output / f"{name}.png").unlink(missing_ok=True)
    try:
        draw_all(output, drawings, dpi=110)
    finally:
        drawn = {f"{name}.png": output / f"{name}.png" for name in figures}
        pictures = {name: path.read_bytes() for name, path in drawn.items() if path.exists()}
        write_atomically(output / "report.html", to_html(markdown, pictures))


def run(command: ReportCommand, _: str) -> None:
    """Write the page."""
    output = command.output or command.runs / "report"
    check_folder(output)
    write(gather(command.runs), output)
    print(f"wrote {output / 'report.md'} and {output / 'report.html'}")


main = entry_point("experiments.report", ReportCommand, run)

if __name__ == "__main__":
    sys.exit(main())
