"""What public functions ask of their arguments, checked at the door: shapes and dtypes at trace time, values when known."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer


def check_shapes(arrays: Mapping[str, tuple[Any, str]]) -> dict[str, int]:
    """Match floating point arrays against shapes written in the legend's letters; return the size of each letter.

    Args:
        arrays: from argument name to `(array, shape)`, where `shape` lists axes by letter or number: `"B H W I 4 4"`.
            A leading `...` stands for any number of batch axes. A letter must have one size wherever it occurs.

    Raises:
        TypeError: an argument is not a floating point array.
        ValueError: an argument's shape does not match; the message names it, what came and what was expected.
    """
    sizes: dict[str, int] = {}
    for name, (array, shape) in arrays.items():
        check_floating(name, array)
        axes = shape.split()
        given = tuple(np.shape(array))
        expected = "[" + ", ".join(_describe_axis(axis, sizes) for axis in axes) + "]"
        if axes[0] == "...":
            axes = axes[1:]
            matched = given[len(given) - len(axes) :] if len(given) >= len(axes) else ()
        else:
            matched = given
        if len(matched) != len(axes):
            raise ValueError(f"{name} must have shape {expected}; got shape {list(given)}")
        for axis, size in zip(axes, matched, strict=True):
            wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
            if size != wanted or size == 0:
                raise ValueError(f"{name} must have shape {expected}, no axis empty; got shape {list(given)}")
    return sizes


def _describe_axis(axis: str, sizes: Mapping[str, int]) -> str:
    return f"{axis}={sizes[axis]}" if axis in sizes else axis


def check_floating(name: str, array: Any) -> None:
    """Raise TypeError unless `array` is an array (JAX or NumPy) of floating point numbers."""
    if not isinstance(array, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"{name} must be an array; got {type(array).__name__}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating point dtype; got {array.dtype}")


def check_positive_int(name: str, value: Any) -> None:
    """Raise unless `value` is a Python int of at least 1 (it decides the structure of the compiled program)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a Python int, known when tracing; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def check_choice(name: str, value: Any, choices: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Raise ValueError, listing the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_axis(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is None or the name of a mapped axis that is bound here; TypeError if it is no name."""
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be None or a string; got {value!r}")
    try:
        lax.axis_size(value)
    except NameError as error:
        raise ValueError(f"{name} must be None or an axis of an enclosing shard_map, pmap or vmap; got {value!r}") from error


def check_range(name: str, value: Any, low: float, high: float = np.inf, *, open_low: bool = False) -> None:
    """Raise ValueError if any element lies outside [low, high] or is NaN. Traced values pass: they are not known yet."""
    if isinstance(value, Tracer):
        return
    values = np.asarray(value, dtype=np.float64)
    above = values > low if open_low else values >= low
    if not np.all(above & (values <= high)):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == np.inf else ']'}"
        wrong = values[~(above & (values <= high))].flat[0]
        raise ValueError(f"{name} must lie in {interval}; got {wrong:g}")
