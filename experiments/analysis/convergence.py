"""How the votes for the class capsules gather: their distances to the capsules' means after each
routing iteration.

These are the numbers behind the second figure of the paper;
`python -m experiments.figures --workdir RUN` draws them for a run.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import emcaps
from emcaps.types import POSE_ENTRIES


class Convergence(NamedTuple):
    """What T iterations do to the N children of the J class capsules, for B images.

    Attributes:
        distances: `[T, B, N, J]`, >= 0: `|V_nj - mu_j|`, from child n's vote to the mean that
            iteration t gives class j, in the Euclidean norm over the 16 pose entries. The votes are
            the same in every iteration; the means move.
        assignments: `[T, B, N, J]` in [0, 1]: by which iteration t has taken the means. In the
            first all classes are equal.
        activations: `[T, B, J]` in [0, 1]: of the classes after iteration t.
    """

    distances: np.ndarray
    assignments: np.ndarray
    activations: np.ndarray


def measure_convergence(model: emcaps.CapsNet, variables: Any, images: jax.Array) -> Convergence:
    """Route images and measure how the class capsules' votes gather.

    Args:
        model: the network; T is the number of iterations of its class capsules.
        variables: the network's, `{"params": ...}`.
        images: `[B, height, width, channels]`, floating.
    """
    children, coordinates = class_layer_input(model, variables, images)
    votes = class_votes(
        children.poses, variables["params"]["class_caps"]["transforms"], coordinates
    )
    results = emcaps.diagnostics.results_by_iteration(model, variables, images, "class_caps")
    means = jnp.stack(
        [result.poses[:, 0, 0].reshape(len(images), 1, -1, POSE_ENTRIES) for result in results]
    )
    return Convergence(
        distances=np.asarray(jnp.linalg.norm(votes - means, axis=-1)),
        assignments=np.stack([result.assignments.reshape(votes.shape[:-1]) for result in results]),
        activations=np.stack([result.activations[:, 0, 0] for result in results]),
    )


def class_layer_input(
    model: emcaps.CapsNet, variables: Any, images: jax.Array
) -> tuple[emcaps.Capsules, np.ndarray]:
    """What the network gives to its class capsules.

    Returns:
        The last map of capsules, `[B, H, W, I, ...]`, and the coordinates that are added to their
        votes, `[H, W, 2]`, float64; zeros where the network adds none.
    """
    output: Any = model.apply(variables, images)
    last = output[1][f"conv_caps_{len(model.conv_capsules)}"]
    rows, columns = (
        emcaps.receptive_field_centers(size, model.layer_geometry()) for size in images.shape[1:3]
    )
    coordinates = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    return emcaps.Capsules(last.poses, last.activations), coordinates * model.add_coordinates


def class_votes(poses: jax.Array, transforms: jax.Array, coordinates: np.ndarray) -> jax.Array:
    """All votes for class capsules, `V_ij = pose_i @ transform_ij`, plus row and column on
    `V[0, 3]` and `V[1, 3]`.

    Args:
        poses: `[B, H, W, I, 4, 4]`, floating.
        transforms: `[I, J, 4, 4]`.
        coordinates: `[H, W, 2]`.

    Returns:
        `[B, N, J, 16]` with the children in the order row, column, type.
    """
    votes = jnp.einsum("byxipq,ijqr->byxijpr", poses, transforms)
    votes = votes.at[..., :2, 3].add(coordinates[:, :, None, None, :].astype(votes.dtype))
    return votes.reshape(len(poses), -1, transforms.shape[1], POSE_ENTRIES)
