"""What devices tell each other in a compiled step: the collectives of an XLA program, how often
each runs and how much it moves.
"""

import functools
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.compiled.hlo import Computation, parse_program
from experiments.data.batches import Batch
from experiments.devices.parallel import SHARDED, Execution, parallelize, shardings
from experiments.learning.configs import TrainConfig
from experiments.learning.network import make_model
from experiments.learning.step import init_state, make_train_step

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_BYTES = {
    "pred": 1,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "f64": 8,
    "bf16": 2,
    "f16": 2,
    "c64": 8,
    "s64": 8,
}


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        group: how many devices take part together; of a collective-permute all that send or
            receive.
        payload: bytes of what is combined: of an all-reduce its result, of an all-gather or a
            reduce-scatter the larger side; of a collective-permute what a device sends.
        times: how often it runs.
    """

    kind: str
    group: int
    payload: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends for one run of it, by an algorithm that sends the least (a
        ring).
        """
        if self.kind == "collective-permute":  # no part of it stays
            return self.payload
        return (
            (2 if self.kind == "all-reduce" else 1) * self.payload * (self.group - 1) / self.group
        )


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program, from its text. A loop's count as often as it runs; of
    branches, all are counted.

    Raises:
        ValueError: a collective is in a loop whose number of runs is not known, or does not say who
            takes part.
    """
    entry, computations = parse_program(hlo)

    @functools.cache
    def of(name: str) -> tuple[Collective, ...]:
        computation = computations.get(name, {})
        return tuple(one for instruction in computation for one in within(instruction, computation))

    def within(name: str, computation: Computation) -> list[Collective]:
        instruction = computation[name]
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            ends = [
                one
                for one in computation.values()
                if one.opcode == f"{kind}-done" and name in one.operands
            ]
            return [_read(kind, (ends or [instruction])[0].shapes, instruction.line)]
        if kind != "while":
            return [one for called in instruction.called for one in of(called)]
        _, body = instruction.loop
        inside = of(body)
        if inside and instruction.trips is None:
            raise ValueError(f"the loop {body} has collectives, and nobody knows how often it runs")
        return [one._replace(times=one.times * (instruction.trips or 1)) for one in inside]

    return list(of(entry))


def _read(kind: str, shapes: str, line: str) -> Collective:
    """A collective from the shapes of its result, which may be said where it is waited for, and its
    line of text.
    """
    size = sum(
        _BYTES[dtype] * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in _ARRAY.findall(shapes)
    )
    group = _group_size(line)
    return Collective(kind, group, size * group if kind == "reduce-scatter" else size, 1)


def _group_size(line: str) -> int:
    """How many devices take part together, in each of the ways in which versions of XLA
    write it.
    """
    if listed := re.search(r"replica_groups=\{\{([0-9,]*)\}", line):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", mesh[2]))
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line):
        return len(set(re.findall(r"\d+", pairs[1])))
    raise ValueError(
        "who takes part in this collective is written in a way that nobody here knows: "
        f"{line.strip()[:200]}"
    )


def compiled_step(
    config: TrainConfig,
    execution: Execution,
    image_shape: tuple[int, ...],
    num_classes: int,
    network: Any = None,
) -> Any:
    """The compiled training step of a network on simulated or described devices; nothing is run.

    Args:
        config: of the network and of its training.
        execution: the devices, and how they share the step.
        image_shape: `(H, W, C)`.
        num_classes: of the data set.
        network: takes the place of the config's own; with its parameters.
    """
    whole, shared = (
        make_model(config.model, num_classes, axis) for axis in (None, execution.parent_axis)
    )
    images = jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.float32)
    state = jax.eval_shape(functools.partial(init_state, config, whole), images, jax.random.key(0))
    mesh = execution.mesh

    def placed(tree: Any, places: Any) -> Any:
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            tree,
            places,
        )

    batch = Batch(images, jax.ShapeDtypeStruct((config.batch_size,), jnp.int32))  # pyright: ignore[reportArgumentType]
    batch = placed(batch, jax.tree.map(lambda _: jax.NamedSharding(mesh, SHARDED), batch))
    step = parallelize(make_train_step(config, network or shared), execution).step
    return step.lower(placed(state, shardings(state, mesh)), batch).compile()


def totals(found: Iterable[Collective]) -> dict[str, Any]:
    """How often each kind runs in a step, and the bytes that a device sends for it."""
    kinds: dict[str, Any] = {}
    for one in found:
        row = kinds.setdefault(one.kind, {"operations": 0, "runs": 0, "megabytes_sent": 0.0})
        row["operations"] += 1
        row["runs"] += one.times
        row["megabytes_sent"] += one.times * one.sent / 1e6
    return kinds
