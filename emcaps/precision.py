"""In which dtype to compute: float32 for low precision, otherwise that of the arguments."""

from typing import Any

import jax
import jax.numpy as jnp

from emcaps.types import RoutingResult


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """What the routing computes in: float32 for low precision, otherwise the arrays' own."""
    return common_dtype(*arrays, jnp.float32)


def common_dtype(*given: Any) -> jnp.dtype:
    """What arrays and dtypes promote to, also where the caller lets nothing be promoted
    implicitly.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*given)


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """The arrays of a tree in a dtype."""
    return jax.tree.map(lambda array: array.astype(dtype), tree)


def outer_dtypes(result: RoutingResult, dtype: jnp.dtype) -> RoutingResult:
    """The result in the dtype of the arguments, but for what need not fit into its range: costs,
    and squares of votes.
    """
    return cast(result, dtype)._replace(
        activation_logits=result.activation_logits, variances=result.variances
    )
