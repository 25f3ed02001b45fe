"""Between the public arrays, batch-first, and the inner layout of `votes.py`.

`inner_...` brings arguments in, `outer_...` brings results out. Backward passes go through the
transposes of both.
"""

import math
from typing import NamedTuple

import jax

from emcaps.procedure import Parents
from emcaps.receptive_field import ReceptiveField
from emcaps.types import POSE_SIZE, RoutingResult


def inner_children(
    poses: jax.Array, activations: jax.Array, field: ReceptiveField
) -> tuple[jax.Array, jax.Array]:
    """Gather the children of every patch: `[B, H, W, I, 4, Q]` and `[B, H, W, I]` to `[N, 4, Q, M]`
    and `[N, M]`.
    """
    seen_poses = field.gather(poses.transpose(3, 4, 5, 1, 2, 0))  # [KH, KW, I, 4, Q, OH, OW, B]
    seen_activations = field.gather(activations.transpose(3, 1, 2, 0))  # [KH, KW, I, OH, OW, B]
    num_children = math.prod(seen_activations.shape[:3])
    return (
        seen_poses.reshape(num_children, *poses.shape[-2:], -1),
        seen_activations.reshape(num_children, -1),
    )


def inner_children_transpose(
    to_poses: jax.Array, to_activations: jax.Array, field: ReceptiveField
) -> tuple[jax.Array, jax.Array]:
    """The transpose of `inner_children`: for each child the sum over the patches that see it."""
    kernel, positions = (
        field.kernel_size,
        (*field.output_size, to_activations.shape[-1] // math.prod(field.output_size)),
    )
    types = to_activations.shape[0] // math.prod(kernel)
    to_poses = field.scatter_sum(
        to_poses.reshape(*kernel, types, *to_poses.shape[1:-1], *positions)
    )
    to_activations = field.scatter_sum(to_activations.reshape(*kernel, types, *positions))
    return to_poses.transpose(5, 3, 4, 0, 1, 2), to_activations.transpose(3, 1, 2, 0)


def inner_transforms(transforms: jax.Array) -> jax.Array:
    """`[KH, KW, I, J, Q, 4]` to `[N, Q, 4, J]`."""
    return transforms.transpose(0, 1, 2, 4, 5, 3).reshape(
        -1, transforms.shape[-2], POSE_SIZE, transforms.shape[3]
    )


def inner_transforms_transpose(to_transforms: jax.Array, field: ReceptiveField) -> jax.Array:
    """The transpose of `inner_transforms`."""
    types = to_transforms.shape[0] // math.prod(field.kernel_size)
    return to_transforms.reshape(*field.kernel_size, types, *to_transforms.shape[1:]).transpose(
        0, 1, 2, 5, 3, 4
    )


class OuterResult(NamedTuple):
    """A routing's result, batch-first, as a linear function of what `em.route` gives: all but the
    activations.

    Attributes:
        poses: `[B, OH, OW, J, 4, 4]`.
        variances: `[B, OH, OW, J, 4, 4]`.
        activation_logits: `[B, OH, OW, J]`.
        assignments: `[B, OH, OW, KH, KW, I, J]`.
    """

    poses: jax.Array
    variances: jax.Array
    activation_logits: jax.Array
    assignments: jax.Array

    def with_activations(self) -> RoutingResult:
        """The result as it is public."""
        return RoutingResult(activations=jax.nn.sigmoid(self.activation_logits), **self._asdict())


def outer_result(parents: Parents, assignments: jax.Array, field: ReceptiveField) -> OuterResult:
    """Bring a result out of the inner layout."""
    size = assignments.shape[-1] // math.prod(field.output_size)
    positions = (*field.output_size, size)

    def outer_poses(array):  # [4, 4, J, M]
        return array.reshape(*array.shape[:3], *positions).transpose(5, 3, 4, 2, 0, 1)

    types = assignments.shape[0] // math.prod(field.kernel_size)
    assignments = assignments.reshape(*field.kernel_size, types, -1, *positions)
    return OuterResult(
        poses=outer_poses(parents.means),
        variances=outer_poses(parents.variances),
        activation_logits=parents.logits.reshape(-1, *positions).transpose(3, 1, 2, 0),
        assignments=assignments.transpose(6, 4, 5, 0, 1, 2, 3),
    )


def outer_result_transpose(gradient: OuterResult) -> tuple[Parents, jax.Array]:
    """The transpose of `outer_result`, for the parents and the assignments."""

    def inner_poses(array):
        return array.transpose(4, 5, 3, 1, 2, 0).reshape(POSE_SIZE, POSE_SIZE, array.shape[3], -1)

    logits, assignments = gradient.activation_logits, gradient.assignments
    num_types = logits.shape[-1]
    parents = Parents(
        means=inner_poses(gradient.poses),
        variances=inner_poses(gradient.variances),
        logits=logits.transpose(3, 1, 2, 0).reshape(num_types, -1),
    )
    num_children = math.prod(assignments.shape[3:6])
    return parents, assignments.transpose(3, 4, 5, 6, 1, 2, 0).reshape(num_children, num_types, -1)
