"""Trained networks under attack: what the attacks are to change, the attacks as they are tried, and
their compiled programs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import emcaps
from experiments.analysis.attacks import bim, fgsm, pgd, value_and_gradient
from experiments.claims.study import TrainedNetwork
from experiments.data.preprocessing import evaluation_view
from experiments.devices.parallel import Devices, device_mesh, map_chunks
from experiments.learning.cnn import BaselineCNN
from experiments.learning.network import Network, class_logits, network_intermediates
from experiments.learning.scoring import EXAMPLES_PER_DEVICE

MARGIN = 0.9  # of the spread loss, as at the end of the training


def activations_loss(model: Network, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The spread loss of activations, of a CNN's probabilities, `[B]`: 0, and without a slope,
    where the label wins clearly.
    """
    activations = (
        jax.nn.softmax(logits) if isinstance(model, BaselineCNN) else jax.nn.sigmoid(logits)
    )
    return emcaps.spread_loss(activations, labels, MARGIN)


def logits_loss(model: Network, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of a softmax over the logits, `[B]`, of capsules too: it has a slope
    everywhere.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class Attack(NamedTuple):
    """An attack.

    Attributes:
        change: from objective, images, epsilon and a key for each image to images.
        targeted: whether a certain class is wanted, of all the ways in which it is tried.
    """

    change: Callable[..., jax.Array]
    targeted: tuple[bool, ...]


OBJECTIVES = {"logits": logits_loss, "activations": activations_loss}
ATTACKS = {
    "fgsm": Attack(
        lambda objective, images, epsilon, keys: fgsm(objective, images, epsilon), (False, True)
    ),
    "bim": Attack(
        lambda objective, images, epsilon, keys: bim(objective, images, epsilon, num_steps=10),
        (False, True),
    ),
    "pgd": Attack(functools.partial(pgd, num_steps=10, num_restarts=2), (False,)),
}


class Examples(NamedTuple):
    """Images and what is to be made of them, NumPy arrays.

    Attributes:
        images: float32 `[N, H, W, C]`, in [0, 1].
        labels: int32 `[N]`, what an objective is about: the true class, or the one that is wanted.
        key_data: uint32 `[N, 2]`, of a key for each image.
    """

    images: np.ndarray
    labels: np.ndarray
    key_data: np.ndarray


class Goal(NamedTuple):
    """What an attack is given beside the images; none of it is compiled in.

    Attributes:
        params: of the network.
        step: after which it is meant.
        objective: int32, which of `OBJECTIVES`.
        sign: 1 if that is to be large, -1 if small.
        epsilon: by how much a pixel may change.
    """

    params: Any
    step: int
    objective: int
    sign: float
    epsilon: float


class Programs(NamedTuple):
    """What is compiled for the networks of one kind, once for all of their seeds.

    Attributes:
        classify: from `(params, step)` and images to classes, `[N]`.
        differentiate: from a goal and examples to the gradients of the objective, as the images.
        attack: by name, from a goal and examples to images.
    """

    classify: Callable[[Any, np.ndarray], np.ndarray]
    differentiate: Callable[[Goal, Examples], np.ndarray]
    attack: Mapping[str, Callable[[Goal, Examples], np.ndarray]]


def make_programs(victim: TrainedNetwork, devices: Devices, num_images: int) -> Programs:
    """The programs for networks that differ from this one only in their parameters."""

    def logits(params: Any, step: Any, images: jax.Array) -> jax.Array:
        view = evaluation_view(victim.config.images, images)
        return class_logits(network_intermediates(victim.config, victim.model, params, view, step))

    def objective_of(goal: Goal, labels: Any) -> Callable[[jax.Array], jax.Array]:
        losses = [functools.partial(loss, victim.model) for loss in OBJECTIVES.values()]
        return lambda images: (
            goal.sign
            * jax.lax.switch(goal.objective, losses, logits(goal.params, goal.step, images), labels)
        )

    def classify(network: tuple[Any, Any], images: jax.Array) -> jax.Array:
        return logits(*network, images).argmax(-1)

    def differentiate(goal: Goal, examples: Any) -> jax.Array:
        return value_and_gradient(objective_of(goal, examples.labels), examples.images)[1]

    def change(attack: Attack, goal: Goal, examples: Any) -> jax.Array:
        keys = jax.random.wrap_key_data(examples.key_data)
        return attack.change(
            objective_of(goal, examples.labels), examples.images, goal.epsilon, keys
        )

    per_device = min(EXAMPLES_PER_DEVICE, -(-num_images // len(devices)))
    on_devices = functools.partial(map_chunks, mesh=device_mesh(devices), per_device=per_device)
    attacks = {
        name: on_devices(functools.partial(change, attack)) for name, attack in ATTACKS.items()
    }
    return Programs(on_devices(classify), on_devices(differentiate), attacks)
