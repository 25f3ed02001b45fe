"""The tutorials do what they say, and their notebooks are those of their scripts."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jupytext", reason="notebooks are made with the extra `docs`")

import nbformat

from experiments.documentation.notebooks import TUTORIALS, notebook, run

SCRIPTS = sorted(TUTORIALS.glob("*.py"))
LARGEST = 1_000_000  # bytes of a notebook


def outputs(book):
    return [output for cell in book.cells for output in cell.get("outputs", [])]


def left_by(name, *expressions):
    """What these expressions are after a tutorial has run; and what it has printed."""
    book = notebook(TUTORIALS / f"{name}.py")
    values = ", ".join(expressions)
    book.cells.append(nbformat.v4.new_code_cell(f"print(repr([{values}]))", id="values"))
    *printed, values = [output["text"] for output in outputs(run(book)) if "text" in output]
    return *ast.literal_eval(values), "".join(printed)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_has_the_cells_of_its_script(script):
    path = script.with_suffix(".ipynb")
    remade = f"python -m experiments.documentation.notebooks {script.stem}"
    assert path.exists(), remade
    book = nbformat.read(path, as_version=4)
    cells, expected = (
        [(cell.cell_type, cell.source) for cell in each.cells] for each in (book, notebook(script))
    )
    assert cells == expected, remade
    assert cells[0][0] == "markdown" and cells[0][1].startswith("# ")  # its title on the site


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_has_run_and_tells_nothing_of_the_machine(script):
    path = script.with_suffix(".ipynb")
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all("metadata" not in output or not output.metadata for output in outputs(book))
    texts = [output.get("text", "") for output in outputs(book)]
    assert not [output for output in outputs(book) if output.get("name") == "stderr"]
    assert not re.search(r"(?<![\w.])/\w+/\w+|0x[0-9a-f]{6}", "".join(texts))
    assert path.stat().st_size < LARGEST


def test_there_is_no_notebook_without_a_script():
    assert {path.stem for path in TUTORIALS.glob("*.ipynb")} == {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_tutorial_is_run_below(script):
    assert re.search(rf'left_by\(\s*"{script.stem}"', Path(__file__).read_text())


@pytest.mark.slow
def test_a_capsule_network_from_image_to_classes(monkeypatch):
    # It runs its programs for longer than it compiles them.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    differences, entropies, votes, activations, poses, still_faces, accuracy, drawn, _ = left_by(
        "capsules_in_ten_minutes",
        "[vote_difference, routing_difference]",
        "entropies",
        "[list(measured.distances.shape), measured.assignments[:, 0, :, HUMAN].mean(1).tolist()]",
        "found.activations.tolist()",
        "poses.tolist()",
        "still_faces",
        "float(accuracy)",
        "[float(np.mean(decoder_losses[-50:])), blurred_loss]",
    )
    assert max(differences) < 1e-5
    assert entropies[0] == pytest.approx(np.log(5), rel=1e-3) and entropies[-1] < 0.1
    (iterations, _, number, classes), shares = votes
    assert (iterations, number, classes) == (2, 256, 5)
    assert shares[0] == pytest.approx(1 / 5) and shares[1] > 0.4
    assert (np.argmax(activations, -1) == 1).all() and np.ptp(np.array(activations)[:, 1]) < 0.05
    assert np.ptp(poses, axis=0).max() > 0.3
    assert accuracy > 0.9 and still_faces[0] > 0.9 and min(still_faces) > 0.3
    assert drawn[0] < 0.85 * drawn[1]


@pytest.mark.slow
def test_a_network_of_functions_learns_shapes():
    losses, accuracies, layers, printed = left_by(
        "build_a_network", "losses", "accuracies", "list(found)"
    )
    losses, accuracies = np.array(losses), np.array(accuracies)
    assert np.isfinite(losses).all() and losses[-20:].mean() < 0.5 * losses[:10].mean()
    assert accuracies[:5].mean() < 0.5 and accuracies[-20:].mean() > 0.75
    assert layers == ["classes", "conv"]
    assert "by chance 25%" in printed


@pytest.mark.slow
def test_right_gradients_pass_and_a_wrong_one_is_caught():
    caught, errors, gap, printed = left_by("gradient_check", "caught", "errors", "gap")
    assert caught and min(errors) > 0.1
    assert gap < 1e-9
    assert printed.count("as finite differences have it") == 2


@pytest.mark.slow
def test_several_devices_train_as_one():
    *ways, losses, share, printed = left_by(
        "several_devices",
        *(f"({way}_losses, {way}_difference)" for way in ("data", "share", "type")),
        "losses",
        "share",
    )
    assert losses[-1] < losses[0]
    for of_way, difference in ways:
        np.testing.assert_allclose(of_way, losses, rtol=1e-4)
        assert difference < 1e-4
    assert share == (3, 3, 2, 2, 4, 4)
    assert "2 x 2 devices" in printed


@pytest.mark.slow
def test_a_module_of_nnx_learns():
    losses, accuracies, printed = left_by("nnx", "losses", "accuracies")
    losses, accuracies = np.array(losses), np.array(accuracies)
    assert np.isfinite(losses).all() and losses[-20:].mean() < 0.5 * losses[:5].mean()
    assert accuracies[-20:].mean() > 0.75
    assert "steps up to 80" in printed
