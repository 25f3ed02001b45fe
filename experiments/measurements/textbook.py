"""EM routing as one writes it down first: what the benchmark compares with.

Votes by einsum in memory, batch-first with the pose entries last, scan over the iterations,
gradient by automatic differentiation. The procedure and the results are those of
`emcaps.conv_em_routing`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import emcaps


def conv_em_routing(
    poses: jax.Array,
    activations: jax.Array,
    transforms: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    stride: int,
    num_iterations: int,
    offsets: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The parents' poses `[B, OH, OW, J, 4, 4]` and activations `[B, OH, OW, J]`; arguments as of
    `emcaps.conv_em_routing`.

    Args:
        poses, activations, transforms, beta_u, beta_a, stride, num_iterations: see there.
        offsets: added to the votes, `[KH, KW, 4, 4]`: coordinate addition.
    """
    kernel = transforms.shape[:2]
    field = emcaps.ReceptiveField(poses.shape[1:3], kernel, stride)

    def patches(children: jax.Array) -> jax.Array:  # [B, H, W, ...] to [B, OH, OW, KH, KW, ...]
        seen = field.gather(jnp.moveaxis(children, (0, 1, 2), (-1, -3, -2)))
        return jnp.moveaxis(seen, (-1, -3, -2, 0, 1), (0, 1, 2, 3, 4))

    def children_of(seen: jax.Array) -> jax.Array:  # the transpose of patches
        return jax.linear_transpose(patches, jax.ShapeDtypeStruct(activations.shape, seen.dtype))(
            seen
        )[0]

    votes = jnp.einsum(
        "byxuvikl,uvijlm->byxuvijkm", patches(poses), transforms, precision="highest"
    )
    if offsets is not None:
        votes += offsets[:, :, None, None]
    votes = votes.reshape(*votes.shape[:-2], 16)
    seen_activations = patches(activations)
    reached = field.num_parent_positions()[:, :, None] * transforms.shape[3]
    first = patches(jnp.broadcast_to(1 / reached.clip(1), activations.shape).astype(votes.dtype))
    inverse_temperatures = jnp.asarray(
        emcaps.inverse_temperature_schedule(num_iterations), votes.dtype
    )

    def m_step(assignments, inverse_temperature):
        # [B, OH, OW, KH, KW, I, J, 1].
        data = (assignments * seen_activations[..., None])[..., None]
        over_children = (3, 4, 5)
        mass = data.sum(over_children)
        total = mass + emcaps.PAPER.mass_epsilon
        mean = (data * votes).sum(over_children) / total
        squares = (votes - mean[:, :, :, None, None, None]) ** 2
        variance = (data * squares).sum(over_children) / total + emcaps.PAPER.min_variance
        cost = ((beta_u[:, None] + 0.5 * jnp.log(variance)) * mass).sum(-1)
        return mean, variance, inverse_temperature * (beta_a - cost)

    def e_step(mean, variance, logit):
        squares = (votes - mean[:, :, :, None, None, None]) ** 2
        exponent = squares / (2 * variance[:, :, :, None, None, None])
        norm = 0.5 * jnp.log(2 * jnp.pi * variance)[:, :, :, None, None, None]
        log_p = jax.nn.log_sigmoid(logit)[:, :, :, None, None, None] - (exponent + norm).sum(-1)
        shares = jnp.exp(log_p - lax.stop_gradient(log_p.max()))
        return shares / patches(children_of(shares.sum(-1)) + 1e-30)[..., None]

    def iterate(parents, inverse_temperature):
        return m_step(e_step(*parents), inverse_temperature), None

    parents = m_step(jnp.broadcast_to(first[..., None], votes.shape[:-1]), inverse_temperatures[0])
    (mean, _, logit), _ = lax.scan(iterate, parents, inverse_temperatures[1:])
    return mean.reshape(*mean.shape[:-1], 4, 4), jax.nn.sigmoid(logit)


def class_em_routing(
    poses: jax.Array,
    activations: jax.Array,
    transforms: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    coordinates: jax.Array,
    num_iterations: int,
) -> tuple[jax.Array, jax.Array]:
    """The classes' poses `[B, 1, 1, J, 4, 4]` and activations `[B, 1, 1, J]`; arguments as of
    `emcaps.class_em_routing`.
    """
    height, width = activations.shape[1:3]
    everywhere = jnp.broadcast_to(transforms, (height, width, *transforms.shape))
    offsets = jnp.zeros((height, width, 4, 4), poses.dtype).at[:, :, :2, 3].set(coordinates)
    given = poses, activations, everywhere, beta_u, beta_a
    return conv_em_routing(*given, stride=1, num_iterations=num_iterations, offsets=offsets)


def class_activations(model: emcaps.CapsNet, params: Any, images: jax.Array) -> jax.Array:
    """`model.apply({"params": params}, images)` with textbook routing of the paper's procedure:
    activations `[B, J]`.
    """
    out = nn_conv(images, params["conv"], 2)
    poses, logits = (
        nn_conv(jax.nn.relu(out), params["primary"][name], 1) for name in ("poses", "activations")
    )
    capsules = poses.reshape(*logits.shape, 4, 4), jax.nn.sigmoid(logits)
    iterations = model.layer_routing()[0].num_iterations
    for index, (_, stride) in enumerate(model.layer_geometry()[2:], start=1):
        layer = params[f"conv_caps_{index}"]
        capsules = conv_em_routing(*capsules, **layer, stride=stride, num_iterations=iterations)
    coordinates = (
        emcaps.receptive_field_centers(size, model.layer_geometry()) for size in images.shape[1:3]
    )
    rows, columns = np.meshgrid(*coordinates, indexing="ij")
    where = jnp.asarray(np.stack([rows, columns], -1), images.dtype)
    routed = class_em_routing(
        *capsules, **params["class_caps"], coordinates=where, num_iterations=iterations
    )
    return routed[1][:, 0, 0]


class TextbookNetwork(NamedTuple):
    """`model` with textbook routing, as the training step of learning/step.py takes a network: it
    gives class logits.
    """

    model: emcaps.CapsNet

    def apply(self, variables: Any, images: jax.Array) -> tuple[None, dict[str, jax.Array]]:
        activations = class_activations(self.model, variables["params"], images)
        return None, {"classes": jax.scipy.special.logit(activations)}


def nn_conv(images: jax.Array, layer: Any, stride: int) -> jax.Array:
    """A Flax convolution, with or without bias, without padding."""
    out = lax.conv_general_dilated(
        images,
        layer["kernel"],
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out + layer.get("bias", 0)
