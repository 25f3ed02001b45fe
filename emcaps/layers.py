"""Flax modules: they own the parameters and call the functions of `routing.py`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer
from jax import lax

from emcaps.checks import (
    check_axis,
    check_bool,
    check_dtype,
    check_positive_int,
    check_range,
    check_shapes,
)
from emcaps.initializers import NearIdentity
from emcaps.options import TRAINABLE, RoutingOptions
from emcaps.precision import common_dtype
from emcaps.routing import class_em_routing, conv_em_routing
from emcaps.sharding import gather_shards
from emcaps.types import POSE_ENTRIES, POSE_SIZE, Capsules, RoutingResult


class PrimaryCaps(nn.Module):
    """Primary capsules: linear 1x1 convolutions of a feature map, to poses and (through a sigmoid)
    to activations.

    Without biases, as in the released code: this is what makes the published parameter counts.

    Attributes:
        num_capsules: capsule types, the paper's B.
        dtype: to compute in and of the capsules; None: what features and parameters promote to.
        param_dtype: of the parameters.
    """

    num_capsules: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> Capsules:
        """From features `[B, H, W, channels]`, floating, to capsules
        `[B, H, W, num_capsules, ...]`.

        Raises:
            TypeError, ValueError: features are of another rank, empty, or not floating point; or an
                attribute is not as above.
        """
        check_shapes({"features": (features, "B H W channels")})
        check_positive_int("num_capsules", self.num_capsules)
        check_dtype("dtype", self.dtype)
        check_dtype("param_dtype", self.param_dtype, required=True)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear = functools.partial(nn.Conv, kernel_size=(1, 1), use_bias=False, **dtypes)
        poses = linear(self.num_capsules * POSE_ENTRIES, name="poses")(features)
        logits = linear(self.num_capsules, name="activations")(features)
        poses = poses.reshape(*features.shape[:3], self.num_capsules, POSE_SIZE, POSE_SIZE)
        return Capsules(poses, jax.nn.sigmoid(logits))


class ConvCaps(nn.Module):
    """Convolutional capsules: EM routing from `kernel x kernel` patches of child capsules
    (`conv_em_routing`).

    Parameters: `transforms` `[K, K, I, J, 4, 4]`, `beta_u` and `beta_a` `[J]`, and those of
    temperatures that are learned.

    Attributes:
        num_capsules: parent types J.
        kernel: K.
        stride: in rows and columns.
        routing: see `RoutingOptions`; by default with one iteration.
        transform_init: initializer of the transforms.
        beta_u_init, beta_a_init: of the cost of one unit of data and pose entry, and of a parent's
            threshold, in units of cost.
        dtype: of children, transforms and result; None: what they promote to. Routing itself
            computes in at least float32.
        param_dtype: of the parameters.
        parent_axis: name of a mapped axis over whose devices the parent types are divided. The
            parameters are then those of the types that are here; the result is whole on all of its
            devices. Initialize without an axis, and divide the parameters: initialized by the same
            key on each device, all would have the same types. `partition_specs` says how, of the
            layers of a `CapsNet`.

    Raises:
        TypeError, ValueError: when called: an attribute is not as above, children are no `Capsules`
            on a map, their map is smaller than the kernel, or the parent types cannot be divided
            evenly over `parent_axis`.
    """

    num_capsules: int
    kernel: int = 3
    stride: int = 1
    routing: RoutingOptions = dataclasses.replace(TRAINABLE, num_iterations=1)
    transform_init: Initializer = NearIdentity()
    beta_u_init: Initializer = nn.initializers.zeros
    beta_a_init: Initializer = nn.initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32
    parent_axis: str | None = None

    @nn.compact
    def __call__(self, children: Capsules) -> RoutingResult:
        """From capsules `[B, H, W, I, ...]` to the routing result of
        `[B, OH, OW, num_capsules, ...]`.
        """
        sizes = check_capsules("children", children)
        check_positive_int("num_capsules", self.num_capsules)
        check_routing(self.routing)
        check_parameters(self)
        check_dtype("dtype", self.dtype)
        check_axis("parent_axis", self.parent_axis)
        check_kernel(
            self.name or type(self).__name__, (sizes["H"], sizes["W"]), self.kernel, self.stride
        )
        here = self.num_capsules // self._devices()
        shape = (self.kernel, self.kernel, sizes["I"], here, POSE_SIZE, POSE_SIZE)
        transforms, *betas = _parameters(self, shape, here)
        if self.dtype is not None:
            children, transforms = jax.tree.map(
                lambda array: array.astype(self.dtype), (children, transforms)
            )
        routed = conv_em_routing(
            *children,
            transforms,
            *betas,
            stride=self.stride,
            parent_axis=self.parent_axis,
            options=_learned_routing(self),
        )
        if self.parent_axis is None:
            return routed
        # Of the fields of a RoutingResult. Nobody pays for a field that nobody uses.
        type_axes = (3, 3, 3, 3, 6)
        gathered = (
            gather_shards(field, self.parent_axis, axis)
            for field, axis in zip(routed, type_axes, strict=True)
        )
        return RoutingResult(*gathered)

    def _devices(self) -> int:
        """Over how many devices the parent types are divided."""
        devices = 1 if self.parent_axis is None else lax.axis_size(self.parent_axis)
        if self.num_capsules % devices:
            raise ValueError(
                f"{self.name or type(self).__name__}: num_capsules must be divisible by the "
                f"{devices} devices of {self.parent_axis!r}; got {self.num_capsules}"
            )
        return devices


class ClassCaps(nn.Module):
    """Class capsules: every class sees every capsule on the map, with transforms shared by all
    positions (`class_em_routing`).

    Parameters: `transforms` `[I, J, 4, 4]`, `beta_u` and `beta_a` `[J]`, and those of temperatures
    that are learned.

    Attributes:
        num_classes: J.
        routing: see `RoutingOptions`.
        transform_init, beta_u_init, beta_a_init: as of `ConvCaps`.
        add_coordinates: whether votes are told where they come from; see `class_em_routing`.
        param_dtype: of the parameters.

    Raises:
        TypeError, ValueError: when called; see `__call__`.
    """

    num_classes: int
    routing: RoutingOptions = TRAINABLE
    transform_init: Initializer = NearIdentity()
    beta_u_init: Initializer = nn.initializers.zeros
    beta_a_init: Initializer = nn.initializers.zeros
    add_coordinates: bool = True
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, children: Capsules, centers: tuple[np.ndarray, np.ndarray] | None = None
    ) -> RoutingResult:
        """From capsules `[B, H, W, I, ...]` to a routing result with one position,
        `[B, 1, 1, num_classes, ...]`.

        Args:
            children: the last layer of convolutional capsules.
            centers: row and column coordinates `[H]`, `[W]` of the receptive field centers in the
                image, floating NumPy arrays in [0, 1]; None takes the centers of the map's own
                cells.

        Raises:
            TypeError, ValueError: capsules, centers or an attribute of the layer are not as
                described.
        """
        sizes = check_capsules("children", children)
        check_positive_int("num_classes", self.num_classes)
        check_routing(self.routing)
        check_parameters(self)
        check_bool("add_coordinates", self.add_coordinates)
        height, width, child_types = sizes["H"], sizes["W"], sizes["I"]
        shape = (child_types, self.num_classes, POSE_SIZE, POSE_SIZE)
        transforms, *betas = _parameters(self, shape, self.num_classes)
        # Of capsules in low precision too, classes are told apart, and coordinates read, in that of
        # the parameters.
        dtype = common_dtype(*children, transforms)
        children = jax.tree.map(lambda array: array.astype(dtype), children)
        if centers is None:
            centers = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        grid = _grid(centers, height, width)
        coordinates = jnp.asarray(grid, dtype) if self.add_coordinates else None
        return class_em_routing(
            *children,
            transforms,
            *betas,
            coordinates=coordinates,
            options=_learned_routing(self),
        )


def _parameters(
    layer: Any, shape: tuple[int, ...], num_parents: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Make transforms of this shape, and `beta_u` and `beta_a` `[num_parents]`, of a capsule layer
    that is being called.
    """
    return (
        layer.param("transforms", layer.transform_init, shape, layer.param_dtype),
        layer.param("beta_u", layer.beta_u_init, (num_parents,), layer.param_dtype),
        layer.param("beta_a", layer.beta_a_init, (num_parents,), layer.param_dtype),
    )


def _learned_routing(layer: Any) -> RoutingOptions:
    """How a layer that is being called routes: its parameters for temperatures are made here."""

    def theta(name: str) -> jax.Array:
        return layer.param(f"{name}_log", nn.initializers.zeros, (), layer.param_dtype)

    return layer.routing.learned({f"{name}_log": theta(name) for name in layer.routing.learns()})


def check_routing(routing: Any) -> None:
    """Raise TypeError unless this is a record of options, which has been checked when made."""
    if not isinstance(routing, RoutingOptions):
        raise TypeError(f"routing must be RoutingOptions; got {type(routing).__name__}")


def check_parameters(layer: Any) -> None:
    """Raise TypeError unless a layer's attributes say how its parameters start and their dtype."""
    for name in ("transform_init", "beta_u_init", "beta_a_init"):
        if not callable(initializer := getattr(layer, name)):
            raise TypeError(
                f"{name} must be an initializer, called with key, shape and dtype; got "
                f"{initializer!r}"
            )
    check_dtype("param_dtype", layer.param_dtype, required=True)


def _grid(centers: tuple[np.ndarray, np.ndarray], height: int, width: int) -> np.ndarray:
    """The coordinates `[H, W, 2]` of all positions, from those of rows and of columns."""
    if not isinstance(centers, tuple | list) or len(centers) != 2:
        raise TypeError(
            "centers must be a pair of arrays, of rows and of columns; got "
            f"{type(centers).__name__}"
        )
    for name, array, size in zip(("rows", "columns"), centers, (height, width), strict=True):
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
            raise TypeError(
                f"centers of {name} must be a NumPy array of floating point numbers; got "
                f"{type(array).__name__}"
            )
        if array.shape != (size,):
            raise ValueError(
                f"centers of {name} must have shape [{size}]; got shape {list(array.shape)}"
            )
        check_range(f"centers of {name}", array, 0, 1)
    return np.stack(np.meshgrid(*centers, indexing="ij"), -1)


def check_kernel(layer: str, map_size: Sequence[int], kernel: int, stride: int) -> None:
    """Raise, naming the layer, unless these are the side and the stride of a kernel no larger than
    the map.
    """
    check_positive_int(f"kernel of {layer}", kernel)
    check_positive_int(f"stride of {layer}", stride)
    height, width = map_size
    if kernel > min(height, width):
        raise ValueError(
            f"{layer}: its input is {height}x{width}, too small for its {kernel}x{kernel} kernel "
            f"with stride {stride}; use larger images"
        )


def check_image_kernel(layer: str, shape: Sequence[int], kernel: int, stride: int) -> None:
    """`check_kernel` of the layer that sees images `[B, H, W, channels]`; of channels that seem to
    come first, the error asks.
    """
    try:
        check_kernel(layer, shape[1:3], kernel, stride)
    except ValueError as error:
        if shape[1] < kernel <= min(shape[2:]):
            order = "do channels come first? They must be last, [B, height, width, channels]"
            raise ValueError(f"{error}; images have shape {list(shape)}: {order}") from error
        raise


def check_capsules(name: str, capsules: Any) -> dict[str, int]:
    """Raise unless `capsules` are `Capsules` on a map, `[B, H, W, I, ...]`; return the size of each
    letter.
    """
    if not isinstance(capsules, Capsules):
        raise TypeError(
            f"{name} must be Capsules(poses, activations); got {type(capsules).__name__}"
        )
    shapes = {
        f"{name}.poses": (capsules.poses, "B H W I 4 4"),
        f"{name}.activations": (capsules.activations, "B H W I"),
    }
    return check_shapes(shapes)
