"""What the entries of a capsule's pose mean: images that the decoder sees while one entry after the
other moves.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.preprocessing import evaluation_view
from experiments.learning.configs import TrainConfig
from experiments.learning.network import (
    Network,
    class_logits,
    class_poses,
    decode,
    network_intermediates,
)

AMOUNTS = np.linspace(-0.25, 0.25, 11)  # as in figure 4 of "Dynamic Routing Between Capsules"


def decode_moved(
    config: TrainConfig, model: Network, params: Any, step: int, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move the entries of the pose of the class that wins, one at a time, by `AMOUNTS`.

    Args:
        config: of a run with a decoder.
        model: its network.
        params: the network's.
        step: after how many steps.
        image: uint8 `[1, H, W, C]`.

    Returns:
        The image as the network sees it, and those decoded, `[entries, len(AMOUNTS), ...]`, all in
        [0, 1].
    """
    view = evaluation_view(config.images, jnp.asarray(image))
    intermediates = network_intermediates(config, model, params, view, step)
    poses, winner = class_poses(intermediates), class_logits(intermediates).argmax(-1)
    number = poses.shape[-1]
    changes = jnp.einsum("ef,a->eaf", jnp.eye(number), jnp.asarray(AMOUNTS, poses.dtype)).reshape(
        -1, number
    )
    moved = poses + changes[:, None, :] * jax.nn.one_hot(winner, poses.shape[1])[..., None]
    decoded = decode(params, moved, jnp.repeat(winner, len(moved)), view.shape[1:])
    return np.asarray(view[0]), np.asarray(decoded).reshape(number, len(AMOUNTS), *view.shape[1:])
