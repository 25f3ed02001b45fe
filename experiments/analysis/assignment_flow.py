"""Where the data of one image goes: assignments followed from every capsule layer up to the
classes.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import emcaps
from emcaps import ReceptiveField, receptive_field_centers


class Flow(NamedTuple):
    """What a map of capsules gives to the classes.

    Attributes:
        to_class: `[B, H, W, J]`, or `[H, W, J]` of one image: at each place the sum over its
            capsules of activation times the share that goes to class j, by way of all layers
            between.
        rows: of the map's places in the image, `[H]` in [0, 1].
        columns: the same, `[W]`.
    """

    to_class: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def follow(
    model: emcaps.CapsNet, intermediates: dict[str, Any], image_size: tuple[int, ...]
) -> dict[str, Flow]:
    """The flow from each layer below the class capsules, by name, from the image up.

    A child's data is divided among its parents by its assignments, which sum to 1, and theirs
    likewise; so the shares of the classes sum to 1 for every child that any parent sees.

    Args:
        model: the network.
        intermediates: what it gave for B images.
        image_size: height and width of the images.
    """
    layers = [name for name in intermediates if name.startswith("conv_caps")]
    num_classes = intermediates["class_caps"].activations.shape[-1]
    # [1 or B, OH, OW, parents, classes]: of the layer above.
    shares = jnp.eye(num_classes)[None, None, None]
    found = {}
    geometry = model.layer_geometry()
    children = ["primary", *layers]
    for depth, (child, parent) in reversed(
        list(enumerate(zip(children, [*layers, "class_caps"], strict=True), start=2))
    ):
        capsules, routed = intermediates[child], intermediates[parent]
        batch, height, width = capsules.activations.shape[:3]
        shares = jnp.broadcast_to(shares, (batch, *shares.shape[1:]))
        seen = jnp.einsum("byxklij,byxjc->klicyxb", routed.assignments, shares)
        stride = geometry[depth][1] if parent != "class_caps" else 1
        field = ReceptiveField((height, width), routed.assignments.shape[3:5], stride)
        shares = field.scatter_sum(seen).transpose(4, 2, 3, 0, 1)  # [B, H, W, I, classes]
        to_class = jnp.einsum("byxi,byxic->byxc", capsules.activations, shares)
        rows, columns = (receptive_field_centers(size, geometry[:depth]) for size in image_size)
        found[child] = Flow(np.asarray(to_class), rows, columns)
    return dict(reversed(found.items()))
