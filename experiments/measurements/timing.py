"""Measuring compiled functions side by side."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# A sample is at least so long: of one short call the clock would see how it is started.
SAMPLE_SECONDS = 5e-3


class Measurement(NamedTuple):
    """What one function cost.

    Attributes:
        seconds: a call, the median of its samples.
        fastest: the minimum of them.
        compile_seconds: tracing and compiling it.
        scratch_bytes: XLA's temporary memory, on one device.
    """

    seconds: float
    fastest: float
    compile_seconds: float
    scratch_bytes: int


class Program(NamedTuple):
    """A compiled function and its arguments.

    Attributes:
        compiled: as JAX gives it.
        arguments: what it is called with.
        compile_seconds: tracing and compiling it.
    """

    compiled: Any
    arguments: tuple
    compile_seconds: float

    @property
    def scratch_bytes(self) -> int:
        """XLA's temporary memory, on one device."""
        return self.compiled.memory_analysis().temp_size_in_bytes

    @property
    def bytes(self) -> int:
        """All the memory that a call needs, on one device."""
        memory = self.compiled.memory_analysis()
        return (
            memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        )

    def sample(self, calls: int) -> float:
        """Seconds of so many calls, each started while the one before it may still be under way."""
        start = time.perf_counter()
        results = None
        for _ in range(calls):
            results = self.compiled(*self.arguments)
        jax.block_until_ready(results)
        return time.perf_counter() - start


class Lowered(NamedTuple):
    """A function that is traced and lowered, and its arguments.

    Attributes:
        lowered: as JAX gives it.
        arguments: what it will be called with.
        seconds: what this took.
    """

    lowered: Any
    arguments: tuple
    seconds: float

    def compile(self) -> Program:
        """Other threads may go on tracing while this one compiles."""
        start = time.perf_counter()
        return Program(
            self.lowered.compile(), self.arguments, self.seconds + time.perf_counter() - start
        )


def lower(function: Callable, arguments: tuple) -> Lowered:
    """Trace and lower `function(*arguments)`."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*arguments)
    return Lowered(lowered, arguments, time.perf_counter() - start)


def measure(
    contenders: Mapping[str, tuple[Callable, tuple]], repeats: int
) -> dict[str, Measurement]:
    """Compile each `function(*arguments)`, one after the other, then time them: see
    `time_in_turns`.

    Args:
        contenders: from name to function and arguments.
        repeats: samples of each.
    """
    return time_in_turns(
        {name: lower(*contender).compile() for name, contender in contenders.items()}, repeats
    )


def time_in_turns(programs: Mapping[str, Program], repeats: int) -> dict[str, Measurement]:
    """Time programs in turns, so that what slows the machine slows all of them.

    In its turn a program runs once more than counts: none pays for the caches and the memory that
    another left.

    Args:
        programs: by name.
        repeats: samples of each.
    """
    calls = {name: calls_for_a_sample(program) for name, program in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            program.sample(1)
            seconds[name].append(program.sample(calls[name]) / calls[name])
    return {
        name: Measurement(
            float(np.median(seconds[name])),
            min(seconds[name]),
            program.compile_seconds,
            program.scratch_bytes,
        )
        for name, program in programs.items()
    }


def calls_for_a_sample(program: Program) -> int:
    """How many calls take at least `SAMPLE_SECONDS`, a power of 2; the program is warm after it."""
    program.sample(1)
    calls = 1
    while program.sample(calls) < SAMPLE_SECONDS:
        calls *= 2
    return calls


def available_bytes() -> int:
    """Memory of the first device, as far as JAX may have it; of a CPU, the machine's."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Ceilings(NamedTuple):
    """What a device can do at most, measured.

    Attributes:
        multiply_adds: element-wise ones a second.
        bytes: read and written a second.
    """

    multiply_adds: float
    bytes: float


def measure_ceilings(repeats: int) -> Ceilings:
    """The two rates of the first device, by arrays that fill it: an accelerator in all its cores, a
    CPU beyond its caches.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    size, chain, rounds = (1 << 13, 64, 500) if on_cpu else (1 << 24, 256, 8)
    function, cost = multiply_adds(size, chain, rounds)
    long = jnp.zeros(1 << (24 if on_cpu else 28))
    found = measure(
        {"chain": (function, (small_numbers(size),)), "copy": (lambda array: array + 1, (long,))},
        repeats,
    )
    return Ceilings(cost / found["chain"].seconds, 2 * long.nbytes / found["copy"].seconds)


def multiply_adds(
    size: int = 1 << 13, chain: int = 64, rounds: int = 500
) -> tuple[Callable[[jax.Array], Any], int]:
    """An element-wise loop with nothing but multiply-adds; the default array stays in a CPU's
    cache.

    Returns:
        The function, of an array `[size]`, and how many multiply-adds it does.
    """

    def function(x: jax.Array) -> jax.Array:
        def chained(_: Any, y: jax.Array) -> jax.Array:
            for _link in range(chain):
                y = y * x + x  # towards x / (1 - x)
            return y

        return lax.fori_loop(0, rounds, chained, x)

    return function, size * chain * rounds


def small_numbers(size: int) -> jax.Array:
    """An argument for `multiply_adds` that does not overflow."""
    return jnp.linspace(0.0, 0.4, size)


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The b of `seconds = a * sizes ** b`, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
