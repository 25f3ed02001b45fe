"""Temperatures that layers learn: the parameters, their gradients, and how runs and files keep
them.
"""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from jax.sharding import Mesh, PartitionSpec

import emcaps
from emcaps import CapsNet, RoutingOptions
from experiments.learning import step
from experiments.learning.configs import TrainConfig, from_json, to_json
from experiments.learning.network import learned_temperatures, make_model
from experiments.learning.presets import PRESETS
from experiments.learning.scoring import Scores
from experiments.plots import pictures
from experiments.runs import loop, steps
from experiments.runs.directory import read_records

LEARNING = RoutingOptions(
    assignment_temperature=4.0, assignment_temperature_rate=2.0, inverse_temperature_rate=3.0
)
NAMES = ("assignment_temperature_log", "inverse_temperature_log")


def network(routing, parent_axis=None):
    # Parameters in float64 where a test enables it.
    dtype = jnp.result_type(float)
    return CapsNet(3, 4, 2, (2,), routing, parent_axis=parent_axis, param_dtype=dtype)


def images(dtype):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 13, 1)), dtype)


def moved(params):
    """Parameters whose temperatures are no longer those of the start."""
    exponents = {"conv_caps_1": (0.3, -0.2), "class_caps": (-0.4, 0.1)}
    dtype = params["class_caps"]["beta_a"].dtype
    return params | {
        layer: params[layer]
        | {name: np.asarray(value, dtype) for name, value in zip(NAMES, given, strict=True)}
        for layer, given in exponents.items()
    }


@functools.cache
def initial(routing=LEARNING):
    """Parameters as a network begins with them, in float64."""
    init = jax.jit(network(routing).init)
    return jax.device_get(init(jax.random.key(0), images(jnp.float64))["params"])


def temperatures_in(params):
    """The parameters that are temperatures, by layer."""
    return {
        layer: {name: params[layer][name] for name in NAMES}
        for layer in ("conv_caps_1", "class_caps")
    }


def loss(model, temperatures, params, given):
    """A loss of the class capsules, and the capsules, with these temperatures among the
    parameters.
    """
    params = params | {layer: params[layer] | temperatures[layer] for layer in temperatures}
    capsules, _ = model.apply({"params": params}, given)
    total = (
        emcaps.spread_loss(capsules.activations, jnp.array([0, 1]), 0.5).mean()
        + (capsules.poses**2).mean()
    )
    return total, capsules


@functools.cache
def value_and_gradient(routing=LEARNING):
    """The loss and the class capsules, and the loss's gradient for the temperatures, compiled once
    for the tests that look at them.
    """
    return jax.jit(jax.value_and_grad(functools.partial(loss, network(routing)), has_aux=True))


def assert_routes_with(temperatures, params, given):
    """A network that learns temperatures finds what one does that has these, of assignments and
    inverse, in each layer.
    """
    (_, capsules), _ = value_and_gradient()(temperatures_in(params), params, given)
    expected = fixed_capsules(temperatures, params, given)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), capsules, expected)


@jax.jit
def fixed_capsules(temperatures, params, given):
    """The class capsules of a network that learns no temperatures."""
    routing = tuple(
        RoutingOptions(
            assignment_temperature=one, inverse_temperature=other, assignment_temperature_rate=0.0
        )
        for one, other in temperatures
    )
    return network(routing).apply({"params": params}, given)[0]


def test_each_layer_begins_with_the_temperature_that_is_given(x64):
    given, params = images(jnp.float64), initial()
    learned = {(layer, name) for layer in params for name in params[layer] if name.endswith("_log")}
    assert learned == {(layer, name) for layer in ("conv_caps_1", "class_caps") for name in NAMES}
    start = (LEARNING.assignment_temperature, LEARNING.inverse_temperature)
    assert_routes_with([start, start], params, given)


def test_with_one_iteration_there_is_no_assignment_temperature_to_learn():
    routing = dataclasses.replace(LEARNING, num_iterations=1)
    given = images(jnp.float32)
    params = jax.eval_shape(network((routing, LEARNING)).init, jax.random.key(0), given)["params"]
    assert {name for name in params["conv_caps_1"] if name.endswith("_log")} == {
        "inverse_temperature_log"
    }
    assert {name for name in params["class_caps"] if name.endswith("_log")} == set(NAMES)


def test_a_layer_routes_with_what_it_has_learned(x64):
    given, params = images(jnp.float64), moved(initial())
    learned = [LEARNING.learned(params[layer]) for layer in ("conv_caps_1", "class_caps")]
    temperatures = [
        (float(routing.assignment_temperature), float(routing.inverse_temperature))
        for routing in learned
    ]
    np.testing.assert_allclose(
        temperatures, [(4 * np.exp(0.6), np.exp(-0.6)), (4 * np.exp(-0.8), np.exp(0.3))], rtol=1e-12
    )
    assert_routes_with(temperatures, params, given)


@pytest.mark.parametrize(
    "implementation", ["streamed", pytest.param("dense", marks=pytest.mark.slow)]
)
def test_their_gradient_is_that_of_differences(implementation, x64):
    routing = dataclasses.replace(LEARNING, implementation=implementation)
    given, difference = images(jnp.float64), 1e-5
    params = moved(initial(routing))
    temperatures = temperatures_in(params)
    _, gradient = value_and_gradient(routing)(temperatures, params, given)
    for layer in temperatures:
        for name in NAMES:
            low, high = (
                value_and_gradient(routing)(
                    temperatures
                    | {layer: temperatures[layer] | {name: temperatures[layer][name] + d}},
                    params,
                    given,
                )[0][0]
                for d in (-difference, difference)
            )
            assert gradient[layer][name] == pytest.approx(
                float(high - low) / (2 * difference), rel=1e-6
            ), (layer, name)
            assert abs(gradient[layer][name]) > 1e-4


def test_devices_that_share_the_parent_types_find_the_same_gradient(x64):
    given, params = images(jnp.float64), moved(initial())
    mesh = Mesh(np.array(jax.devices()[:2]), ("types",))
    specs = emcaps.partition_specs(params, "types")
    assert specs["conv_caps_1"]["assignment_temperature_log"] == PartitionSpec()
    shared = functools.partial(loss, network(LEARNING, "types"))
    divided = jax.shard_map(
        lambda *parameters: jax.grad(lambda *parameters: shared(*parameters, given)[0])(
            *parameters
        ),
        mesh=mesh,
        in_specs=(PartitionSpec(), specs),
        out_specs=PartitionSpec(),
    )
    temperatures = temperatures_in(params)
    _, expected = value_and_gradient()(temperatures, params, given)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12),
        jax.jit(divided)(temperatures, params),
        expected,
    )


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            dict(assignment_temperature_rate=-1.0),
            ValueError,
            r"assignment_temperature_rate must lie in \[0, inf\); got -1",
        ),
        (
            dict(inverse_temperature_rate=np.nan),
            ValueError,
            r"inverse_temperature_rate must lie in \[0, inf\); got nan",
        ),
        (
            dict(assignment_temperature_rate=jnp.float32(1)),
            TypeError,
            "assignment_temperature_rate must be a number known when",
        ),
        (
            dict(inverse_temperature_rate=1.0, inverse_temperature=None),
            ValueError,
            "inverse_temperature_rate needs a constant inverse_temperature to start from; got None",
        ),
        (
            dict(assignment_temperature_rate=1.0, assignment_gradient=False),
            ValueError,
            "rate must be 0 without assignment_gradient",
        ),
        (
            dict(inverse_temperature_rate=1.0, inverse_temperature=0.0),
            ValueError,
            r"inverse_temperature, where .*\(0, inf\); got 0",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        RoutingOptions(**options)


def test_the_procedures_of_others_learn_no_temperatures():
    assert not any(PRESETS[name][0].learns() for name in ("paper", "ibm"))


def saved_and_loaded(folder):
    """A classifier that has learned temperatures, and what a file of it holds."""
    fixed = tiny_run.classifier()
    model = fixed.model.clone(routing=dataclasses.replace(LEARNING, num_iterations=2))
    params = moved(fixed.params)
    classifier = dataclasses.replace(fixed, model=model, params=params)
    emcaps.pretrained.save_classifier(folder / "learned.safetensors", classifier)
    return classifier, emcaps.pretrained.load_classifier(folder / "learned.safetensors")


def test_a_classifier_keeps_them(tmp_path):
    classifier, loaded = saved_and_loaded(tmp_path)
    assert loaded.model.layer_routing() == classifier.model.layer_routing()
    chex.assert_trees_all_equal(loaded.params, classifier.params)


@pytest.mark.slow
def test_a_classifier_of_a_file_routes_with_them(tmp_path):
    classifier, loaded = saved_and_loaded(tmp_path)
    examples = classifier.examples.images
    np.testing.assert_array_equal(
        loaded.predict(examples).poses, classifier.predict(examples).poses
    )


def test_a_config_of_before_learns_none():
    config = TrainConfig()
    values = json.loads(to_json(config))
    for name in ("assignment_temperature_rate", "inverse_temperature_rate"):
        del values["model"]["routing"][name]
    assert from_json(json.dumps(values)).model.routing.learns() == []


@pytest.mark.parametrize("moved", ["assignment_temperature_end", "inverse_temperature_start"])
def test_a_temperature_that_is_learned_has_no_schedule(moved):
    with pytest.raises(
        ValueError, match=f"a temperature that is learned has no schedule; got {moved} 2.0"
    ):
        TrainConfig(
            model=dataclasses.replace(TrainConfig().model, routing=LEARNING), **{moved: 2.0}
        )


def pulled_to_one(config, model):
    """In place of a network's objective, whose gradient has its test above, one that compiles
    fast.
    """

    def objective(params, batch, step):
        return optax.tree.norm(jax.tree.map(lambda leaf: leaf - 1, params)), jnp.float32(0)

    return jax.value_and_grad(objective, has_aux=True)


@pytest.mark.parametrize(
    "make_objective",
    [pulled_to_one, pytest.param(step.make_objective, marks=pytest.mark.slow)],
    ids=["simple", "network"],
)
def test_a_run_logs_and_draws_them(make_objective, tmp_path, monkeypatch):
    number = len(tiny_run.dataset().test_labels)
    scores = Scores(np.ones((number, 3)), 1.0, np.zeros(number, int), 0, number)
    monkeypatch.setattr(step, "make_objective", make_objective)
    monkeypatch.setattr(steps, "make_evaluator", lambda *_: lambda *_: scores)
    monkeypatch.setattr(steps, "routing_diagnostics", lambda *_: {})
    monkeypatch.setattr(pictures, "routing_drawings", lambda *_: {})
    routing = dataclasses.replace(LEARNING, num_iterations=1)
    model = dataclasses.replace(tiny_run.MODEL, routing=routing, class_iterations=2)
    config = dataclasses.replace(tiny_run.CONFIG, model=model)
    loop.train(config, tiny_run.dataset(), tmp_path)
    records = [record for record in read_records(tmp_path) if record["split"] == "temperatures"]
    assert [record["step"] for record in records] == [4, 6]
    model, state = (
        make_model(config.model, 3),
        tiny_run.newest_state(tmp_path / "checkpoints", config),
    )
    last = {
        name: {layer: float(value) for layer, value in layers.items()}
        for name, layers in learned_temperatures(model, state.params).items()
    }
    assert {name: records[-1][name] for name in last} == last
    assert last["assignment_temperature"]["class_caps"] != pytest.approx(4, rel=1e-3)
    assert (tmp_path / "figures" / "temperatures.png").read_bytes().startswith(b"\x89PNG")
