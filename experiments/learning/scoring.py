"""How a network does on the test images, on all devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.preprocessing import crop_places, evaluation_view
from experiments.devices.parallel import map_chunks
from experiments.learning.configs import TrainConfig
from experiments.learning.network import (
    Network,
    class_logits,
    log_activations,
    network_intermediates,
)
from experiments.learning.step import losses

# Examples that a device scores at a time, whatever the training batch was.
EXAMPLES_PER_DEVICE = 50


class Scores(NamedTuple):
    """What a network makes of N labeled images.

    Attributes:
        activations: of the classes (a CNN's probabilities), `[N, num_classes]`, the mean over the
            crops.
        loss: the mean of the config's loss, over images and crops.
        predictions: the class with the highest activation (by its logarithm: activations can round
            to 1), `[N]`.
        num_correct: how many predictions are the label.
        num_examples: N.
    """

    activations: np.ndarray
    loss: float
    predictions: np.ndarray
    num_correct: int
    num_examples: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_examples

    @property
    def error(self) -> float:
        return (self.num_examples - self.num_correct) / self.num_examples


def make_evaluator(
    config: TrainConfig, model: Network, mesh: jax.sharding.Mesh, crops: int = 1
) -> Callable[[Any, np.ndarray, np.ndarray, int], Scores]:
    """The function `evaluate(params, images, labels, step)`, which scores each image, as things are
    at that step, on all devices.

    An image is classified by the mean of its class activations over so many crops, the central one
    first (`crop_places`).
    """

    def classify_view(given: tuple[Any, jax.Array, jax.Array], images: jax.Array) -> jax.Array:
        params, step, place = given
        return class_logits(
            network_intermediates(
                config, model, params, evaluation_view(config.images, images, place), step
            )
        )

    classify = map_chunks(classify_view, mesh, EXAMPLES_PER_DEVICE)

    def evaluate(params: Any, images: np.ndarray, labels: np.ndarray, step: int) -> Scores:
        places = crop_places(crops)
        # [crops, N, J].
        logits = jnp.stack(
            [classify((params, jnp.int32(step), jnp.asarray(place)), images) for place in places]
        )
        loss = jnp.stack(
            [losses(config, seen, jnp.asarray(labels), step) for seen in logits]
        ).mean()
        log_means = jax.nn.logsumexp(log_activations(model, logits), axis=0) - jnp.log(crops)
        predictions = np.asarray(log_means).argmax(-1)
        return Scores(
            np.exp(log_means),
            float(loss),
            predictions,
            int((predictions == labels).sum()),
            len(images),
        )

    return evaluate
