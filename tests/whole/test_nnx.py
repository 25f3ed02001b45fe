"""An NNX module around `CapsNet` learns, as the tutorial says."""

import runpy
from pathlib import Path

import numpy as np

TUTORIAL = Path(__file__).parents[2] / "experiments" / "tutorials" / "nnx.py"


def test_a_module_of_nnx_learns(capsys):
    left = runpy.run_path(str(TUTORIAL))
    losses, accuracies = np.array(left["losses"]), np.array(left["accuracies"])
    assert np.isfinite(losses).all() and losses[-20:].mean() < 0.5 * losses[:5].mean()
    assert accuracies[-20:].mean() > 0.75
    assert "steps up to 80" in capsys.readouterr().out
