"""Flax modules: they own the parameters and call the functions of `routing.py`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from emcaps.receptive_field import ReceptiveField
from emcaps.routing import class_em_routing, conv_em_routing
from emcaps.types import POSE_ENTRIES, POSE_SIZE, Capsules, RoutingResult


@dataclasses.dataclass(frozen=True)
class RoutingOptions:
    """How the capsule layers route; the defaults are the recipe that trains (BUILD_NOTES.md has the evidence).

    Attributes:
        num_iterations: T, M-steps in each layer.
        inverse_temperature: lambda, the same in every iteration, because the costs it multiplies are normalised; None is the
            schedule of `em_routing`.
        assignment_temperature: divides log p in the E-step. 16, the number of pose entries, makes it a mean over entries.
        normalize_costs: whether costs are measured in standard deviations over the parent types at a position.
        parent_mass: the mass at which a parent's cost is computed, whatever its share of the children is: `mass_scale` is
            this over the number of children per parent. None, the paper's own cost, has no such scale.
        min_variance: added to the variances.
        mass_epsilon: added to a parent's mass where it divides.
        implementation: how votes are held, see `conv_em_routing`.
    """

    num_iterations: int = 2
    inverse_temperature: float | None = 1.0
    assignment_temperature: float = 16.0
    normalize_costs: bool = True
    parent_mass: float | None = 16.0
    min_variance: float = 5e-4
    mass_epsilon: float = 1e-7
    implementation: str = "streamed"

    def keywords(self, field: ReceptiveField, child_types: int, parent_types: int) -> dict:
        """The keyword arguments of the routing functions for a layer of this geometry."""
        children = math.prod(field.map_size) * child_types
        parents = math.prod(field.output_size) * parent_types
        inverse_temperature = self.inverse_temperature
        if inverse_temperature is not None:
            inverse_temperature = jnp.full(self.num_iterations, inverse_temperature)
        return dict(
            num_iterations=self.num_iterations,
            inverse_temperature=inverse_temperature,
            min_variance=self.min_variance,
            mass_epsilon=self.mass_epsilon,
            mass_scale=1.0 if self.parent_mass is None else self.parent_mass * parents / children,
            assignment_temperature=self.assignment_temperature,
            normalize_costs=self.normalize_costs,
            implementation=self.implementation,
        )


def near_identity(stddev: float = 0.02) -> Callable:
    """Initialiser of `[..., 4, 4]` transforms: identity + normal(0, stddev), so that at first parents agree with children."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.eye(POSE_SIZE, dtype=dtype) + stddev * jax.random.normal(key, shape, dtype)

    return init


class PrimaryCaps(nn.Module):
    """Primary capsules: linear 1x1 convolutions of a feature map, to poses and (through a sigmoid) to activations.

    Without biases, as in the released code: this is what makes the published parameter counts.

    Attributes:
        num_capsules: capsule types, the paper's B.
    """

    num_capsules: int

    @nn.compact
    def __call__(self, features: jax.Array) -> Capsules:
        """From features `[B, H, W, channels]` to capsules `[B, H, W, num_capsules, ...]`."""
        if features.ndim != 4:
            raise ValueError(f"features must have shape [B, H, W, channels]; got shape {list(features.shape)}")
        poses = nn.Conv(self.num_capsules * POSE_ENTRIES, (1, 1), use_bias=False, name="poses")(features)
        logits = nn.Conv(self.num_capsules, (1, 1), use_bias=False, name="activations")(features)
        poses = poses.reshape(*features.shape[:3], self.num_capsules, POSE_SIZE, POSE_SIZE)
        return Capsules(poses, jax.nn.sigmoid(logits))


class ConvCaps(nn.Module):
    """Convolutional capsules: EM routing from `kernel x kernel` patches of child capsules (`conv_em_routing`).

    Parameters: `transforms` `[K, K, I, J, 4, 4]`, `beta_u` and `beta_a` `[J]`.

    Attributes:
        num_capsules: parent types J.
        kernel: K.
        stride: in rows and columns.
        routing: see `RoutingOptions`.
        transform_init: initialiser of the transforms.
    """

    num_capsules: int
    kernel: int = 3
    stride: int = 1
    routing: RoutingOptions = RoutingOptions()
    transform_init: Callable = near_identity()

    @nn.compact
    def __call__(self, children: Capsules) -> RoutingResult:
        """From capsules `[B, H, W, I, ...]` to the routing result of `[B, OH, OW, num_capsules, ...]`."""
        _, height, width, child_types = children.activations.shape
        field = ReceptiveField((height, width), (self.kernel, self.kernel), self.stride)
        check_covers(self.name or type(self).__name__, field)
        shape = (self.kernel, self.kernel, child_types, self.num_capsules, POSE_SIZE, POSE_SIZE)
        return conv_em_routing(
            *children,
            self.param("transforms", self.transform_init, shape),
            self.param("beta_u", nn.initializers.zeros, (self.num_capsules,)),
            self.param("beta_a", nn.initializers.zeros, (self.num_capsules,)),
            stride=self.stride,
            **self.routing.keywords(field, child_types, self.num_capsules),
        )


class ClassCaps(nn.Module):
    """Class capsules: every class sees every capsule on the map, with transforms shared by all positions and coordinate addition
    (`class_em_routing`).

    Parameters: `transforms` `[I, J, 4, 4]`, `beta_u` and `beta_a` `[J]`.

    Attributes:
        num_classes: J.
        routing: see `RoutingOptions`.
        transform_init: initialiser of the transforms.
    """

    num_classes: int
    routing: RoutingOptions = RoutingOptions()
    transform_init: Callable = near_identity()

    @nn.compact
    def __call__(self, children: Capsules, centers: tuple[np.ndarray, np.ndarray] | None = None) -> RoutingResult:
        """From capsules `[B, H, W, I, ...]` to a routing result with one position, `[B, 1, 1, num_classes, ...]`.

        Args:
            children: the last layer of convolutional capsules.
            centers: row and column coordinates `[H]`, `[W]` of the receptive field centres in the image, in [0, 1]; None takes
                the centres of the map's own cells.
        """
        _, height, width, child_types = children.activations.shape
        if centers is None:
            centers = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        rows, columns = centers
        coordinates = jnp.stack(jnp.meshgrid(jnp.asarray(rows), jnp.asarray(columns), indexing="ij"), -1)
        field = ReceptiveField((height, width), (height, width), 1)
        return class_em_routing(
            *children,
            self.param("transforms", self.transform_init, (child_types, self.num_classes, POSE_SIZE, POSE_SIZE)),
            self.param("beta_u", nn.initializers.zeros, (self.num_classes,)),
            self.param("beta_a", nn.initializers.zeros, (self.num_classes,)),
            coordinates=coordinates.astype(children.poses.dtype),
            **self.routing.keywords(field, child_types, self.num_classes),
        )


def check_covers(layer: str, field: ReceptiveField) -> None:
    """Raise ValueError, naming the layer, if the kernel is larger than the map it slides over."""
    if min(field.output_size) < 1:
        raise ValueError(
            f"{layer}: its input is {field.map_size[0]}x{field.map_size[1]}, too small for its "
            f"{field.kernel_size[0]}x{field.kernel_size[1]} kernel with stride {field.stride}; use larger images"
        )
