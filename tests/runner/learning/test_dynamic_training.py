"""Training vector capsules, and a decoder beside either kind of capsules."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_run

import emcaps
from experiments.data.batches import Batch
from experiments.learning.configs import (
    ModelConfig,
    TrainConfig,
    default_config,
    from_json,
    to_json,
)
from experiments.learning.network import (
    DECODER,
    class_logits,
    class_poses,
    decode,
    make_model,
    network_intermediates,
)
from experiments.learning.step import init_state, make_train_step
from experiments.plots import pictures
from experiments.runs import loop
from experiments.runs.directory import read_records

DYNAMIC = ModelConfig(
    family="dynamic", dynamic_channels=3, dynamic_capsules=2, dynamic_iterations=2
)
SHAPE = (20, 20, 1)


def batch(shape=SHAPE):
    images = np.random.default_rng(0).uniform(size=(6, *shape)).astype(np.float32)
    return Batch(images, np.arange(6, dtype=np.int32) % 3)


def config(model, **changed):
    return dataclasses.replace(
        tiny_run.CONFIG, model=model, loss="margin", learning_rate=3e-3, **changed
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", [DYNAMIC, tiny_run.MODEL], ids=["dynamic", "matrix"])
def test_capsules_and_their_decoder_learn_together(model):
    given, settings = batch(), config(dataclasses.replace(model, reconstruction=True))
    network = make_model(settings.model, 3)
    state = jax.jit(lambda images, key: init_state(settings, network, images, key))(
        given.images, jax.random.key(0)
    )
    assert set(state.params) >= {DECODER, "conv", "primary", "class_caps"}
    step = jax.jit(
        functools.partial(make_train_step(settings, network), average=lambda function: function)
    )

    def errors(params):
        intermediates = network_intermediates(settings, network, params, given.images, 0)
        images = decode(params, class_poses(intermediates), given.labels, SHAPE)
        assert class_logits(intermediates).shape == (6, 3) and images.shape == (6, *SHAPE)
        activations = jax.nn.sigmoid(class_logits(intermediates))
        margins, pixels = (
            emcaps.margin_loss(activations, given.labels),
            emcaps.dynamic.reconstruction_loss(given.images, images),
        )
        return float(margins.mean()), float(pixels.mean())

    before = errors(state.params)
    trained, first = step(state, given)
    assert first.loss == pytest.approx(before[0] + 0.0005 * before[1], rel=1e-5)
    for _ in range(30):
        trained, _ = step(trained, given)
    after = errors(trained.params)
    assert after[0] < before[0] and after[1] < before[1]


@pytest.mark.slow
def test_a_run_of_vector_capsules_leaves_its_result(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    data = tiny_run.dataset()
    large = [
        np.pad(images, ((0, 0), (4, 3), (4, 3), (0, 0)))
        for images in (data.train_images, data.test_images)
    ]
    data = data._replace(train_images=large[0], test_images=large[1])
    result = loop.train(config(DYNAMIC, steps=2, eval_every=2), data, tmp_path / "run")
    assert (result["model"], result["num_iterations"], result["test_examples"]) == (
        "dynamic",
        2,
        37,
    )
    assert not [
        record for record in read_records(tmp_path / "run") if record["split"] == "diagnostics"
    ]


def test_the_defaults_are_the_papers():
    chosen = default_config("--model dynamic --dataset mnist".split())
    assert (chosen.loss, chosen.learning_rate, chosen.schedule) == ("margin", 1e-3, "cosine")
    assert chosen.model == ModelConfig(family="dynamic")
    assert (chosen.model.dynamic_channels, chosen.model.dynamic_capsules) == (256, 32)
    assert chosen.model.iterations == {"num_iterations": 3}
    assert from_json(to_json(chosen)) == chosen


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: ModelConfig(family="dynamic", conv_channels=3),
            "vector capsules have no conv_channels",
        ),
        (lambda: ModelConfig(dynamic_iterations=1), "capsules have no dynamic_iterations"),
        (lambda: ModelConfig(family="cnn", reconstruction=True), "a cnn has no reconstruction"),
        (
            lambda: TrainConfig(model=DYNAMIC, calibrate_betas=True),
            "vector capsules have no betas and no temperatures",
        ),
        (
            lambda: TrainConfig(model=ModelConfig(reconstruction=True)),
            r"reconstruction needs images in \[0, 1\]",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
