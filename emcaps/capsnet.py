"""The whole network: convolution, primary capsules, convolutional capsules, class capsules."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emcaps.layers import CapsuleInit, ClassCaps, ConvCaps, PrimaryCaps, RoutingOptions, check_covers
from emcaps.receptive_field import ReceptiveField, receptive_field_centers
from emcaps.types import Capsules


class CapsNet(nn.Module):
    """The network of the paper's section 4, for images of any size and number of channels.

    A 5x5 convolution with stride 2 and ReLU; primary capsules; 3x3 convolutional capsules, the first with stride 2 and the
    others with stride 1; class capsules. No padding anywhere. The paper's A, B, C, D are `conv_channels`, `primary_capsules` and
    `conv_capsules`; its networks are 32/32/32/32 (316,650 parameters for 2 channels and 5 classes) and 64/8/16/16 (68,618).

    Attributes:
        num_classes: class capsules.
        conv_channels: of the first convolution.
        primary_capsules: primary capsule types.
        conv_capsules: capsule types of each convolutional capsule layer.
        routing: how all capsule layers route; or one for each of them, the class capsules last.
        capsule_init: how the capsule layers' parameters start.
        add_coordinates: whether the class capsules' votes are told where they come from.

    Raises:
        ValueError: `routing` has another length than there are capsule layers.
    """

    num_classes: int
    conv_channels: int = 32
    primary_capsules: int = 8
    conv_capsules: tuple[int, ...] = (8, 8)
    routing: RoutingOptions | tuple[RoutingOptions, ...] = RoutingOptions()
    capsule_init: CapsuleInit = CapsuleInit()
    add_coordinates: bool = True

    def layer_routing(self) -> tuple[RoutingOptions, ...]:
        """How each capsule layer routes, the class capsules last."""
        num_layers = len(self.conv_capsules) + 1
        if isinstance(self.routing, RoutingOptions):
            return (self.routing,) * num_layers
        if len(self.routing) != num_layers:
            raise ValueError(f"routing must be one RoutingOptions, or {num_layers} for as many layers; got {len(self.routing)}")
        return tuple(self.routing)

    def layer_geometry(self) -> list[tuple[int, int]]:
        """`(kernel, stride)` of each layer below the class capsules, from the image up."""
        return [(5, 2), (1, 1)] + [(3, 2 if index == 0 else 1) for index in range(len(self.conv_capsules))]

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[Capsules, dict[str, Any]]:
        """Classify images.

        Args:
            images: `[B, height, width, channels]`, floating.

        Returns:
            The class capsules, poses `[B, num_classes, 4, 4]` and activations `[B, num_classes]`; and what each stage gave, by
            name, in the order of the data: `conv` (features), `primary` (`Capsules`), `conv_caps_1` and so on, and `class_caps`
            (each a `RoutingResult`).

        Raises:
            ValueError: images have a wrong rank, or are too small for a layer, which the message names.
            TypeError: images are not floating point.
        """
        if images.ndim != 4:
            raise ValueError(f"images must have shape [B, height, width, channels]; got shape {list(images.shape)}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"images must have a floating point dtype; got {images.dtype}")
        geometry = self.layer_geometry()
        out: dict[str, Any] = {}

        kernel, stride = geometry[0]
        check_covers("conv", ReceptiveField(images.shape[1:3], (kernel, kernel), stride))
        conv = nn.Conv(self.conv_channels, (kernel, kernel), stride, padding="VALID", name="conv")
        out["conv"] = nn.relu(conv(images))
        capsules = out["primary"] = PrimaryCaps(self.primary_capsules, name="primary")(out["conv"])

        *conv_routing, class_routing = self.layer_routing()
        layers = zip(self.conv_capsules, geometry[2:], conv_routing, strict=True)
        for index, (num_capsules, (kernel, stride), routing) in enumerate(layers, start=1):
            name = f"conv_caps_{index}"
            out[name] = ConvCaps(num_capsules, kernel, stride, routing, self.capsule_init, name=name)(capsules)
            capsules = Capsules(out[name].poses, out[name].activations)

        rows, columns = (receptive_field_centers(size, geometry) for size in images.shape[1:3])
        class_caps = ClassCaps(self.num_classes, class_routing, self.capsule_init, self.add_coordinates, name="class_caps")
        out["class_caps"] = class_caps(capsules, (rows, columns))
        return Capsules(out["class_caps"].poses[:, 0, 0], out["class_caps"].activations[:, 0, 0]), out
