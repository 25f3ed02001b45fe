"""The textbook's formulation, as in textbook.py, in PyTorch: what the benchmark compares with where
PyTorch is installed.

Nothing but PyTorch is called while routing, so that `torch.compile` sees all of it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

import emcaps


def conv_em_routing(
    poses: Any,
    activations: Any,
    transforms: Any,
    beta_u: Any,
    beta_a: Any,
    *,
    stride: int,
    num_iterations: int,
    offsets: Any = None,
) -> tuple[Any, Any]:
    """The parents' poses `[B, OH, OW, J, 4, 4]` and activations `[B, OH, OW, J]`; arguments as of
    textbook.py.
    """
    kernel, map_size = transforms.shape[:2], activations.shape[1:3]
    reach = tuple(
        (size - k) // stride * stride + 1 for size, k in zip(map_size, kernel, strict=True)
    )

    def patches(children: Any) -> Any:  # [B, H, W, ...] to [B, OH, OW, KH, KW, ...]
        rows = [children[:, u : u + reach[0] : stride] for u in range(kernel[0])]
        return torch.stack(
            [
                torch.stack([row[:, :, v : v + reach[1] : stride] for v in range(kernel[1])], 3)
                for row in rows
            ],
            3,
        )

    def children_of(seen: Any) -> Any:  # the transpose of patches, for [B, OH, OW, KH, KW, I]
        columns = seen.permute(0, 5, 3, 4, 1, 2).reshape(
            len(seen), -1, seen.shape[1] * seen.shape[2]
        )
        return F.fold(columns, map_size, kernel, stride=stride).permute(0, 2, 3, 1)

    votes = torch.einsum("byxuvikl,uvijlm->byxuvijkm", patches(poses), transforms)
    if offsets is not None:
        votes = votes + offsets[:, :, None, None]
    votes = votes.flatten(-2)
    seen_activations = patches(activations)
    reached = children_of(torch.ones_like(seen_activations)) * transforms.shape[3]
    first = patches(1 / reached.clamp(min=1))
    inverse_temperatures = [0.01 * (1 - 0.95 ** (t + 1)) for t in range(num_iterations)]
    over_children = (3, 4, 5)

    def m_step(assignments: Any, inverse_temperature: float) -> tuple[Any, Any, Any]:
        data = (assignments * seen_activations[..., None])[..., None]
        mass = data.sum(over_children)
        total = mass + emcaps.PAPER.mass_epsilon
        mean = (data * votes).sum(over_children) / total
        squares = (votes - mean[:, :, :, None, None, None]) ** 2
        variance = (data * squares).sum(over_children) / total + emcaps.PAPER.min_variance
        cost = ((beta_u[:, None] + 0.5 * variance.log()) * mass).sum(-1)
        return mean, variance, inverse_temperature * (beta_a - cost)

    def e_step(mean: Any, variance: Any, logit: Any) -> Any:
        squares = (votes - mean[:, :, :, None, None, None]) ** 2
        exponent = squares / (2 * variance[:, :, :, None, None, None])
        norm = 0.5 * (2 * math.pi * variance).log()[:, :, :, None, None, None]
        log_p = F.logsigmoid(logit)[:, :, :, None, None, None] - (exponent + norm).sum(-1)
        numerators = torch.exp(log_p - log_p.max().detach())
        return numerators / patches(children_of(numerators.sum(-1)) + 1e-30)[..., None]

    parents = m_step(first[..., None].expand(votes.shape[:-1]), inverse_temperatures[0])
    for inverse_temperature in inverse_temperatures[1:]:
        parents = m_step(e_step(*parents), inverse_temperature)
    mean, _, logit = parents
    return mean.unflatten(-1, (4, 4)), logit.sigmoid()


def class_activations(
    params: Mapping[str, Any], images: Any, offsets: Any, num_iterations: int
) -> Any:
    """As textbook.py's, with the parameters of the Flax network as tensors, and `class_offsets`."""
    out = nn_conv(images, params["conv"], 2)
    poses, logits = (
        nn_conv(out.relu(), params["primary"][name], 1) for name in ("poses", "activations")
    )
    capsules = poses.reshape(*logits.shape, 4, 4), logits.sigmoid()
    stride = 2
    for name in sorted(params):
        if name.startswith("conv_caps_"):
            capsules = conv_em_routing(
                *capsules, **params[name], stride=stride, num_iterations=num_iterations
            )
            stride = 1
    layer = dict(params["class_caps"])
    layer["transforms"] = layer["transforms"].expand(*offsets.shape[:2], *layer["transforms"].shape)
    return conv_em_routing(
        *capsules, **layer, stride=1, num_iterations=num_iterations, offsets=offsets
    )[1][:, 0, 0]


def class_offsets(model: emcaps.CapsNet, image_size: tuple[int, ...]) -> np.ndarray:
    """What coordinate addition adds to the votes for the class capsules, `[H, W, 4, 4]`."""
    rows, columns = (
        emcaps.receptive_field_centers(size, model.layer_geometry()) for size in image_size
    )
    offsets = np.zeros((len(rows), len(columns), 4, 4), np.float32)
    offsets[:, :, :2, 3] = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    return offsets


def nn_conv(images: Any, layer: Mapping[str, Any], stride: int) -> Any:
    """A Flax convolution, with or without bias, without padding."""
    out = F.conv2d(
        images.permute(0, 3, 1, 2), layer["kernel"].permute(3, 2, 0, 1), layer.get("bias"), stride
    )
    return out.permute(0, 2, 3, 1)


def spread_loss(activations: Any, labels: Any, margin: float) -> Any:
    """As `emcaps.spread_loss`: per example."""
    wrong = 1 - F.one_hot(labels, activations.shape[-1])
    target = activations.gather(1, labels[:, None])
    return (wrong * (margin - (target - activations)).clamp(min=0) ** 2).sum(-1)
