"""How transforms start."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from emcaps.checks import check_number
from emcaps.types import POSE_SIZE


@dataclasses.dataclass(frozen=True)
class NearIdentity:
    """An initializer of transforms `[..., 4, 4]`: `scale` times the identity, plus normal noise.

    With a scale of 1 parents agree with children at first, so that routing has something to find;
    with 0 they vote at random. It is called as `init(key, shape, dtype)`, like those of
    `jax.nn.initializers`; two with the same fields are equal.

    Attributes:
        scale: of the identity.
        stddev: of the noise, at least 0.

    Raises:
        TypeError, ValueError: a field is not a finite number, or `stddev` is negative.
    """

    scale: float = 1.0
    stddev: float = 0.1

    def __post_init__(self):
        check_number("scale", self.scale)
        check_number("stddev", self.stddev, 0)

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> jax.Array:
        """Transforms of this shape, `[..., 4, 4]`. Raises ValueError for another shape."""
        if tuple(shape[-2:]) != (POSE_SIZE, POSE_SIZE):
            raise ValueError(f"shape must end in {POSE_SIZE}, {POSE_SIZE}; got {list(shape)}")
        identity = jnp.broadcast_to(jnp.eye(POSE_SIZE, dtype=dtype), shape)
        transforms = self.scale * identity + self.stddev * jax.random.normal(key, shape, dtype)
        return transforms.astype(dtype)  # a scale of NumPy or JAX has a dtype of its own
