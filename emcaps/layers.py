"""Flax modules: they own the parameters and call the functions of `routing.py`."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emcaps.checks import check_positive_int
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
            this over the number of children on the map per parent on its map. None, the paper's own cost, has no such scale.
        field_mass: the same with the children that one parent sees, per parent type: IBM's scale. Not both.
        min_variance: added to the variances.
        mass_epsilon: added to a parent's mass where it divides.
        competition, initial_assignments, damping, assignment_gradient, implementation, remat: see `conv_em_routing`.

    Raises:
        TypeError, ValueError: `num_iterations` is not an int of at least 1, or both `parent_mass` and `field_mass` are given.
    """

    num_iterations: int = 2
    inverse_temperature: float | None = 1.0
    assignment_temperature: float = 16.0
    normalize_costs: bool = True
    parent_mass: float | None = 16.0
    field_mass: float | None = None
    min_variance: float = 5e-4
    mass_epsilon: float = 1e-7
    competition: str = "all"
    initial_assignments: str = "reachable"
    damping: float = 0.0
    assignment_gradient: bool = True
    implementation: str = "streamed"
    remat: bool = False

    def __post_init__(self):
        check_positive_int("num_iterations", self.num_iterations)
        if self.parent_mass is not None and self.field_mass is not None:
            raise ValueError(f"give parent_mass or field_mass, not both; got {self.parent_mass} and {self.field_mass}")

    def mass_scale(self, field: ReceptiveField, child_types: int, parent_types: int) -> float:
        """The `mass_scale` of a layer of this geometry."""
        if self.parent_mass is not None:
            return self.parent_mass * math.prod(field.output_size) * parent_types / (math.prod(field.map_size) * child_types)
        if self.field_mass is not None:
            return self.field_mass * parent_types / (math.prod(field.kernel_size) * child_types)
        return 1.0

    def keywords(self, field: ReceptiveField, child_types: int, parent_types: int) -> dict:
        """The keyword arguments of the routing functions for a layer of this geometry."""
        inverse_temperature = self.inverse_temperature
        if inverse_temperature is not None:
            inverse_temperature = jnp.full(self.num_iterations, inverse_temperature)
        return dict(
            num_iterations=self.num_iterations,
            inverse_temperature=inverse_temperature,
            min_variance=self.min_variance,
            mass_epsilon=self.mass_epsilon,
            mass_scale=self.mass_scale(field, child_types, parent_types),
            assignment_temperature=self.assignment_temperature,
            normalize_costs=self.normalize_costs,
            competition=self.competition,
            initial_assignments=self.initial_assignments,
            damping=self.damping,
            assignment_gradient=self.assignment_gradient,
            implementation=self.implementation,
            remat=self.remat,
        )


@dataclasses.dataclass(frozen=True)
class CapsuleInit:
    """How the parameters of a capsule layer start; the defaults belong to those of `RoutingOptions`.

    Attributes:
        identity: transforms are this times the identity, so that at first parents agree with children,
        transform_stddev: + normal(0, this).
        beta_u: the mean of the cost of one unit of data and pose entry,
        beta_u_stddev: and its standard deviation.
        beta_a: the mean of a parent's threshold, in units of cost,
        beta_a_stddev: and its standard deviation.
    """

    identity: float = 1.0
    transform_stddev: float = 0.1
    beta_u: float = 0.0
    beta_u_stddev: float = 0.0
    beta_a: float = 0.0
    beta_a_stddev: float = 0.0

    def transforms(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Initialiser of transforms `[..., 4, 4]`."""
        return self.identity * jnp.eye(POSE_SIZE, dtype=dtype) + self.transform_stddev * jax.random.normal(key, shape, dtype)

    def betas(self, layer: nn.Module, num_parents: int) -> tuple[jax.Array, jax.Array]:
        """Make the parameters `beta_u` and `beta_a` `[num_parents]` of a layer that is being called."""

        def init(mean: float, stddev: float) -> Callable:
            return lambda key, shape: mean + stddev * jax.random.normal(key, shape)

        beta_u = layer.param("beta_u", init(self.beta_u, self.beta_u_stddev), (num_parents,))
        return beta_u, layer.param("beta_a", init(self.beta_a, self.beta_a_stddev), (num_parents,))


PRESETS = {
    "emcaps": (RoutingOptions(), CapsuleInit()),
    "paper": (
        RoutingOptions(
            num_iterations=3, inverse_temperature=None, assignment_temperature=1.0, normalize_costs=False, parent_mass=None
        ),
        CapsuleInit(identity=0.0, transform_stddev=0.3),
    ),
    "ibm": (
        RoutingOptions(
            num_iterations=2,
            inverse_temperature=None,
            assignment_temperature=1.0,
            normalize_costs=False,
            parent_mass=None,
            field_mass=100.0,
            min_variance=1e-9,
            mass_epsilon=1e-9,
        ),
        CapsuleInit(identity=0.0, transform_stddev=1.0, beta_a=-1000.0, beta_a_stddev=500.0),
    ),
}
"""Routing and initial values that belong together, by name. BUILD_NOTES.md says where the numbers come from."""


class PrimaryCaps(nn.Module):
    """Primary capsules: linear 1x1 convolutions of a feature map, to poses and (through a sigmoid) to activations.

    Without biases, as in the released code: this is what makes the published parameter counts.

    Attributes:
        num_capsules: capsule types, the paper's B.
        dtype: to compute in and of the capsules; None: what features and parameters promote to.
    """

    num_capsules: int
    dtype: Any = None

    @nn.compact
    def __call__(self, features: jax.Array) -> Capsules:
        """From features `[B, H, W, channels]` to capsules `[B, H, W, num_capsules, ...]`."""
        if features.ndim != 4:
            raise ValueError(f"features must have shape [B, H, W, channels]; got shape {list(features.shape)}")
        poses = nn.Conv(self.num_capsules * POSE_ENTRIES, (1, 1), use_bias=False, dtype=self.dtype, name="poses")(features)
        logits = nn.Conv(self.num_capsules, (1, 1), use_bias=False, dtype=self.dtype, name="activations")(features)
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
        capsule_init: see `CapsuleInit`.
        dtype: of children, transforms and result; None: what they promote to. Routing itself computes in at least float32.
        parent_axis: name of a mapped axis over whose devices the parent types are divided. The parameters are then those of
            the types that are here (see `partition_specs`); the result is whole on all of its devices.

    Raises:
        ValueError: the parent types cannot be divided evenly over `parent_axis`.
    """

    num_capsules: int
    kernel: int = 3
    stride: int = 1
    routing: RoutingOptions = RoutingOptions()
    capsule_init: CapsuleInit = CapsuleInit()
    dtype: Any = None
    parent_axis: str | None = None

    @nn.compact
    def __call__(self, children: Capsules) -> RoutingResult:
        """From capsules `[B, H, W, I, ...]` to the routing result of `[B, OH, OW, num_capsules, ...]`."""
        _, height, width, child_types = children.activations.shape
        field = ReceptiveField((height, width), (self.kernel, self.kernel), self.stride)
        check_covers(self.name or type(self).__name__, field)
        here = self.num_capsules // self._devices()
        shape = (self.kernel, self.kernel, child_types, here, POSE_SIZE, POSE_SIZE)
        transforms = self.param("transforms", self.capsule_init.transforms, shape)
        if self.dtype is not None:
            children, transforms = jax.tree.map(lambda array: array.astype(self.dtype), (children, transforms))
        routed = conv_em_routing(
            *children,
            transforms,
            *self.capsule_init.betas(self, here),
            stride=self.stride,
            parent_axis=self.parent_axis,
            **self.routing.keywords(field, child_types, self.num_capsules),
        )
        if self.parent_axis is None:
            return routed
        type_axes = (3, 3, 3, 3, 6)  # of the fields of a RoutingResult. Nobody pays for a field that nobody uses.
        gather = functools.partial(lax.all_gather, axis_name=self.parent_axis, tiled=True)
        return RoutingResult(*(gather(field, axis=axis) for field, axis in zip(routed, type_axes, strict=True)))

    def _devices(self) -> int:
        """Over how many devices the parent types are divided."""
        devices = 1 if self.parent_axis is None else lax.axis_size(self.parent_axis)
        if self.num_capsules % devices:
            raise ValueError(
                f"{self.name or type(self).__name__}: num_capsules must be divisible by the {devices} devices of "
                f"{self.parent_axis!r}; got {self.num_capsules}"
            )
        return devices


class ClassCaps(nn.Module):
    """Class capsules: every class sees every capsule on the map, with transforms shared by all positions (`class_em_routing`).

    Parameters: `transforms` `[I, J, 4, 4]`, `beta_u` and `beta_a` `[J]`.

    Attributes:
        num_classes: J.
        routing: see `RoutingOptions`.
        capsule_init: see `CapsuleInit`.
        add_coordinates: whether votes are told where they come from; see `class_em_routing`.
    """

    num_classes: int
    routing: RoutingOptions = RoutingOptions()
    capsule_init: CapsuleInit = CapsuleInit()
    add_coordinates: bool = True

    @nn.compact
    def __call__(self, children: Capsules, centers: tuple[np.ndarray, np.ndarray] | None = None) -> RoutingResult:
        """From capsules `[B, H, W, I, ...]` to a routing result with one position, `[B, 1, 1, num_classes, ...]`.

        Args:
            children: the last layer of convolutional capsules.
            centers: row and column coordinates `[H]`, `[W]` of the receptive field centres in the image, in [0, 1]; None takes
                the centres of the map's own cells.
        """
        _, height, width, child_types = children.activations.shape
        transforms = self.param("transforms", self.capsule_init.transforms, (child_types, self.num_classes, POSE_SIZE, POSE_SIZE))
        # Of capsules in low precision too, classes are told apart, and coordinates read, in that of the parameters.
        dtype = jnp.promote_types(children.poses.dtype, transforms.dtype)
        children = jax.tree.map(lambda array: array.astype(dtype), children)
        coordinates = None
        if self.add_coordinates:
            if centers is None:
                centers = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
            grid = np.stack(np.meshgrid(*centers, indexing="ij"), -1)
            coordinates = jnp.asarray(grid, dtype)
        field = ReceptiveField((height, width), (height, width), 1)
        return class_em_routing(
            *children,
            transforms,
            *self.capsule_init.betas(self, self.num_classes),
            coordinates=coordinates,
            **self.routing.keywords(field, child_types, self.num_classes),
        )


def check_covers(layer: str, field: ReceptiveField) -> None:
    """Raise ValueError, naming the layer, if the kernel is larger than the map it slides over."""
    if min(field.output_size) < 1:
        raise ValueError(
            f"{layer}: its input is {field.map_size[0]}x{field.map_size[1]}, too small for its "
            f"{field.kernel_size[0]}x{field.kernel_size[1]} kernel with stride {field.stride}; use larger images"
        )
