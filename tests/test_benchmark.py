"""What the benchmark compares is the same routing, and it writes what it measures."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emcaps
from experiments import benchmark, textbook, timing
from experiments.benchmark_layer import Layer, layer_arguments, routings
from experiments.benchmark_networks import PAPER_ROUTING


@pytest.mark.slow
def test_the_textbooks_routing_is_ours():
    layer = Layer(batch=2, size=7, children=2, parents=3)
    arguments = layer_arguments(layer)
    ours, theirs = (routings(layer)[name](*arguments) for name in ("streamed", "textbook"))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_textbooks_network_is_ours():
    model = emcaps.CapsNet(3, 4, 2, (2, 2), PAPER_ROUTING)
    images = jax.random.uniform(jax.random.key(0), (2, 20, 20, 1))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    ours = model.apply(variables, images)[0].activations
    theirs = textbook.class_activations(model, variables["params"], images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_writes_what_it_measures(tmp_path, capsys):
    layer = Layer(batch=2, size=5, children=1, parents=2, iterations=2)
    benchmark.run(benchmark.BenchmarkConfig(layer, parts=("kernels", "dynamic"), repeats=1, output=tmp_path))
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert record["kernels"]["moments"]["ns_per_pair"] > 0
    assert record["config"]["layer"]["parents"] == 2
    assert record["dynamic"]["class capsules, gradient"]["votes not stored"]["seconds"] > 0
    assert "multiply-adds a second" in capsys.readouterr().out


def test_exponent_of_a_line_is_one():
    sizes = [2, 4, 8, 32]
    assert abs(timing.fit_exponent(sizes, [3.0 * size for size in sizes]) - 1) < 1e-12
    assert jnp.isfinite(timing.multiply_adds(size=16, rounds=2)[0](timing.small_numbers(16))).all()
