"""The tutorials as notebooks, with all that their cells print and draw.

    python -m experiments.documentation.notebooks [NAME ...]

from the top of the repository, with the extra `docs`, runs the scripts of `experiments/tutorials`,
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
    executed = client.execute(env=os.environ | {"PYTHONPATH": str(TOP)})
    executed.metadata = nbformat.from_dict(METADATA)
    return executed


def main(names: Sequence[str]) -> None:
    """Write the notebooks of these tutorials, or of all."""
    for script in sorted(TUTORIALS.glob("*.py")):
        if not names or script.stem in names:
            path = script.with_suffix(".ipynb")
            nbformat.write(run(notebook(script)), path)
            print(f"{path.relative_to(TOP)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
