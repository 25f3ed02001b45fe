"""Score a trained network on the test set; `python -m experiments.evaluate --workdir RUN` repeats a
run's own evaluation.
"""

import dataclasses
import sys
from pathlib import Path

from experiments.data.classes import untested
from experiments.devices.hardware import choose_devices, start_jax
from experiments.devices.parallel import device_mesh
from experiments.learning.scoring import make_evaluator
from experiments.runs.directory import read_config, read_result
from experiments.runs.restore import restore
from experiments.runs.run_data import now_at
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError
from experiments.runtime.fields import check_positive, check_positive_or_none


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Restore a checkpoint of a run and score it on the test set."""

    workdir: Path
    """The run's folder."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    dataset: Path | None = None
    """Where the .npz file of the run is now; the default is where it was."""
    step: int | None = None
    """Which checkpoint; the default is the newest."""
    crops: int = 1
    """Crops of each test image over which class activations are averaged, the first in
    the center.
    """
    devices: int | None = None
    """How many devices; the default is the run's own number, because another one rounds
    differently.
    """

    def __post_init__(self):
        check_positive(self, "crops")
        check_positive_or_none(self, "devices")


def run(command: EvaluateCommand, _: str) -> int:
    """Print the scores, and whether they are those in result.json.

    Returns the exit code: 1 if they are not.
    """
    config, result = (
        now_at(read_config(command.workdir), command.dataset),
        read_result(command.workdir),
    )
    if command.crops > 1 and config.images.crop is None:
        raise UsageError(
            f"this run's network sees whole images, of which there are no {command.crops} crops"
        )
    num_devices = command.devices or (result["devices"] if result else None)
    start_jax(num_devices)
    devices = choose_devices(num_devices or config.batch_size, num_devices)
    step, state, dataset, model = restore(
        config, command.workdir, command.data_dir, command.step, devices
    )
    evaluate = make_evaluator(config, model, device_mesh(devices), command.crops)
    scores = evaluate(state.params, dataset.test_images, dataset.test_labels, step)
    wrong = scores.num_examples - scores.num_correct
    print(
        f"step {step}: {config.scored} error {scores.error:.4%} ({wrong} of "
        f"{scores.num_examples}), loss {scores.loss:.6f}"
    )
    if missing := untested(dataset, config.scored):
        print(missing)

    if result is None or step != result["steps"] or command.crops > 1:
        return 0
    same = scores.error == result["test_error"] and scores.num_examples == result["test_examples"]
    print(
        f"result.json has {result['test_error']:.4%}: "
        f"{'reproduced exactly' if same else 'NOT reproduced'}"
    )
    return 0 if same else 1


main = entry_point("experiments.evaluate", EvaluateCommand, run)

if __name__ == "__main__":
    sys.exit(main())
