"""What a trained network does with an image: `python -m experiments.figures --workdir RUN` draws
it, at any checkpoint.

Of matrix capsules there are `convergence` and `assignments`; of capsules with a decoder, matrices
or vectors, `reconstructions`.
"""

import dataclasses
import sys
from pathlib import Path

from experiments.devices.hardware import start_jax
from experiments.devices.parallel import device_mesh
from experiments.learning.scoring import make_evaluator
from experiments.plots.pictures import draw_all, routing_drawings, run_drawings, run_pictures
from experiments.runs.directory import read_config, read_records, read_result
from experiments.runs.restore import restore
from experiments.runs.run_data import now_at
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError


@dataclasses.dataclass(frozen=True)
class FiguresCommand:
    """Draw what a run's network does with some images, into the folder figures of the run."""

    workdir: Path
    """The run's folder."""
    images: tuple[int, ...] = (0, 1, 2)
    """Which test images, counted from 0; pictures of a single image are of the first of these."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    dataset: Path | None = None
    """Where the .npz file of the run is now; the default is where it was."""
    step: int | None = None
    """Which checkpoint; the default is the newest."""


def run(command: FiguresCommand, _: str) -> None:
    """Draw the pictures, and those of the run itself that are missing.

    Raises:
        UsageError: there are none of such a run, or no such images or checkpoint.
        RunnerError: not all could be drawn.
    """
    config = now_at(read_config(command.workdir), command.dataset)
    if config.model.family != "capsules" and not config.model.reconstruction:
        raise UsageError(
            f"{command.workdir} holds a run of a network ({config.model.family}) with neither EM "
            "routing nor a decoder to draw"
        )
    devices = start_jax()[:1]
    step, state, dataset, model = restore(
        config, command.workdir, command.data_dir, command.step, devices
    )
    there_are, chosen = len(dataset.test_images), command.images
    if not chosen or not all(0 <= image < there_are for image in chosen):
        raise UsageError(
            f"images must be one or more numbers from 0 to {there_are - 1}; got {list(chosen)}"
        )
    folder = command.workdir / "figures"
    folder.mkdir(exist_ok=True)
    drawings = routing_drawings(config, model, state.params, step, dataset, chosen)
    missing = [name for name in run_pictures(config) if not (folder / f"{name}.png").exists()]
    result = read_result(command.workdir)
    if missing and result is not None and result["steps"] == step:
        evaluate = make_evaluator(config, model, device_mesh(devices))
        scores = evaluate(state.params, dataset.test_images, dataset.test_labels, step)
        of_run = run_drawings(config, dataset, scores, read_records(command.workdir))
        drawings = {name: of_run[name] for name in missing} | drawings
    print(f"wrote {', '.join(map(str, draw_all(folder, drawings)))}")


main = entry_point("experiments.figures", FiguresCommand, run)

if __name__ == "__main__":
    sys.exit(main())
