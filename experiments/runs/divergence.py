"""What stops a run whose loss or gradient is not finite, and what it leaves for the search of the
cause.

In the run's folder, `nonfinite/`:

    batch.npz      the batch: images, float32 `[B, H, W, C]`, as the network saw them, labels,
                   int32 `[B]`, and (but where an evaluation stopped the run) dropout_keys,
                   uint32 `[B, 2]`
    state/         the training state before the step, the one checkpoint there (checkpoints.py)
    report.json    written last: the step, the first layer, what of it, the metrics, and every
                   place that is not finite

Training itself only looks at its metrics now and then. The step, its batch and the state before it
are found again by repeating the steps since the last look: they are a pure function of that state
and of the batches, which are one of the step's number.
"""

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.batches import Batch
from experiments.data.dataset import Dataset
from experiments.devices.parallel import ParallelStep
from experiments.learning.scoring import Scores
from experiments.learning.step import Metrics, TrainState
from experiments.runs.checkpoints import Checkpoints
from experiments.runtime import processes
from experiments.runtime.errors import RunnerError
from experiments.runtime.records import read_record, write_atomically

Place = tuple[str, str]  # a layer, and what of it


class NonfiniteError(RunnerError):
    """A loss or gradient is not finite; what led to it has been saved."""


class Guard:
    """Stops a run at the first step whose loss or gradient is not finite.

    Args:
        folder: where to leave what led to it. Files of an earlier stop of the same run are
            replaced, and the message says so.
        batches: the run's training batches, by the number of steps taken before.
        train_step: from the state and the shared batch to the new state and metrics; the old state
            is given up.
        examine: the step of `examined`, on the same devices; it is not compiled unless it is
            needed.
    """

    def __init__(
        self,
        folder: Path,
        batches: Callable[[int], Batch],
        train_step: Callable,
        examine: ParallelStep,
    ):
        self._folder = folder
        self._batches = batches
        self._train_step = train_step
        self._examine = examine

    def check_steps(self, before: TrainState, metrics: Sequence[Metrics]) -> None:
        """Look at steps that have been taken.

        Args:
            before: the state before the first of them. It is given up if one is not finite.
            metrics: of each.

        Raises:
            NonfiniteError: a loss or a gradient norm is not finite.
        """
        metrics = jax.device_get(metrics)
        index = first_nonfinite(metrics)
        if index is None:
            return
        state, step = before, int(before.step)
        for earlier in range(step, step + index):
            state, _ = self._train_step(state, self._examine.shard(self._batches(earlier)))
        values = {"loss": metrics[index].loss, "gradient_norm": metrics[index].gradient_norm}
        raise self._stop(step + index + 1, state, self._batches(step + index), values)

    def check_scores(
        self,
        state: TrainState,
        scores: Scores,
        dataset: Dataset,
        view: Callable[[jax.Array], jax.Array],
        batch_size: int,
    ) -> None:
        """Look at the scores that a state has on the test set.

        What is then examined is a step, which of schedule-free Adam takes its gradient beside the
        parameters that were scored.

        Args:
            state: with the parameters that were scored.
            scores: theirs.
            dataset: with the test images that were scored.
            view: what the network sees of them.
            batch_size: how many of them to examine and save, as many as the devices can share.

        Raises:
            NonfiniteError: the test loss is not finite.
        """
        if np.isfinite(scores.loss):
            return
        chosen = from_first_nonfinite(scores.activations, batch_size)
        batch = Batch(
            view(jnp.asarray(dataset.test_images[chosen])), jnp.asarray(dataset.test_labels[chosen])
        )
        raise self._stop(int(state.step), state, batch, {"test_loss": scores.loss})

    def _stop(
        self, step: int, state: TrainState, batch: Batch, values: Mapping[str, Any]
    ) -> NonfiniteError:
        """Examine and save what went wrong in a step, and say so."""
        findings = jax.device_get(self._examine.step(copied(state), self._examine.shard(batch))[1])
        report = make_report(step, values, findings)
        try:
            earlier = read_report(self._folder)
        except (OSError, RunnerError):  # damaged
            earlier = None
        where = f"are in {self._folder}" + (
            f", in place of those of step {earlier['step']}" if earlier else ""
        )
        try:
            save(self._folder, state, batch, report)
        except (OSError, RunnerError) as error:  # the disk must not hide what happened
            where = f"could not be saved ({error})"
        return NonfiniteError(
            f"training diverged at step {step}: "
            f"{', '.join(f'{name} {value:g}' for name, value in values.items())}; "
            f"{describe(report)}. The batch and the state that led to it {where}. To try other "
            "settings, such as a lower --learning-rate, choose another --workdir"
        )


def first_nonfinite(metrics: Sequence[Metrics]) -> int | None:
    """The index of the first step whose loss or gradient norm is not finite; None if
    there is none.
    """
    nonfinite = [not np.isfinite([step.loss, step.gradient_norm]).all() for step in metrics]
    return nonfinite.index(True) if any(nonfinite) else None


def from_first_nonfinite(activations: np.ndarray, count: int) -> np.ndarray:
    """`[count]` indices of examples, from the first whose activations `[N, J]` are not finite; past
    the last they start again.
    """
    nonfinite = ~np.isfinite(activations).all(-1)
    return (nonfinite.argmax() + np.arange(count)) % len(activations)


@jax.jit
def copied(state: TrainState) -> TrainState:
    """The same state, on the same devices, in arrays of its own: a step that gives up one of the
    two leaves the other.
    """
    return jax.tree.map(jnp.copy, state)


def examined(
    train_step: Callable, intermediates_of: Callable[..., Mapping[str, Any]]
) -> Callable[..., tuple[TrainState, OrderedDict[Place, jax.Array]]]:
    """A training step that returns, in place of its metrics, where it is not finite.

    Args:
        train_step: of `make_train_step`, which averages one function, that gives a gradient.
        intermediates_of: what each layer gives, of `(params, images, step, dropout_keys)`.

    Returns:
        The pure function `step(state, batch, average) -> (state, fractions)`, with the fractions of
        `nonfinite_fractions`.
    """

    def examined_step(
        state: TrainState, batch: Batch, average: Callable[..., Callable]
    ) -> tuple[TrainState, Any]:
        noted: dict[str, Any] = {}

        def average_and_note(function: Callable) -> Callable:
            def with_intermediates(params: Any, batch: Batch, step: jax.Array) -> tuple[Any, Any]:
                intermediates = intermediates_of(params, batch.images, step, batch.dropout_keys)
                means, gradient = function(params, batch, step)
                # JAX sorts the keys of any other dictionary, and layers have an order.
                by_layer = OrderedDict(
                    (layer, layer_fractions(outputs)) for layer, outputs in intermediates.items()
                )
                return (means, by_layer), gradient

            def averaged(*given: Any) -> tuple[Any, Any]:
                (means, by_layer), gradient = average(with_intermediates)(*given)
                noted.update(params=given[0], intermediates=by_layer, gradient=gradient)
                return means, gradient

            return averaged

        new_state, metrics = train_step(state, batch, average_and_note)
        return new_state, nonfinite_fractions(metrics=metrics, **noted)

    return examined_step


def layer_fractions(outputs: Any) -> OrderedDict[str, jax.Array]:
    """Which fraction of the values is not finite in each field of what a layer gave: an array, or a
    NamedTuple of arrays.
    """
    fields = outputs._asdict() if hasattr(outputs, "_asdict") else {"features": outputs}
    return OrderedDict((name, nonfinite_fraction(field)) for name, field in fields.items())


def nonfinite_fractions(
    params: Mapping[str, Any],
    intermediates: Mapping[str, Mapping[str, jax.Array]],
    gradient: Mapping[str, Any],
    metrics: Metrics,
) -> OrderedDict[Place, jax.Array]:
    """Which fraction of the values is not finite, of everything that a step computes, in the order
    in which it does.

    Args:
        params: where the gradient was taken, before the step, by layer.
        intermediates: of what each layer gave, in the order of the data: `layer_fractions`.
        gradient: by layer.
        metrics: of the step.

    Returns:
        Scalars: of each layer its parameters and what it gave; of the loss; of each layer, from the
        last to the first, its gradient; and of the gradient's norm, which can overflow when the
        gradient does not.
    """
    # An OrderedDict, because JAX sorts the keys of any other.
    fractions: OrderedDict[Place, jax.Array] = OrderedDict()
    for layer, fields in intermediates.items():
        fractions[layer, "parameters before the step"] = nonfinite_fraction(params[layer])
        fractions |= {(layer, name): fraction for name, fraction in fields.items()}
    fractions["loss", "mean over the batch"] = nonfinite_fraction(metrics.loss)
    backwards = list(intermediates)[::-1]
    fractions |= {(layer, "gradient"): nonfinite_fraction(gradient[layer]) for layer in backwards}
    norms = {layer: optax.tree.norm(gradient[layer]) for layer in backwards} | {
        "all layers": metrics.gradient_norm
    }
    return fractions | {
        (layer, "norm of the gradient"): nonfinite_fraction(norm) for layer, norm in norms.items()
    }


def nonfinite_fraction(tree: Any) -> jax.Array:
    """Of the values in a tree of arrays, a float32 scalar."""
    values = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return jnp.mean(~jnp.isfinite(values), dtype=jnp.float32)


def make_report(
    step: int, values: Mapping[str, Any], fractions: Mapping[Place, Any]
) -> dict[str, Any]:
    """What report.json holds.

    Args:
        step: which step went wrong, counted from 1.
        values: its metrics; those that are not finite become strings, since JSON has no number for
            them.
        fractions: of `nonfinite_fractions`, as numbers.

    Returns:
        `step`, `layer` and `what` of the first place that is not finite (None if repeating the step
        found none), the values, and `nonfinite`, all such places in order.
    """
    places = [
        {"layer": layer, "what": what, "fraction": float(fraction)}
        for (layer, what), fraction in fractions.items()
        if fraction > 0
    ]
    first = places[0] if places else {"layer": None, "what": None}
    numbers = {
        name: float(value) if np.isfinite(value) else str(value) for name, value in values.items()
    }
    return {
        "step": step,
        "layer": first["layer"],
        "what": first["what"],
        **numbers,
        "nonfinite": places,
    }


def describe(report: Mapping[str, Any]) -> str:
    """Where the first value is that is not finite."""
    if report["layer"] is None:
        return "no such value was found when the step was repeated"
    return f"the first value that is not finite is in {report['layer']} ({report['what']})"


def save(folder: Path, state: TrainState, batch: Batch, report: Mapping[str, Any]) -> None:
    """Write the files that the head of this module describes, in place of those that are there;
    other files stay.
    """
    if processes.is_first():
        (folder / "report.json").unlink(missing_ok=True)
        if (folder / "state").exists():
            shutil.rmtree(folder / "state")
        folder.mkdir(exist_ok=True)
    processes.wait_for_all("what an earlier stop has left is gone")
    arrays = {"images": batch.images, "labels": batch.labels}
    if batch.dropout_keys is not None:
        arrays["dropout_keys"] = batch.dropout_keys
    with Checkpoints(folder / "state") as checkpoints:
        checkpoints.save(int(state.step), state)
    if not processes.is_first():
        return
    np.savez(folder / "batch.npz", **jax.device_get(arrays))
    write_atomically(folder / "report.json", json.dumps(report, indent=2) + "\n")


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report in a folder; None if there is none. Raises RunnerError if it is damaged."""
    file = folder / "report.json"
    return read_record(file) if file.exists() else None
