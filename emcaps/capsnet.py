"""The whole network: convolution, primary capsules, convolutional capsules, class capsules."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer
from jax.sharding import PartitionSpec

from emcaps.checks import (
    check_axis,
    check_bool,
    check_dtype,
    check_positive_int,
    check_shapes,
    check_sizes,
)
from emcaps.initializers import NearIdentity
from emcaps.layers import (
    ClassCaps,
    ConvCaps,
    PrimaryCaps,
    check_image_kernel,
    check_parameters,
    check_routing,
)
from emcaps.options import RoutingOptions
from emcaps.receptive_field import receptive_field_centers
from emcaps.types import Capsules


class CapsNet(nn.Module):
    """The network of the paper's section 4, for images of any size and number of channels.

    A convolution with ReLU, 5x5 with stride 2; primary capsules; convolutional capsules, 3x3, the
    first with stride 2 and the others with stride 1; class capsules. No padding anywhere. The
    paper's A, B, C, D are `conv_channels`, `primary_capsules` and `conv_capsules`; its networks are
    32/32/32/32 (316,650 parameters for 2 channels and 5 classes) and 64/8/16/16 (68,618), the
    default; each temperature that is learned adds one.

    `print(model.tabulate(jax.random.key(0), images))` shows all layers, what they give, and how
    many parameters they have.

    Attributes:
        num_classes: class capsules.
        conv_channels: of the first convolution.
        primary_capsules: primary capsule types.
        conv_capsules: capsule types of each convolutional capsule layer.
        routing: how all capsule layers route; or one for each of them, the class capsules last.
            None: as `ConvCaps` and `ClassCaps` do by default, with one iteration and with two.
            `RoutingOptions(...)` is for all layers, also where one field of it is changed; to
            change a field of the default, change it in each of `layer_routing()`.
        transform_init, beta_u_init, beta_a_init: how the capsule layers' parameters start, see
            `ConvCaps`.
        add_coordinates: whether the class capsules' votes are told where they come from.
        dtype: of all that is below the class capsules; None: what images and parameters promote to.
            Class capsules are in what that and the parameters promote to, and routing computes in
            at least float32.
        param_dtype: of all parameters.
        conv_kernel, conv_stride: of the first convolution.
        capsule_kernels: of each convolutional capsule layer; None: 3 of each.
        capsule_strides: of each convolutional capsule layer; None: 2 of the first and 1 of the
            others.
        parent_axis: name of a mapped axis over whose devices the parent types of the convolutional
            capsules are divided; the parameters are then divided by `partition_specs`. The rest,
            and all results, are the same on all of its devices.

    Raises:
        TypeError, ValueError: when called: an attribute is not as above, or `routing`,
            `capsule_kernels` or `capsule_strides` have another length than there are layers for
            them.
    """

    num_classes: int
    conv_channels: int = 64
    primary_capsules: int = 8
    conv_capsules: tuple[int, ...] = (16, 16)
    routing: RoutingOptions | tuple[RoutingOptions, ...] | None = None
    transform_init: Initializer = NearIdentity()
    beta_u_init: Initializer = nn.initializers.zeros
    beta_a_init: Initializer = nn.initializers.zeros
    add_coordinates: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    conv_kernel: int = 5
    conv_stride: int = 2
    capsule_kernels: tuple[int, ...] | None = None
    capsule_strides: tuple[int, ...] | None = None
    parent_axis: str | None = None

    def layer_names(self) -> tuple[str, ...]:
        """The name of each capsule layer, among parameters and intermediates, the class capsules
        last.
        """
        return (
            *(f"conv_caps_{number}" for number in range(1, len(self.conv_capsules) + 1)),
            "class_caps",
        )

    def layer_routing(self) -> tuple[RoutingOptions, ...]:
        """How each capsule layer routes, the class capsules last.

        Raises:
            TypeError, ValueError: `routing` is neither None nor a record, nor as many as layers.
        """
        num_layers = len(self.conv_capsules) + 1
        if self.routing is None:
            return (ConvCaps.routing,) * (num_layers - 1) + (ClassCaps.routing,)
        if isinstance(self.routing, RoutingOptions):
            return (self.routing,) * num_layers
        expected = f"routing must be one RoutingOptions, or {num_layers} for as many layers"
        if not isinstance(self.routing, tuple | list):
            raise TypeError(f"{expected}; got {type(self.routing).__name__}")
        if len(self.routing) != num_layers:
            raise ValueError(f"{expected}; got {len(self.routing)}")
        return tuple(self.routing)

    def layer_geometry(self) -> list[tuple[int, int]]:
        """`(kernel, stride)` of each layer below the class capsules, from the image up.

        Raises:
            TypeError, ValueError: `capsule_kernels` or `capsule_strides` are not as many positive
                ints as there are convolutional capsule layers.
        """
        number = len(self.conv_capsules)
        kernels = (3,) * number if self.capsule_kernels is None else self.capsule_kernels
        strides = (
            (2, *(1,) * (number - 1))[:number]
            if self.capsule_strides is None
            else self.capsule_strides
        )
        check_sizes("capsule_kernels", kernels, number)
        check_sizes("capsule_strides", strides, number)
        return [(self.conv_kernel, self.conv_stride), (1, 1), *zip(kernels, strides, strict=True)]

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[Capsules, dict[str, Any]]:
        """The class capsules of images, and what each layer gave.

        Args:
            images: `[B, height, width, channels]`, floating.

        Returns:
            The class capsules, poses `[B, num_classes, 4, 4]` and activations `[B, num_classes]`;
            and the intermediates, what each layer gave, by name, in the order of the data: `conv`
            (features), `primary` (`Capsules`), `conv_caps_1` and so on, and `class_caps` (each a
            `RoutingResult`).

        Raises:
            ValueError: images have a wrong rank, or are too small for a layer, which the message
                names.
            TypeError: images are not floating point.
        """
        check_shapes({"images": (images, "B height width channels")})
        check_positive_int("num_classes", self.num_classes)
        check_positive_int("conv_channels", self.conv_channels)
        check_positive_int("primary_capsules", self.primary_capsules)
        check_sizes("conv_capsules", self.conv_capsules)
        check_positive_int("conv_kernel", self.conv_kernel)
        check_positive_int("conv_stride", self.conv_stride)
        for routing in self.layer_routing():
            check_routing(routing)
        check_parameters(self)
        check_bool("add_coordinates", self.add_coordinates)
        check_dtype("dtype", self.dtype)
        check_axis("parent_axis", self.parent_axis)
        geometry = self.layer_geometry()
        out: dict[str, Any] = {}

        kernel, stride = geometry[0]
        check_image_kernel("conv", images.shape, kernel, stride)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = nn.Conv(
            self.conv_channels, (kernel, kernel), stride, padding="VALID", name="conv", **dtypes
        )
        out["conv"] = nn.relu(conv(images))
        capsules = out["primary"] = PrimaryCaps(self.primary_capsules, name="primary", **dtypes)(
            out["conv"]
        )

        init = {
            name: getattr(self, name) for name in ("transform_init", "beta_u_init", "beta_a_init")
        }
        *names, class_name = self.layer_names()
        *conv_routing, class_routing = self.layer_routing()
        layers = zip(names, self.conv_capsules, geometry[2:], conv_routing, strict=True)
        for name, num_capsules, (kernel, stride), routing in layers:
            layer = ConvCaps(
                num_capsules,
                kernel,
                stride,
                routing,
                **init,
                **dtypes,
                parent_axis=self.parent_axis,
                name=name,
            )
            out[name] = layer(capsules)
            capsules = Capsules(out[name].poses, out[name].activations)

        rows, columns = (receptive_field_centers(size, geometry) for size in images.shape[1:3])
        class_caps = ClassCaps(
            self.num_classes,
            class_routing,
            add_coordinates=self.add_coordinates,
            param_dtype=self.param_dtype,
            name=class_name,
            **init,
        )
        classes = out[class_name] = class_caps(capsules, (rows, columns))
        return Capsules(classes.poses[:, 0, 0], classes.activations[:, 0, 0]), out


def partition_specs(tree: Any, parent_axis: str) -> Any:
    """How the parameters of a `CapsNet` with this `parent_axis` are divided over its devices: a
    tree of `PartitionSpec`.

    Inside `jax.shard_map`, as it is by default, a device that differentiates the network's loss,
    the same on all devices of the axis, finds the gradient of its own share of the divided
    parameters, and the whole gradient of all others.

    With `check_vma=False`, and in `jax.pmap`, it differentiates its own loss, but what it finds is
    the gradient of the sum over all devices. Of a mean over them, and so of the network's loss, the
    gradient of a divided parameter is then what a device finds, divided by their number, and that
    of any other parameter the mean over them.

    Args:
        tree: the parameters, or a tree with branches like them: a gradient, an optimizer's state.
            Everything else is not divided.
        parent_axis: the name of the axis.

    Raises:
        TypeError: `parent_axis` is not a string.
    """
    if not isinstance(parent_axis, str):
        raise TypeError(f"parent_axis must be the name of an axis; got {parent_axis!r}")
    type_axis = {"transforms": 3, "beta_u": 0, "beta_a": 0}

    def spec(path: tuple[Any, ...], _: Any) -> PartitionSpec:
        names = [str(getattr(entry, "key", "")) for entry in path]
        if len(names) < 2 or not names[-2].startswith("conv_caps_") or names[-1] not in type_axis:
            return PartitionSpec()
        return PartitionSpec(*[None] * type_axis[names[-1]], parent_axis)

    return jax.tree_util.tree_map_with_path(spec, tree)


def check_network(model: Any, variables: Any, images: Any) -> None:
    """Raise unless `model` is a `CapsNet`, and `variables` have the parameters that it has for
    images of this shape.
    """
    if not isinstance(model, CapsNet):
        raise TypeError(f"model must be a CapsNet; got {type(model).__name__}")
    if not isinstance(variables, Mapping) or "params" not in variables:
        keys = f"keys {sorted(map(str, variables))}" if isinstance(variables, Mapping) else ""
        raise TypeError(
            'variables must be a mapping with "params", as model.init returns it; '
            f"got {keys or type(variables).__name__}"
        )
    check_shapes({"images": (images, "B height width channels")})
    expected = _shapes(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    given = _shapes(variables["params"])
    for path in expected | given:
        if expected.get(path) != given.get(path):
            wanted, got = (
                "none" if shape is None else f"shape {list(shape)}"
                for shape in (expected.get(path), given.get(path))
            )
            raise ValueError(
                f"variables must be those of the model for these images; params{path}: expected "
                f"{wanted}, got {got}"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a tree, by its path."""
    return {
        jax.tree_util.keystr(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
