"""What routing decides: extremes whose numbers are known, and sharp routing against soft."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcaps import CapsNet, RoutingOptions
from experiments.analysis.agreement import agreement_table, make_agreement

LABELS = np.array([0, 2, 1])


ROUTING = RoutingOptions(num_iterations=2)


@functools.cache
def network():
    """Its function of `make_agreement`, compiled once, parameters and images."""
    model = CapsNet(3, 4, 2, (2,), ROUTING)
    wide = jnp.asarray(np.random.default_rng(0).normal(size=(3, 13, 13, 1)), jnp.float32)
    return make_agreement(model), jax.jit(model.init)(jax.random.key(0), wide)["params"], wide


def measured(assignment_temperature=ROUTING.assignment_temperature):
    """What is measured where all layers have learned this temperature."""
    measure, params, wide = network()
    learned = np.log(assignment_temperature / ROUTING.assignment_temperature)
    learned /= ROUTING.assignment_temperature_rate
    for layer in ("conv_caps_1", "class_caps"):
        assert "assignment_temperature_log" in params[layer]
        changed = params[layer] | {"assignment_temperature_log": jnp.float32(learned)}
        params = params | {layer: changed}
    return measure(params, wide, LABELS)


def test_the_first_iteration_has_decided_nothing():
    found = measured()
    for layer in ("conv_caps_1", "class_caps"):
        assert found[layer]["entropy"][0] == 1 and 0 < found[layer]["entropy"][1] < 1
    assert found["class_caps"]["best_share"][0] == pytest.approx(1 / 3)
    assert found["classes"]["true_share"][0] == pytest.approx(1)


def test_sharp_routing_decides_all_and_soft_routing_nothing():
    sharp, soft = measured(1e-3), measured(1e3)
    for layer in ("conv_caps_1", "class_caps"):
        assert sharp[layer]["entropy"][1] < 0.05 and sharp[layer]["best_share"][1] > 0.95
        assert (
            soft[layer]["entropy"][1] > 0.99
            and soft[layer]["best_share"][1] < 1.1 * soft[layer]["best_share"][0]
        )
    assert soft["classes"]["true_spread"][1] == pytest.approx(
        soft["classes"]["true_spread"][0], rel=0.02
    )


def test_the_table_has_means_over_seeds():
    found = measured()
    other = found | {
        "classes": found["classes"] | {"true_share": [1.0, 2 - found["classes"]["true_share"][1]]}
    }
    # Layers with one iteration learn none.
    temperatures = {"assignment_temperature": {"class_caps": 2.0}}
    records = [
        {"agreement": found, "temperatures": temperatures},
        {"agreement": other, "temperatures": temperatures},
    ]
    (row,) = agreement_table({"": records}).rows
    assert (row[0], row[2], row[-1]) == ("`default`", "1.00 x even", "assignment class_caps 2")
