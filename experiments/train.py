"""Train a capsule network: `python -m experiments.train --workdir RUN`; see configs.py for what can be set.

The run's folder is described in run_directory.py. The same command continues a run that was stopped.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.batches import TrainingBatches
from experiments.checkpoints import Checkpoints
from experiments.command_line import exit_code, parse
from experiments.configs import FAMILIES, Preset, TrainConfig, as_cnn, default_config
from experiments.datasets import Dataset
from experiments.errors import RunnerError, Stopped
from experiments.evaluate import Scores, load_data, make_evaluator
from experiments.interrupt import stop_request
from experiments.learner import (
    Metrics,
    TrainState,
    init_state,
    make_model,
    make_train_step,
    network_stages,
    routing_diagnostics,
)
from experiments.nonfinite import Guard, copied, examined
from experiments.parallel import REPLICATED, Devices, Mode, choose_devices, data_mesh, describe, parallelize, split_cpu
from experiments.results import draw_figures, numbers, summarize, table
from experiments.run_directory import Record, RunDirectory, check_usable, is_finished, read_result
from experiments.views import test_view

LOG_EVERY = 20  # steps between two looks at the metrics
TARGET_TOLERANCE = 0.005  # how near to a target error is at it
DIAGNOSED = 64  # test images whose routing is described beside each evaluation


class StepWindow:
    """The steps since the last look: the state before them, and their metrics, which until then stay on the device.

    Args:
        batch_size: images in a step.
        state: before the first step; it is copied, since the step gives it up.
    """

    def __init__(self, batch_size: int, state: TrainState):
        self._batch_size = batch_size
        self._before = copied(state)
        self._metrics: list[Metrics] = []
        self._start = time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        """Note a step that has been started, and wait until the one before it is done: not more than two are under way."""
        self._metrics.append(metrics)
        if len(self._metrics) > 1:
            jax.block_until_ready(self._metrics[-2])

    def close(self, step: int, guard: Guard) -> Record:
        """The means over the window that ends at `step`.

        Raises:
            NonfiniteError: a loss or gradient is not finite.
        """
        window = jax.device_get(self._metrics)
        guard.check_steps(self._before, window)
        means = {name: float(np.mean([getattr(metrics, name) for metrics in window])) for name in Metrics._fields}
        seconds = time.perf_counter() - self._start
        return {"step": step, "split": "train", **means, "images_per_second": len(window) * self._batch_size / seconds}


def train(
    config: TrainConfig,
    dataset: Dataset,
    workdir: Path,
    *,
    parallel: Mode = "jit",
    devices: Devices | None = None,
    command: str = "",
) -> Record:
    """Train, or continue to train, and leave the run in `workdir`.

    Args:
        config: what to train.
        dataset: the data set of that name.
        workdir: new, or with an unfinished run of this config, which goes on from its newest checkpoint.
        parallel: how the devices share a batch.
        devices: which; None for as many as divide the batch size.
        command: what the user has typed, for the record.

    Returns:
        What result.json holds.

    Raises:
        RunnerError: the folder or the config cannot be used.
        NonfiniteError: training has diverged. What was saved before stays; what led to it is in `nonfinite/`.
        Stopped: by Ctrl-C or SIGTERM, after saving.
    """
    start = time.perf_counter()
    devices = devices or choose_devices(config.batch_size)
    model = make_model(config.model, len(dataset.class_names))
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    try:
        batches = TrainingBatches(dataset.train_images, dataset.train_labels, data_key, config.batch_size, config.images)
        first_images = batches(0).images
        init = jax.jit(functools.partial(init_state, config, model))
        state: TrainState = jax.eval_shape(init, first_images, init_key)
    except ValueError as error:  # this batch size or network does not fit these images
        raise RunnerError(str(error)) from error
    step_function = make_train_step(config, model)
    step_on_devices = parallelize(step_function, parallel, devices)
    evaluate = make_evaluator(config, model, devices)
    view = functools.partial(test_view, config.images)
    diagnose = jax.jit(lambda params, images, step: routing_diagnostics(config, model, params, view(images), step))

    with (
        RunDirectory(workdir, config) as run,
        Checkpoints(run.checkpoints) as checkpoints,
        stop_request() as stop,
        progress_bar(config.steps) as progress,
    ):
        if saved := checkpoints.steps():
            state = checkpoints.restore(saved[-1], state, jax.NamedSharding(data_mesh(devices), REPLICATED))
            progress.write(f"going on after step {saved[-1]}", file=sys.stdout)
        else:
            state = step_on_devices.replicate(init(first_images, init_key))
        step = progress.n = int(state.step)
        run.rewind(step)
        errors = {record["step"]: 1 - record["accuracy"] for record in run.records() if record["split"] == "test"}
        done = at_target(config, errors.get(step))
        start -= max((record["seconds"] for record in run.records()), default=0)

        def log(record: Record) -> None:
            run.append({**record, "seconds": time.perf_counter() - start})

        def go_on_training() -> None:
            progress.set_description("training")
            progress.unpause()  # what came between is not part of the time that remains

        def score_and_save(step: int, state: TrainState) -> Scores:
            progress.set_description("evaluating")
            scores = evaluate(state.params, dataset.test_images, dataset.test_labels, step)
            guard.check_scores(state, scores, dataset, view, config.batch_size)
            if step not in checkpoints.steps():
                log({"step": step, "split": "test", "loss": scores.loss, "accuracy": scores.accuracy})
                layers = jax.device_get(diagnose(state.params, dataset.test_images[:DIAGNOSED], step))
                if layers:
                    log({"step": step, "split": "diagnostics"} | {name: numbers(found) for name, found in layers.items()})
                checkpoints.save(step, state, scores.accuracy)
            return scores

        progress.set_description("compiling")
        compile_start = time.perf_counter()
        train_step = step_on_devices.step.lower(state, step_on_devices.shard(batches(step))).compile()
        compile_seconds = time.perf_counter() - compile_start
        examine = parallelize(examined(step_function, functools.partial(network_stages, config, model)), parallel, devices)
        guard = Guard(run.path / "nonfinite", batches, train_step, examine)

        go_on_training()
        window = StepWindow(config.batch_size, state)
        while step < config.steps and not done:
            step += 1
            state, metrics = train_step(state, step_on_devices.shard(batches(step - 1)))
            window.add(metrics)
            progress.update()
            evaluation_due = step % config.eval_every == 0 and step < config.steps
            if step % LOG_EVERY == 0 or evaluation_due or stop.requested or step == config.steps:
                record = window.close(step, guard)
                log(record)
                show(progress, record)
                if evaluation_due:
                    scores = score_and_save(step, state)
                    progress.write(f"step {step}: {config.scored} error {scores.error:.2%}", file=sys.stdout)
                    done = at_target(config, scores.error)
                    go_on_training()
                if stop.requested and step < config.steps and not done:
                    checkpoints.save(step, state)
                    raise Stopped(f"stopped after step {step} of {config.steps}, saved in {workdir}")
                window = StepWindow(config.batch_size, state)

        scores = score_and_save(step, state)
        records = run.records()
        draw_figures(run.figures, config, model, dataset, state, scores, records)
        result = summarize(config, dataset, state, scores, records) | {
            "train_seconds": time.perf_counter() - start,
            "compile_seconds": compile_seconds,
            "devices": len(devices),
            "device_kind": devices[0].device_kind,
            "parallel": parallel,
            "jax_version": jax.__version__,
            "command": command,
        }
        run.finish(result)
    return result


def at_target(config: TrainConfig, error: float | None) -> bool:
    """Whether this error, if there is one, is the one to stop at."""
    return config.target_error is not None and error is not None and abs(error - config.target_error) <= TARGET_TOLERANCE


def progress_bar(steps: int) -> tqdm:
    """A bar of training steps; not redrawn often where it cannot be redrawn in place."""
    return tqdm(
        total=steps,
        bar_format="{l_bar}{bar}| step {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )


def show(progress: tqdm, record: Record) -> None:
    """Put the newest metrics beside the bar."""
    progress.set_postfix_str(
        f"loss {record['loss']:.4f}, accuracy {record['accuracy']:.1%}, {record['images_per_second']:.0f} images/s",
        refresh=False,
    )


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a matrix capsule network with EM routing; the same command continues a run that was stopped."""

    config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    preset: Preset = "emcaps"
    """Constants and initial values of the routing, which other flags may change: ours, the paper's, or IBM's."""
    baseline: bool = False
    """Then train the paper's CNN on the same data for as many steps, into the folder WORKDIR-cnn, and print both results."""
    workdir: Path | None = None
    """The run's folder; the default is runs/ and the data set's name, without .npz or what is before it."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    parallel: Mode = "jit"
    """How the devices share a batch."""
    devices: int | None = None
    """How many devices; the default is as many as divide the batch size. The CPU counts as one per core."""

    def __post_init__(self):
        family = self.config.model.family
        if family != "capsules" and self.preset != "emcaps":
            raise ValueError(f"{FAMILIES[family]} no EM routing, of which there could be a preset; got {self.preset}")
        if family == "cnn" and self.baseline:
            raise ValueError("--baseline trains the cnn beside capsules; got --model cnn")


def default_command(words: Sequence[str]) -> TrainCommand:
    """What no flag says, given the words of a command. Of toynorb nothing is published to compare with: the CNN is trained too."""
    config = default_config(words)
    return TrainCommand(config=config, baseline=config.dataset == "toynorb" and config.model.family == "capsules")


def planned_runs(command: TrainCommand) -> dict[Path, TrainConfig]:
    """What is to be trained, by folder. Raises RunnerError if a folder cannot be used, or there is nothing to do."""
    workdir = command.workdir or Path("runs", Path(command.config.dataset).stem)
    runs = {workdir: command.config}
    if command.baseline:
        runs[workdir.with_name(f"{workdir.name}-cnn")] = as_cnn(command.config)
    unfinished = {path: config for path, config in runs.items() if not is_finished(path, config)}
    for path, config in (unfinished or runs).items():
        check_usable(path, config)
    return runs


def trained(
    config: TrainConfig, workdir: Path, data_dir: Path | None, typed: str, how: Mode = "jit", count: int | None = None
) -> Record:
    """The result of the run of this config in a folder, which is trained, or continued, if it is not finished.

    Args:
        config: of the run.
        workdir: its folder.
        data_dir: TFDS folder.
        typed: the command that asks for it, for the record.
        how: devices share a batch.
        count: of devices; None for as many as divide the batch size.

    Raises:
        RunnerError, NonfiniteError, Stopped: as `train` does.
    """
    if is_finished(workdir, config):
        print(f"{workdir} is finished")
    else:
        check_usable(workdir, config)
        devices = choose_devices(config.batch_size, count)
        dataset = load_data(config, data_dir)
        print(f"{dataset.name} on {describe(devices)}, into {workdir}")
        train(config, dataset, workdir, parallel=how, devices=devices, command=typed)
    return read_result(workdir) or {}


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parse(TrainCommand, "python -m experiments.train", arguments, default_command(arguments))

    def run(typed: str) -> None:
        runs = planned_runs(command)
        split_cpu(command.devices)
        results = [
            trained(config, workdir, command.data_dir, typed, command.parallel, command.devices) for workdir, config in runs.items()
        ]
        same = {"command": typed} if len(results) > 1 else {}
        print(table([{name: value for name, value in result.items() if name not in same} for result in results]))

    return exit_code(run, "experiments.train", arguments)


if __name__ == "__main__":
    sys.exit(main())
