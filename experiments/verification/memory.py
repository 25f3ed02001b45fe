"""How much memory a streamed layer with its gradient takes on a device: what XLA sets aside, and
what the device has seen.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from emcaps.implementations import ACCELERATOR_BYTES
from experiments.measurements.layer import Layer, layer_arguments, routings, with_gradient
from experiments.verification.routing import Finding

BATCHES = (16, 64, 256)
SCRATCH_BOUND = ACCELERATOR_BYTES / 1e6


def check_memory(batches: Sequence[int] = BATCHES) -> Iterator[list[Finding]]:
    """Scratch by batch size, 14x14x8 to 6x6x16, and the device's own peak where it says one."""
    for batch in batches:
        layer = Layer(batch=batch)
        arguments = layer_arguments(layer)
        compiled: Any = (
            jax.jit(with_gradient(routings(layer)["streamed"])).lower(*arguments).compile()
        )
        jax.block_until_ready(compiled(*arguments))
        scratch = compiled.memory_analysis().temp_size_in_bytes / 1e6
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        note = f"votes {64 * layer.pairs / 1e6:.0f} MB" + (
            f"; peak of the process {peak / 1e6:.0f} MB" if peak else ""
        )
        yield [
            Finding(
                "memory",
                f"scratch, layer with gradient, batch {batch}",
                scratch,
                SCRATCH_BOUND,
                "MB",
                note,
            )
        ]
