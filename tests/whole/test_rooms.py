"""The house: a file at the top of `experiments` is a command, a folder is a room of parts, and
rooms import in one direction.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHEETS = "experiments.toynorb.sheets"  # a command in a room: toynorb's own pictures
PARTS_OF_NO_ROOM = {"documentation", "tutorials"}


def modules():
    """Source by the name of the module, of all rooms and commands."""
    files = [path.relative_to(ROOT) for path in (ROOT / "experiments").rglob("*.py")]
    files = [
        path
        for path in files
        if path.parts[1] not in PARTS_OF_NO_ROOM and path.name != "__init__.py"
    ]
    return {".".join(path.with_suffix("").parts): (ROOT / path).read_text() for path in files}


def imported(source, known):
    """The modules of `known` that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from {node.module, *(f"{node.module}.{name.name}" for name in node.names)} & known
        elif isinstance(node, ast.Import):
            yield from {name.name for name in node.names} & known


def is_command(name):
    return name.count(".") == 1 or name == SHEETS


def room(name):
    return name.split(".")[1]


MODULES = modules()
IMPORTS = {name: set(imported(source, MODULES.keys())) for name, source in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_what_can_be_run_is_at_the_top(name):
    assert ('__name__ == "__main__"' in MODULES[name]) == is_command(name)


@pytest.mark.parametrize("name", MODULES)
def test_no_one_imports_a_command(name):
    assert not [other for other in IMPORTS[name] if is_command(other)]


def test_rooms_import_in_one_direction():
    rooms = {}
    for name, others in IMPORTS.items():
        if not is_command(name):
            rooms.setdefault(room(name), set()).update(room(other) for other in others)
    for name, below in rooms.items():
        below.discard(name)
    order = list(graphlib.TopologicalSorter(rooms).static_order())
    assert (
        order.index("runtime")
        < order.index("data")
        < order.index("learning")
        < order.index("runs")
        < order.index("claims")
    )


@pytest.mark.parametrize("name", sorted({room(name) for name in MODULES if not is_command(name)}))
def test_a_room_says_what_it_holds(name):
    assert ast.get_docstring(ast.parse((ROOT / "experiments" / name / "__init__.py").read_text()))
