"""What a finished run has reached: the record for result.json, and its table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.data.classes import class_errors, named, without_images
from experiments.data.dataset import Dataset
from experiments.learning.configs import TrainConfig
from experiments.learning.scoring import Scores
from experiments.learning.step import TrainState
from experiments.runtime.records import Record
from experiments.runtime.tables import aligned


def summarize(
    config: TrainConfig,
    dataset: Dataset,
    state: TrainState,
    scores: Scores,
    records: Sequence[Record],
) -> dict[str, Any]:
    """What was trained and what it has reached, for result.json; the scores are those of the last
    step.

    `loop.train` adds times: `train_seconds` of training, compiling, evaluating and saving, over all
    processes of the run, and how much of it the last process spent in `compile_seconds` (the
    training step) and `evaluate_seconds`. Drawing comes after.
    """
    missing = without_images(dataset.test_labels, dataset.class_names)
    return {
        "dataset": dataset.name,
        "model": config.model.family,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        **config.model.iterations,
        "steps": int(state.step),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "scored_on": "test set" if config.scored == "test" else "held-out training images",
        "test_error": scores.error,
        "test_accuracy": scores.accuracy,
        "test_examples": scores.num_examples,
        "test_loss": scores.loss,
        "class_errors": class_errors(scores.predictions, dataset.test_labels, dataset.class_names),
        **({"untested_classes": missing} if missing else {}),
        "best_test_accuracy": max(
            record["accuracy"] for record in records if record["split"] == "test"
        ),
        "images_per_second": statistics.median(
            r["images_per_second"] for r in records if r["split"] == "train"
        ),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results of runs side by side, one field a line; a run that has no such field leaves its place
    empty.

    What is itself a table, such as the error of each class, is left out.
    """
    names = list(
        dict.fromkeys(
            name
            for result in results
            for name, value in result.items()
            if not isinstance(value, Mapping)
        )
    )
    return aligned([[name, *(cell(result.get(name, "")) for result in results)] for name in names])


def cell(value: Any) -> str:
    """A value as the table shows it."""
    if isinstance(value, list):
        return named([str(item) for item in value])
    return f"{value:.6g}" if isinstance(value, float) else str(value)
