"""Vector capsules as Flax modules: the network of "Dynamic Routing Between Capsules" (Sabour,
Frosst, Hinton 2017).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emcaps.checks import check_positive_int, check_shapes
from emcaps.dynamic.routing import DynamicRoutingResult, class_dynamic_routing, squash
from emcaps.layers import check_image_kernel, check_kernel
from emcaps.types import Capsules

TRANSFORM_STDDEV = 0.1  # of the released code


class StridedConv(nn.Module):
    """A convolution without padding, with the parameters and values of `nn.Conv`, whose gradient is
    fast on a CPU too.

    It computes in the images' dtype, and convolves blocks of stride x stride pixels, taken for
    channels, one at a time. (XLA's CPU takes several times as long for the gradient by the input of
    a convolution that skips pixels.)

    Attributes:
        features: channels of the result.
        kernel: side of the kernel.
        stride: in both directions.
    """

    features: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """From `[B, H, W, channels]`, floating, at least as large as the kernel, to
        `[B, OH, OW, features]`.
        """
        batch, *sides, channels = images.shape
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (self.kernel, self.kernel, channels, self.features),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))

        # Of a block; of the kernel, in blocks.
        size, blocks = self.stride, -(-self.kernel // self.stride)
        rows, columns = ((side - self.kernel) // size + blocks for side in sides)
        seen = [
            (0, number * size - side, 0)
            for number, side in zip((rows, columns), sides, strict=True)
        ]
        images = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *seen, (0, 0, 0)])
        # An axis at a time, as sharded arrays ask for.
        images = images.reshape(batch, rows, size, columns * size, channels)
        images = images.reshape(batch, rows, size, columns, size, channels).transpose(
            0, 1, 3, 2, 4, 5
        )
        rest = (0, blocks * size - self.kernel)
        kernel = jnp.pad(kernel.astype(images.dtype), (rest, rest, (0, 0), (0, 0)))
        kernel = kernel.reshape(blocks, size, blocks, size, channels, self.features).transpose(
            0, 2, 1, 3, 4, 5
        )

        depth = size * size * channels
        convolved = jax.lax.conv_general_dilated(
            images.reshape(batch, rows, columns, depth),
            kernel.reshape(blocks, blocks, depth, self.features),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return convolved + bias.astype(images.dtype)[None, None, None]


class PrimaryVectorCaps(nn.Module):
    """Primary capsules: a convolution whose channels, `size` at a time, are vectors, squashed.

    Attributes:
        num_capsules: capsule types.
        size: entries of a vector.
        kernel: of the convolution.
        stride: of the convolution.
    """

    num_capsules: int = 32
    size: int = 8
    kernel: int = 9
    stride: int = 2

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """From features `[B, H, W, channels]`, floating, to vectors
        `[B, OH, OW, num_capsules, size]`.

        Raises TypeError or ValueError for other features, or an attribute that is no int of at
        least 1; ValueError where the kernel is larger than the map.
        """
        check_shapes({"features": (features, "B H W channels")})
        check_positive_int("num_capsules", self.num_capsules)
        check_positive_int("size", self.size)
        check_kernel(
            self.name or type(self).__name__, features.shape[1:3], self.kernel, self.stride
        )
        conv = StridedConv(self.num_capsules * self.size, self.kernel, self.stride, name="conv")
        vectors = conv(features)
        return squash(vectors.reshape(*vectors.shape[:3], self.num_capsules, self.size))


class VectorClassCaps(nn.Module):
    """Class capsules: every class sees every capsule, each child with a transform of its own
    (`class_dynamic_routing`).

    Parameter: `transforms` `[N, J, child's size, size]`.

    Attributes:
        num_classes: J.
        size: entries of a vector.
        num_iterations: of the routing.
    """

    num_classes: int
    size: int = 16
    num_iterations: int = 3

    @nn.compact
    def __call__(self, children: jax.Array) -> DynamicRoutingResult:
        """From vectors `[B, N, D]`, floating, to the routing result of `[B, num_classes, size]`.

        Raises TypeError or ValueError for other children, or an attribute that is no int of at
        least 1.
        """
        sizes = check_shapes({"children": (children, "B N D")})
        for name in ("num_classes", "size", "num_iterations"):
            check_positive_int(name, getattr(self, name))
        shape = (sizes["N"], self.num_classes, sizes["D"], self.size)
        transforms = self.param("transforms", nn.initializers.normal(TRANSFORM_STDDEV), shape)
        return class_dynamic_routing(
            children, transforms.astype(children.dtype), num_iterations=self.num_iterations
        )


class DynamicCapsNet(nn.Module):
    """That paper's network, for images of any size and number of channels.

    A 9x9 convolution with ReLU; primary capsules, 9x9 with stride 2; class capsules. No padding
    anywhere. With the defaults, 28x28 images of one channel and 10 classes there are 6,804,224
    parameters, and 8,215,568 with `Decoder`.

    Attributes:
        num_classes: class capsules.
        conv_channels: of the first convolution.
        primary_capsules: primary capsule types.
        primary_size: entries of their vectors.
        class_size: entries of the class capsules' vectors.
        num_iterations: of the routing.

    Raises:
        TypeError, ValueError: when called: an attribute is not an int of at least 1.
    """

    num_classes: int
    conv_channels: int = 256
    primary_capsules: int = 32
    primary_size: int = 8
    class_size: int = 16
    num_iterations: int = 3

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[Capsules, dict[str, Any]]:
        """Classify images.

        Args:
            images: `[B, height, width, channels]`, floating.

        Returns:
            The class capsules, vectors `[B, num_classes, class_size]` and their lengths
            `[B, num_classes]`; and the intermediates, by name, in the order of the data: `conv`
            (features), `primary` (vectors), `class_caps` (`DynamicRoutingResult`).

        Raises:
            ValueError: images have a wrong rank, or are too small for a layer, which the message
                names.
            TypeError: images are not floating point.
        """
        check_shapes({"images": (images, "B height width channels")})
        out: dict[str, Any] = {}
        for name in (
            "num_classes",
            "conv_channels",
            "primary_capsules",
            "primary_size",
            "class_size",
            "num_iterations",
        ):
            check_positive_int(name, getattr(self, name))
        check_image_kernel("conv", images.shape, 9, 1)
        out["conv"] = nn.relu(
            nn.Conv(self.conv_channels, (9, 9), padding="VALID", name="conv")(images)
        )
        out["primary"] = PrimaryVectorCaps(
            self.primary_capsules, self.primary_size, name="primary"
        )(out["conv"])
        children = out["primary"].reshape(
            images.shape[0], math.prod(out["primary"].shape[1:4]), self.primary_size
        )
        class_caps = VectorClassCaps(
            self.num_classes, self.class_size, self.num_iterations, name="class_caps"
        )
        out["class_caps"] = class_caps(children)
        return Capsules(out["class_caps"].poses, out["class_caps"].activations), out
