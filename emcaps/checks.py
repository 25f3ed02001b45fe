"""How public functions validate their arguments on entry: shapes and dtypes at trace time, values
when known.

The values of traced arrays are not known yet. What is asked of them stays in the program as a
`checkify.debug_check`, which costs nothing until the program is transformed by
`jax.experimental.checkify.checkify`: that is the debug mode.
"""

import functools
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.experimental import checkify


def check_shapes(arrays: Mapping[str, tuple[Any, str]]) -> dict[str, int]:
    """Match floating point arrays against shapes written in the legend's letters; return the size
    of each letter.

    Args:
        arrays: from argument name to `(array, shape)`, where `shape` lists axes by letter or
            number: `"B H W I 4 4"`. A leading `...` stands for any number of batch axes. A letter
            must have one size wherever it occurs.

    Raises:
        TypeError: an argument is not a floating point array.
        ValueError: an argument's shape does not match; the message names it, what came and what was
            expected.
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
            if size != wanted or 0 in given:
                raise ValueError(
                    f"{name} must have shape {expected}, no axis empty; got shape {list(given)}"
                )
    return sizes


def check_data(arrays: Mapping[str, tuple[Any, str]]) -> dict[str, int]:
    """`check_shapes`, and ValueError unless all values are finite."""
    sizes = check_shapes(arrays)
    for name, (array, _) in arrays.items():
        check_finite(name, array)
    return sizes


def _describe_axis(axis: str, sizes: Mapping[str, int]) -> str:
    return f"{axis}={sizes[axis]}" if axis in sizes else axis


def check_floating(name: str, array: Any) -> None:
    """Raise TypeError unless `array` is an array (JAX or NumPy) of floating point numbers."""
    _check_array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating point dtype; got {array.dtype}")


def check_labels(name: str, array: Any, shape: tuple[int, ...], number: int) -> Any:
    """Raise unless `array` is of integers in [0, number), in the given shape; return it in a dtype
    that can count to `number`.
    """
    _check_array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers; got {array.dtype}")
    if np.shape(array) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}; got shape {list(np.shape(array))}")
    check_range(name, array, 0, number - 1)
    return _widened(array)


def _check_array(name: str, array: Any) -> None:
    if not isinstance(array, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"{name} must be an array; got {type(array).__name__}")


def check_pixels(name: str, images: Any) -> None:
    """Raise TypeError unless `images` is an array of uint8 or floating point numbers."""
    _check_array(name, images)
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"{name} must be uint8, or floating point in [0, 1]; got {images.dtype}")


def check_positive_int(name: str, value: Any) -> None:
    """Raise unless `value` is a Python int of at least 1 (it decides the structure of the compiled
    program).
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a Python int, known when tracing; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def check_sizes(name: str, value: Any, number: int | None = None) -> None:
    """Raise unless `value` is a tuple or list of so many (None: any number of) Python ints of at
    least 1.
    """
    of = "" if number is None else f"{number} "
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name} must be a tuple of {of}ints; got {value!r}")
    for size in value:
        check_positive_int(f"each entry of {name}", size)
    if number is not None and len(value) != number:
        raise ValueError(f"{name} must be a tuple of {number} ints; got {value!r}")


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a Python bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, known when tracing; got {value!r}")


def check_choice(name: str, value: Any, choices: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Raise, listing the choices, unless `value` is one of them: TypeError if it is no string,
    otherwise ValueError.
    """
    if not isinstance(value, str) or value not in choices:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_dtype(name: str, value: Any, *, required: bool = False) -> None:
    """Raise TypeError unless `value` is a floating point dtype, or None where none is required."""
    if value is None and not required:
        return
    try:
        floating = value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        none = "" if required else "None or "
        raise TypeError(f"{name} must be {none}a floating point dtype; got {value!r}")


def check_axis(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is None or the name of a mapped axis that is bound here;
    TypeError if it is no name.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be None or a string; got {value!r}")
    try:
        lax.axis_size(value)
    except NameError as error:
        raise ValueError(
            f"{name} must be None or an axis of an enclosing shard_map, pmap or vmap; got {value!r}"
        ) from error


def check_known_number(
    name: str, value: Any, low: float = -np.inf, high: float = np.inf, *, open_high: bool = False
) -> None:
    """`check_number` of what must be a Python or NumPy number, since it shapes the compiled
    program.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number known when tracing; got {value!r}")
    check_range(name, value, low, high, open_high=open_high)


def check_number(
    name: str, value: Any, low: float = -np.inf, high: float = np.inf, *, open_low: bool = False
) -> None:
    """Raise unless `value` is one finite number, Python's or a scalar array's, in [low, high], or
    (low, high].
    """
    if isinstance(value, jax.Array | np.ndarray):
        if value.shape != ():
            raise ValueError(f"{name} must be a scalar; got shape {list(value.shape)}")
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    else:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"{name} must be a number; got {value!r}")
    check_range(name, value, low, high, open_low=open_low)


def check_range(
    name: str,
    value: Any,
    low: float,
    high: float = np.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise ValueError if any element lies outside [low, high], or is NaN or infinite.

    An end may be open.
    """
    open_low, open_high = open_low or low == -np.inf, open_high or high == np.inf
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    expected = (
        f"{name} must {'be finite' if (low, high) == (-np.inf, np.inf) else f'lie in {interval}'}"
    )
    ends = low, high, open_low, open_high
    if isinstance(value, Tracer):
        value = lax.stop_gradient(value)
        right = _inside(value, *ends)
        _check_when_run(right.all(), _a_wrong(value, right), f"{expected}; got {{a_wrong}}")
        return
    with jax.ensure_compile_time_eval():  # while something else is traced, what is known stays so
        values, all_inside = (
            (value, _all_inside_at_once)
            if isinstance(value, jax.Array)
            else (np.asarray(value), _all_inside)
        )
        if not all_inside(values, *ends):
            raise ValueError(f"{expected}; got {float(_a_wrong(values, _inside(values, *ends))):g}")


def check_finite(name: str, array: Any) -> None:
    """Raise ValueError if any element is NaN or infinite."""
    check_range(name, array, -np.inf)


def _inside(values: Any, low: float, high: float, open_low: bool, open_high: bool) -> Any:
    """Which values lie in an interval."""
    values = _widened(values)
    # Of integers it is asked in floating point, whatever else the caller allows.
    with jax.numpy_dtype_promotion("standard"):
        return (values > low if open_low else values >= low) & (
            values < high if open_high else values <= high
        )


def _widened(array: Any) -> Any:
    """Integers in a dtype with room for what they are compared with: JAX would take 300 modulo 256
    to compare it with uint8.
    """
    narrow = jnp.issubdtype(array.dtype, jnp.integer) and array.dtype.itemsize < 4
    return array.astype(np.int32) if narrow else array


def _all_inside(values: Any, *ends: Any) -> Any:
    return _inside(values, *ends).all()


# One program, not one for each operation.
_all_inside_at_once = jax.jit(_all_inside, static_argnums=(3, 4))


def _a_wrong(values: Any, right: Any) -> Any:
    """A value that is not right: NaN, or the largest.

    A reduction can be had of sharded values too, the first one cannot.
    """
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    largest = values.max(where=~right, initial=-np.inf if floating else jnp.iinfo(values.dtype).min)
    # Where devices compare their largest values, NaN may be lost.
    return jnp.where(jnp.isnan(values).any(), jnp.nan, largest) if floating else largest


@jax.custom_batching.custom_vmap
def _of_all(right: jax.Array, a_wrong: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is found of one example; under `vmap`, of all.

    Checkify would sort them instead, which cannot be if they are sharded.
    """
    return right, a_wrong


@_of_all.def_vmap
def _combine(axis_size: int, in_batched: Any, right: jax.Array, a_wrong: jax.Array) -> Any:
    return _of_all(right.all(), _a_wrong(a_wrong, right)), (False, False)


@functools.partial(jax.jit, static_argnames="message", inline=True)
def _check_when_run(right: jax.Array, a_wrong: jax.Array, message: str) -> None:
    """Leave a check in the program, for whoever runs it in debug mode."""
    # Checkify numbers checks as they are traced, and the numbers become part of the program. `jit`
    # has each traced once, so that the same program, traced again, is found in caches of compiled
    # ones.
    right, a_wrong = _of_all(right, a_wrong)
    checkify.debug_check(right, message, a_wrong=a_wrong)
