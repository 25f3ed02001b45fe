"""What the benchmark compares is the same routing, and it writes what it measures."""

import importlib.util
import itertools
import json
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emcaps
from experiments import benchmark
from experiments.measurements import accelerator, textbook, timing
from experiments.measurements.accelerator import ORDER, Workload, benchmark_accelerator
from experiments.measurements.layer import Layer, layer_arguments, routings
from experiments.measurements.training_step import Widths


@pytest.mark.slow
def test_the_textbooks_routing_is_ours():
    layer = Layer(batch=2, size=7, children=2, parents=3)
    arguments = layer_arguments(layer)
    ours, theirs = (routings(layer)[name](*arguments) for name in ("streamed", "textbook"))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_textbooks_network_is_ours():
    model = emcaps.CapsNet(3, 4, 2, (2, 2), emcaps.PAPER)
    images = jax.random.uniform(jax.random.key(0), (2, 20, 20, 1))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    ours = model.apply(variables, images)[0].activations
    theirs = textbook.class_activations(model, variables["params"], images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_writes_what_it_measures(tmp_path, capsys):
    layer = Layer(batch=2, size=5, children=1, parents=2, iterations=2)
    benchmark.run(
        benchmark.BenchmarkConfig(layer, parts=("kernels", "dynamic"), repeats=1, output=tmp_path),
        "",
    )
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert record["kernels"]["moments"]["ns_per_pair"] > 0
    assert record["config"]["layer"]["parents"] == 2
    assert record["dynamic"]["class capsules, gradient"]["votes not stored"]["seconds"] > 0
    assert "multiply-adds a second" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_for_accelerators_runs_on_a_cpu(tmp_path, capsys):
    config = {"networks": ("3/2/2/2",), "batches": (2,), "repeats": 1, "output": tmp_path}
    assert (
        benchmark.main(
            [
                "--parts",
                "profile",
                "--output",
                str(tmp_path),
                "--networks",
                "3/2/2/2",
                "--batches",
                "2",
            ]
        )
        == 0
    )
    assert (tmp_path / "step.hlo.txt.gz").stat().st_size > 0
    with zipfile.ZipFile(tmp_path / "xplane.zip") as packed:
        assert packed.namelist()
    benchmark.run(benchmark.BenchmarkConfig(parts=("accelerator", "torch"), **config), "")
    record = json.loads((tmp_path / "benchmark.json").read_text())
    measured = {
        (row["task"], row["contender"]) for row in record["accelerator"]["rows"] if "seconds" in row
    }
    tasks, contenders = (
        ("step", "layer, forward", "layer, gradient"),
        ("textbook", "dense", "streamed"),
    )
    assert set(itertools.product(tasks, contenders)) <= measured
    assert [
        json.loads(line) for line in (tmp_path / "accelerator.jsonl").read_text().splitlines()
    ] == record["accelerator"]["rows"]
    torch_is_here = importlib.util.find_spec("torch") is not None
    assert all(
        ("seconds" in row) == torch_is_here
        for row in record["torch"]["rows"]
        if row["contender"] == "PyTorch, eager"
    )
    assert "images/s" in capsys.readouterr().out


def test_what_cannot_be_measured_says_why(monkeypatch):
    load = Workload(Widths.parse("3/2/2/2"), 2, "layer, forward")
    monkeypatch.setattr(Workload, "arguments", lambda self: (jnp.ones(3),))
    monkeypatch.setattr(
        Workload,
        "functions",
        lambda self: {name: failing if name == "dense" else jnp.sin for name in ORDER},
    )

    def failing(_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    (rows,) = benchmark_accelerator([load], timing.Ceilings(1e12, 1e12), 1, limit=60)
    assert {row["contender"]: row.get("missing") for row in rows} == dict.fromkeys(ORDER) | {
        "dense": "RESOURCE_EXHAUSTED: out of memory"
    }
    monkeypatch.setattr(accelerator, "available_bytes", lambda: 0)
    (rows,) = benchmark_accelerator([load], timing.Ceilings(1e12, 1e12), 1, limit=60)
    assert {row["missing"] for row in rows} == {"needs 0 GB", "RESOURCE_EXHAUSTED: out of memory"}


def test_a_networks_pairs_are_those_of_its_layers():
    widths = Widths.parse("64/8/16/16")
    assert (str(widths), widths.pairs(2)) == ("64/8/16/16", 2 * 79_616)
    with pytest.raises(ValueError, match="64/8/16/16"):
        Widths.parse("64/8/0")


def test_exponent_of_a_line_is_one():
    sizes = [2, 4, 8, 32]
    assert abs(timing.fit_exponent(sizes, [3.0 * size for size in sizes]) - 1) < 1e-12
    assert jnp.isfinite(timing.multiply_adds(size=16, rounds=2)[0](timing.small_numbers(16))).all()
