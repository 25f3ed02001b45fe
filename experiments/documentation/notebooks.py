"""The tutorials as notebooks, with all that their cells print and draw.

    python -m experiments.documentation.notebooks [NAME ...]

from the top of the repository, with the extra `dev`, runs the scripts of `experiments/tutorials`,
all of them or those that are named, and writes the notebook of each beside it. The script is what
is edited: a test holds the cells of its notebook to it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from experiments.runtime.records import write_atomically

TOP = Path(__file__).parents[2]
TUTORIALS = TOP / "experiments" / "tutorials"
TIMEOUT = 600  # seconds, of a cell
# Neither the version of Python nor the tool that made the notebook.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(script: Path) -> NotebookNode:
    """The cells of a script in the percent format, which have no outputs yet."""
    cells = jupytext.read(script).cells
    for number, cell in enumerate(cells, start=1):
        cell.update(id=str(number), metadata={})
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def run(book: NotebookNode) -> NotebookNode:
    """A notebook with its outputs, in a new kernel of this Python.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    client = NotebookClient(
        book,
        timeout=TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(TUTORIALS)}},
    )
    # What is imported is this checkout, wherever `emcaps` is installed.
    paths = os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH")]))
    executed = client.execute(env=os.environ | {"PYTHONPATH": paths})
    executed.metadata = nbformat.from_dict(METADATA)
    return executed


def main(names: Sequence[str]) -> None:
    """Write the notebooks of these tutorials, or of all."""
    scripts = {script.stem: script for script in sorted(TUTORIALS.glob("*.py"))}
    if unknown := set(names) - scripts.keys():
        sys.exit(f"tutorials are {', '.join(scripts)}; got {', '.join(sorted(unknown))}")
    for name, script in scripts.items():
        if not names or name in names:
            path = script.with_suffix(".ipynb")
            write_atomically(path, nbformat.writes(run(notebook(script))) + "\n")
            print(f"{path.relative_to(TOP)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
