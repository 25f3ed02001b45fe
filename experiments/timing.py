"""Measuring compiled functions side by side."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Measurement(NamedTuple):
    """What one function cost.

    Attributes:
        seconds: the median of its runs.
        fastest: the minimum of its runs.
        compile_seconds: tracing and compiling it.
        scratch_bytes: XLA's temporary memory, on one device.
    """

    seconds: float
    fastest: float
    compile_seconds: float
    scratch_bytes: int


def measure(contenders: Mapping[str, tuple[Callable, tuple]], repeats: int) -> dict[str, Measurement]:
    """Compile each `function(*arguments)`, then time them in turns, so that what slows the machine slows all of them.

    In its turn a function runs twice and the second run counts: none pays for the caches and the memory that another left.

    Args:
        contenders: from name to function and arguments.
        repeats: runs of each.
    """
    compiled, compile_seconds = {}, {}
    for name, (function, arguments) in contenders.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*arguments).compile()
        compile_seconds[name] = time.perf_counter() - start
        jax.block_until_ready(compiled[name](*arguments))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, (_, arguments) in contenders.items():
            jax.block_until_ready(compiled[name](*arguments))
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*arguments))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Measurement(
            float(np.median(seconds[name])),
            min(seconds[name]),
            compile_seconds[name],
            compiled[name].memory_analysis().temp_size_in_bytes,
        )
        for name in contenders
    }


def multiply_adds(size: int = 1 << 13, chain: int = 64, rounds: int = 500) -> tuple[Callable[[jax.Array], Any], int]:
    """An element-wise loop with nothing but multiply-adds, on an array that stays in cache.

    Returns:
        The function, of an array `[size]`, and how many multiply-adds it does.
    """

    def polynomial(x: jax.Array) -> jax.Array:
        y = x
        for _ in range(chain):
            y = y * x + x
        return y

    def function(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, rounds, lambda _, x: polynomial(x), x)

    return function, size * chain * rounds


def small_numbers(size: int) -> jax.Array:
    """An argument for `multiply_adds` that does not overflow."""
    return jnp.linspace(0.0, 0.4, size)


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The b of `seconds = a * sizes ** b`, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
