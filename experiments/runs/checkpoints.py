"""Checkpoints of a run: the two newest, to go on from, and the best, by Orbax.

Each holds a `TrainState` (learning/step.py) and what `resume.facts_of` says of it.
"""

import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from experiments.runtime import processes
from experiments.runtime.errors import RunnerError, UsageError, first_line

NOT_EVALUATED = -1.0
DIGEST = "digest"


class DamagedCheckpoint(RunnerError):
    """A checkpoint cannot be read, or not as it was written."""


class UnlikeCheckpoint(UsageError):
    """A checkpoint holds other arrays than are asked for: other names, shapes or dtypes."""


class Checkpoints:
    """The checkpoints in a folder, one for each step saved. A context manager: leaving it waits for
    what is being saved.

    A state is copied to the host when it is saved, so that training may give up the arrays at once,
    and written while training goes on, to a folder that gets its name when it is complete.
    Read-only, nothing is touched: another process may be saving there.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        best = checkpoint_managers.BestN(get_metric_fn=_accuracy, n=1)
        options = ocp.CheckpointManagerOptions(
            best_fn=_accuracy,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(2), best]
            ),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
        )
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._manager.close()
        except Exception as error:  # whatever kept a save in the background from its end
            if kind is None:
                raise self._not_saved(error) from error

    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        facts: Mapping[str, Any] | None = None,
        accuracy: float = NOT_EVALUATED,
    ) -> None:
        """Save the state of a step, unless it is there already.

        Args:
            step: its number.
            state: a tree of arrays.
            facts: what else to remember, in terms of JSON.
            accuracy: decides which step is the best.

        Raises:
            RunnerError: this state, or an earlier one that was being written, could not be saved.
        """
        if step in self._manager.all_steps():
            return
        state = jax.tree.map(whole, state)
        remembered = json.loads(json.dumps(facts or {}))
        remembered[DIGEST] = digest(state, remembered)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(remembered)
        )
        try:
            self._manager.save(step, args=items, metrics={"accuracy": accuracy})
        except Exception as error:
            raise self._not_saved(error) from error

    def wait(self) -> None:
        """Until all is written. Raises RunnerError if something could not be saved."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_saved(error) from error

    def facts(self, step: int) -> dict[str, Any]:
        """What was remembered with the state of a step. Raises DamagedCheckpoint."""
        try:
            found = self._manager.restore(
                step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
            )["facts"]
            return {name: fact for name, fact in found.items() if name != DIGEST}
        except Exception as error:  # Orbax has no class of its own for this
            raise self._damaged(step, first_line(error)) from error

    def restore(self, step: int, like: Any, shardings: Any) -> Any:
        """The state of a step, bit for bit.

        Args:
            step: one of `steps()`.
            like: gives structure, shapes and dtypes.
            shardings: where to put it; a tree like it, or a prefix of one.

        Raises:
            UnlikeCheckpoint: it holds other arrays; the message names the first.
            DamagedCheckpoint: it is not what was saved.
            RunnerError: what was being saved could not be.
        """
        self.wait()
        self._check_like(step, like)  # Orbax converts dtypes without a word

        def place(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        abstract = jax.tree.map(place, like, jax.tree.broadcast(shardings, like))
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore()
        )
        try:
            found = self._manager.restore(step, args=items)
            facts = dict(found["facts"])
            intact = facts.pop(DIGEST) == digest(jax.tree.map(whole, found["state"]), facts)
        except Exception as error:
            raise self._damaged(step, first_line(error)) from error
        if not intact:
            raise self._damaged(step, "its contents are not those that were saved")
        return found["state"]

    def set_aside(self, steps: Sequence[int]) -> None:
        """Move checkpoints to the folder `damaged`, beside this one."""
        aside = self.folder.with_name("damaged")
        if processes.is_first():
            aside.mkdir(exist_ok=True)
            for step in steps:
                os.rename(self.folder / str(step), aside / f"{step}-{time.time_ns()}")
        processes.wait_for_all("damaged checkpoints are set aside")
        self._manager.reload()

    def _check_like(self, step: int, like: Any) -> None:
        """Raise UnlikeCheckpoint if what is written about a step's arrays can be read, and they are
        other ones than in `like`.
        """
        try:
            handler: Any = ocp.StandardCheckpointHandler()
            written = handler.metadata((self.folder / str(step) / "state").absolute())
            there, here = named_arrays(written.tree), named_arrays(like)
        except Exception:  # it is damaged, which will be found
            return
        if differences := differing_arrays(there, here):
            raise UnlikeCheckpoint(
                f"the checkpoint of step {step} in {self.folder} holds other arrays: {differences}"
            )

    def _damaged(self, step: int, why: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"the checkpoint of step {step} in {self.folder} is damaged ({why})"
        )

    def _not_saved(self, error: Exception) -> RunnerError:
        return RunnerError(
            f"a checkpoint could not be saved in {self.folder} ({first_line(error)}). Those that "
            "were saved before are whole: when the cause is gone, the same command goes on from "
            "them"
        )


def whole(array: Any) -> np.ndarray:
    """All of an array of which this process has all parts, on the host, in memory of its own."""
    if (
        isinstance(array, jax.Array)
        and not array.is_fully_addressable
        and not array.is_fully_replicated
    ):
        parts = np.empty(array.shape, array.dtype)
        for shard in array.addressable_shards:
            parts[shard.index] = shard.data
        return parts
    return np.array(array)


def digest(state: Any, facts: Mapping[str, Any]) -> int:
    """A number that changes with any bit of the arrays of a state, and with the facts."""
    number = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for leaf in jax.tree.leaves(state):
        number = zlib.crc32(leaf.tobytes(), number)
    return number


def named_arrays(tree: Any) -> dict[str, str]:
    """What the arrays of a tree are, such as `float32[3, 4]`, by names such as
    `params/conv/bias`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(
            path, simple=True, separator="/"
        ): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def differing_arrays(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """In what `named_arrays` of two trees differ: the first difference, and how many more; empty if
    in nothing.
    """
    differing = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    if not differing:
        return ""
    first = differing[0]
    said = f"{first} is {there.get(first, 'missing')} there, {here.get(first, 'missing')} here"
    more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
    narrow = [
        [arrays.get(name, "").replace("64[", "32[") for name in differing]
        for arrays in (there, here)
    ]
    wide = any("64[" in there.get(name, "") for name in differing)
    cause = (
        f"; it was written with{'' if wide else 'out'} 64-bit numbers: set "
        f"JAX_ENABLE_X64={int(wide)}"
    )
    return said + more + (cause if narrow[0] == narrow[1] else "")


def _accuracy(metrics: Any) -> float:
    return metrics["accuracy"]
