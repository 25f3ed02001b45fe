"""Checkpoints of a run: the two newest, to go on from, and the best, by Orbax."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

NOT_EVALUATED = -1.0


class Checkpoints:
    """The checkpoints in a folder, one for each step saved. A context manager: leaving it closes the folder.

    Saving is synchronous. It takes milliseconds, a saved step is complete on disk, and training may give up the arrays at once.
    Read-only, nothing in the folder is touched: another process may be saving there.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        best = checkpoint_managers.BestN(get_metric_fn=_accuracy, n=1)
        options = ocp.CheckpointManagerOptions(
            best_fn=_accuracy,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, accuracy: float = NOT_EVALUATED) -> None:
        """Save the state of a step, a tree of arrays, unless it is there already."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics={"accuracy": accuracy})

    def restore(self, step: int, like: Any, sharding: jax.sharding.Sharding) -> Any:
        """The state of a step, with the structure, shapes and dtypes of `like`, placed by `sharding`."""
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))


def _accuracy(metrics: Any) -> float:
    return metrics["accuracy"]
