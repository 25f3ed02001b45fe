"""The tutorials do what they say."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOP = Path(__file__).parents[2]


def run(name):
    """Run a tutorial; what it leaves, by name."""
    return runpy.run_path(str(TOP / "experiments" / "tutorials" / f"{name}.py"))


@pytest.mark.slow
def test_a_network_of_functions_learns_shapes(capsys):
    left = run("build_a_network")
    losses, accuracies = np.array(left["losses"]), np.array(left["accuracies"])
    assert np.isfinite(losses).all() and losses[-20:].mean() < 0.5 * losses[:10].mean()
    assert accuracies[:5].mean() < 0.5 and accuracies[-20:].mean() > 0.75
    assert list(left["found"]) == ["classes", "conv"]
    assert "by chance 25%" in capsys.readouterr().out


def test_right_gradients_pass_and_a_wrong_one_is_caught(capsys):
    left = run("gradient_check")
    assert left["caught"] and min(left["errors"]) > 0.1
    assert left["gap"] < 1e-9
    assert capsys.readouterr().out.count("as finite differences have it") == 2


@pytest.mark.slow
def test_several_devices_train_as_one():
    ways = ("data", "share", "type")
    names = [
        "losses",
        "share",
        *(f"{way}_{what}" for way in ways for what in ("losses", "difference")),
    ]
    code = f"""
import json, runpy
left = runpy.run_module("experiments.tutorials.several_devices")
print(json.dumps([left[name] for name in {names}]))
"""
    # The second compiles faster.
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    left = dict(zip(names, json.loads(last), strict=True))
    assert left["losses"][-1] < left["losses"][0]
    for way in ways:
        np.testing.assert_allclose(left[f"{way}_losses"], left["losses"], rtol=1e-4)
        assert left[f"{way}_difference"] < 1e-4
    assert left["share"] == [3, 3, 2, 2, 4, 4]
    assert "2 x 2 devices" in done.stdout
