"""What the benchmark compares is the same routing, and it writes what it measures."""

import importlib.util
import itertools
import json
import os
import time
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emcaps
from experiments import benchmark
from experiments.measurements import accelerator, textbook, timing, training_step
from experiments.measurements import layer as layer_measurements
from experiments.measurements.accelerator import ORDER, Workload, benchmark_accelerator
from experiments.measurements.layer import Layer, benchmark_layer, layer_arguments, routings
from experiments.measurements.training_step import Widths

PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"


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


def test_nothing_is_compiled_beside_what_is_timed(monkeypatch):
    """The time is over while the first program is compiled, which cannot be stopped."""
    load = Workload(Widths.parse("3/2/2/2"), 2, "layer, forward")
    compiling, seen = [], []

    class Slow(timing.Lowered):
        def compile(self):
            compiling.append(self)
            time.sleep(1)
            compiled = super().compile()
            compiling.remove(self)
            return compiled

    def time_in_turns(programs, repeats):
        seen.append((list(programs), len(compiling)))
        return timing.time_in_turns(programs, repeats)

    monkeypatch.setattr(Workload, "arguments", lambda self: (jnp.ones(3),))
    monkeypatch.setattr(Workload, "functions", lambda self: dict.fromkeys(ORDER, jnp.sin))
    monkeypatch.setattr(accelerator, "lower", lambda *given: Slow(*timing.lower(*given)))
    monkeypatch.setattr(accelerator, "time_in_turns", time_in_turns)
    monkeypatch.setattr(accelerator, "processors", lambda: 1)
    (rows,) = benchmark_accelerator([load], timing.Ceilings(1e12, 1e12), 1, limit=0.5)
    assert seen == [([ORDER[0]], 0)]
    assert {row["contender"]: row.get("missing") for row in rows} == dict.fromkeys(
        ORDER, "not compiled in time"
    ) | {ORDER[0]: None}


def test_a_profile_is_of_this_run(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "steps", lambda widths: {"kernels": jnp.sin})
    monkeypatch.setattr(accelerator, "step_arguments", lambda widths, batch: (jnp.ones(3),))
    earlier = tmp_path / "trace" / "earlier.xplane.pb"
    earlier.parent.mkdir()
    earlier.touch()
    packed, _ = accelerator.profile_step(Widths.parse("3/2/2/2"), 2, tmp_path)
    with zipfile.ZipFile(packed) as profile:
        assert len(profile.namelist()) == 1 and earlier.name not in profile.namelist()


def test_pytorch_comes_before_jax_takes_the_memory(tmp_path, monkeypatch):
    seen = []

    def noting(part):
        return lambda config: seen.append((part, os.environ.get(PREALLOCATE)))

    monkeypatch.setattr(benchmark, "MEASURED", {part: noting(part) for part in benchmark.MEASURED})
    for parts in (("accelerator",), ("accelerator", "torch")):
        monkeypatch.delenv(PREALLOCATE, raising=False)
        benchmark.run(benchmark.BenchmarkConfig(parts=parts, output=tmp_path), "")
    assert seen == [("accelerator", None), ("torch", "false"), ("accelerator", "false")]


def test_no_program_is_timed_twice(monkeypatch):
    """On a CPU the kernels are streamed routing."""
    names = ["textbook", "streamed", "fused", "dense", "streamed, all devices"]
    for module in (layer_measurements, training_step):
        monkeypatch.setattr(module, "measure", lambda contenders, repeats: list(contenders))
    small = Layer(batch=2, size=5, children=1, parents=2)
    assert benchmark_layer(small, 1) == {"forward": names, "gradient": names}
    monkeypatch.setattr(
        training_step, "step_arguments", lambda *_: (jnp.ones(1), jnp.ones(2), jnp.ones(2))
    )
    assert training_step.benchmark_step(2, 1, 1) == names


def test_the_textbooks_votes_are_as_exact_as_ours():
    layer = Layer(batch=2, size=5, children=1, parents=2)
    routing = jax.jit(routings(layer)["textbook"])
    lowered = routing.lower(*layer_arguments(layer)).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)


def test_a_networks_pairs_are_those_of_its_layers():
    widths = Widths.parse("64/8/16/16")
    assert (str(widths), widths.pairs(2)) == ("64/8/16/16", 2 * 79_616)
    with pytest.raises(ValueError, match="64/8/16/16"):
        Widths.parse("64/8/0")


def test_exponent_of_a_line_is_one():
    sizes = [2, 4, 8, 32]
    assert abs(timing.fit_exponent(sizes, [3.0 * size for size in sizes]) - 1) < 1e-12
    assert jnp.isfinite(timing.multiply_adds(size=16, rounds=2)[0](timing.small_numbers(16))).all()
