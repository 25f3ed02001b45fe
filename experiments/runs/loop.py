"""The training loop: a run, from its folder as it is to its result.

The folder is described in directory.py.
"""

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.data.batches import check_batch_size
from experiments.data.classes import check_classes, untested
from experiments.data.dataset import Dataset
from experiments.data.preprocessing import evaluation_view, training_view
from experiments.devices.hardware import choose_devices, describe, programs_kept_in
from experiments.devices.parallel import Execution, shardings
from experiments.learning.configs import TrainConfig
from experiments.learning.network import make_model
from experiments.learning.scoring import Scores
from experiments.learning.step import Metrics, TrainState, init_state, state_of
from experiments.runs.checkpoints import NOT_EVALUATED, Checkpoints
from experiments.runs.directory import RunDirectory
from experiments.runs.divergence import Guard
from experiments.runs.initial_weights import InitialWeights, initial_weights
from experiments.runs.resume import facts_of, go_on_from
from experiments.runs.run_data import fingerprint, recorded_fingerprint
from experiments.runs.steps import Programs, StepWindow, make_programs, take_steps
from experiments.runs.summary import summarize
from experiments.runtime import processes
from experiments.runtime.errors import RunnerError, Stopped, UsageError, first_line
from experiments.runtime.records import Record, numbers
from experiments.runtime.signals import stop_request

LOG_EVERY = 20  # steps between two looks at the metrics
TARGET_TOLERANCE = 0.005  # how near to a target error is at it


def check_fits(config: TrainConfig, dataset: Dataset, execution: Execution) -> None:
    """Raise UsageError unless data, batch, network and devices fit together, of images by their
    shape. Nothing is compiled.
    """

    def first_state(images: jax.Array) -> TrainState:
        key, num_classes = jax.random.key(0), len(dataset.class_names)
        # It raises where there are no types to divide; the first state is that of a whole network.
        make_model(config.model, num_classes, execution.parent_axis)
        return init_state(
            config,
            make_model(config.model, num_classes),
            training_view(config.images, key, images),
            key,
        )

    check_classes(dataset)
    try:
        check_batch_size(config.batch_size, len(dataset.train_labels))
        shape = (config.batch_size, *dataset.train_images.shape[1:])
        jax.eval_shape(first_state, jax.ShapeDtypeStruct(shape, dataset.train_images.dtype))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if any(types % execution.model_axis for types in config.model.conv_capsules):
        types = list(config.model.conv_capsules)
        raise UsageError(
            f"the model axis must divide each of conv_capsules, {types}; got {execution.model_axis}"
        )


def train(
    config: TrainConfig,
    dataset: Dataset,
    workdir: Path,
    *,
    execution: Execution | None = None,
    resume: bool = True,
    fall_back: bool = False,
    tensorboard: bool = False,
    command: str = "",
) -> Record:
    """Train, or continue to train, and leave the run in `workdir`.

    Args:
        config: what to train.
        dataset: the data set of that name.
        workdir: new, or with an unfinished run of this config, which goes on from its newest
            checkpoint; or with a finished run of fewer steps, which goes on as this config says
            from there. All processes see it.
        execution: on what; None for as many devices as divide the batch size.
        resume: whether an unfinished run may go on.
        fall_back: whether it may go on from an older checkpoint where newer ones are damaged.
        tensorboard: whether event files of TensorBoard are written beside metrics.jsonl.
        command: what the user has typed, for the record.

    Returns:
        What result.json holds.

    Raises:
        UsageError: the folder or the config cannot be used.
        RunnerError: the folder can no longer be written to, or another process is gone.
        NonfiniteError: training has diverged. What was saved before stays; what led to it is in
            `nonfinite/`.
        Stopped: by Ctrl-C or SIGTERM, after saving.
    """
    execution = execution or Execution(choose_devices(config.batch_size))
    check_fits(config, dataset, execution)
    # A run that goes on has its own weights, and does not need those that it began with.
    weights = (
        None
        if recorded_fingerprint(workdir / "checkpoints") is not None
        else initial_weights(config, dataset)
    )
    try:
        with (
            RunDirectory(workdir, config, resume, tensorboard) as run,
            programs_kept_in(workdir / "compiled"),
        ):
            programs = make_programs(config, dataset, execution)
            return _train(config, dataset, run, programs, weights, execution, fall_back, command)
    except OSError as error:
        raise RunnerError(
            f"{workdir} cannot be written to ({first_line(error)}). What was saved there before is "
            "whole: when there is room again, the same command goes on from it"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise RunnerError(
            f"a step failed, most likely because another process is gone ({first_line(error)}). "
            "What was saved is whole: start all processes again with the same commands"
        ) from error


def _train(
    config: TrainConfig,
    dataset: Dataset,
    run: RunDirectory,
    programs: Programs,
    weights: InitialWeights | None,
    execution: Execution,
    fall_back: bool,
    command: str,
) -> Record:
    """The run in a folder that is open."""
    start = time.perf_counter()
    data = fingerprint(config, dataset)
    with (
        Checkpoints(run.checkpoints) as checkpoints,
        stop_request() as stop,
        progress_bar(config.steps) as progress,
    ):
        say = (
            functools.partial(progress.write, file=sys.stdout)
            if processes.is_first()
            else lambda _: None
        )
        say(f"{dataset.name} on {describe(execution.devices)}, into {run.path}")
        if missing := untested(dataset, config.scored):
            say(missing)
        if not run.locked:
            say("there are no locks here: let no other process train in this folder")
        batches, init = programs.begin(config.seed)
        like: TrainState = jax.eval_shape(init)
        window_before: list[Metrics] = []
        if checkpoints.steps():
            state, facts = go_on_from(
                checkpoints, config, data, like, shardings(like, execution.mesh), fall_back
            )
            window_before = [Metrics(*map(jnp.float32, values)) for values in facts["window"]]
            say(f"going on after step {int(state.step)}")
            origin = facts.get("origin")
        else:
            state = init()
            origin = None
            if weights is not None:
                say(f"beginning with the weights of {weights.origin}")
                state, origin = state_of(config, weights.params), weights.origin
            state = programs.step.replicate(state)
        step = progress.n = int(state.step)
        run.rewind(step)
        errors = {
            record["step"]: 1 - record["accuracy"]
            for record in run.records()
            if record["split"] == "test"
        }
        done = at_target(config, errors.get(step))
        evaluate_seconds = 0.0
        start -= max((record["seconds"] for record in run.records()), default=0)

        def log(record: Record) -> None:
            run.append({**record, "seconds": time.perf_counter() - start})

        def go_on_training() -> None:
            progress.set_description("training")
            progress.unpause()  # what came between is not part of the time that remains

        def save(
            step: int,
            state: TrainState,
            window: Sequence[Metrics] = (),
            accuracy: float = NOT_EVALUATED,
        ) -> None:
            facts = facts_of(config, data, batches.place(step), window, origin)
            checkpoints.save(step, state, facts, accuracy)

        def score_and_save(step: int, state: TrainState) -> Scores:
            nonlocal evaluate_seconds
            progress.set_description("evaluating")
            evaluate_start = time.perf_counter()
            scores = programs.evaluate(state.params, dataset.test_images, dataset.test_labels, step)
            guard.check_scores(
                state,
                scores,
                dataset,
                functools.partial(evaluation_view, config.images),
                config.batch_size,
            )
            if step not in checkpoints.steps():
                log(
                    {
                        "step": step,
                        "split": "test",
                        "loss": scores.loss,
                        "accuracy": scores.accuracy,
                    }
                )
                if layers := programs.diagnose(state.params, step):
                    log(
                        {"step": step, "split": "diagnostics"}
                        | {name: numbers(found) for name, found in layers.items()}
                    )
                save(step, state, accuracy=scores.accuracy)
            evaluate_seconds += time.perf_counter() - evaluate_start
            return scores

        remaining = range(step, step if done else config.steps)
        train_step, compile_seconds = programs.step, 0.0
        if remaining:
            progress.set_description("compiling")
            compile_start = time.perf_counter()
            lowered = train_step.step.lower(state, train_step.shard(batches(step)))
            train_step = train_step._replace(step=lowered.compile())
            compile_seconds = time.perf_counter() - compile_start
        guard = Guard(run.path / "nonfinite", batches, train_step.step, programs.examine)

        go_on_training()
        window = StepWindow(config.batch_size, state, window_before)
        steps = take_steps(train_step, batches, state, remaining)
        for state, metrics in steps:
            step += 1
            window.add(metrics)
            progress.update()
            evaluation_due = step % config.eval_every == 0 and step < config.steps
            look = step % LOG_EVERY == 0 or evaluation_due or step == config.steps
            if look:
                record = window.close(step, guard)
                log(record)
                if temperatures := programs.temperatures(state.params):
                    log({"step": step, "split": "temperatures"} | temperatures)
                show(progress, record)
                if evaluation_due:
                    scores = score_and_save(step, state)
                    say(f"step {step}: {config.scored} error {scores.error:.2%}")
                    done = at_target(config, scores.error)
                    go_on_training()
                window = StepWindow(config.batch_size, state)
            # One process stops at once; several agree to, at a look.
            may_stop = (look or jax.process_count() == 1) and step < config.steps and not done
            if may_stop and processes.anywhere(stop.requested):
                save(step, state, window.checked(guard))
                checkpoints.wait()  # before anybody is told that it is saved
                raise Stopped(
                    f"stopped after step {step} of {config.steps}, saved in {run.path}",
                    processes.anywhere(stop.preempted),
                )
            if done:
                break

        scores = score_and_save(step, state)
        state = state._replace(params=jax.tree.map(processes.fetch, state.params))
        records = run.records()
        result = summarize(config, dataset, state, scores, records) | {
            "train_seconds": time.perf_counter() - start,
            "compile_seconds": compile_seconds,
            "evaluate_seconds": evaluate_seconds,
            "devices": len(execution.devices),
            "device_kind": execution.devices[0].device_kind,
            "processes": jax.process_count(),
            **{name: getattr(execution, name) for name in ("parallel", "model_axis", "accumulate")},
            "jax_version": jax.__version__,
            "command": command,
        }
        if origin is not None:
            result["init_from"] = origin
        if extended_at := run.extended_at():
            result["extended_at"] = extended_at
        checkpoints.wait()
        run.finish(result)
        if processes.is_first():
            progress.set_description("drawing")
            # Here, since Matplotlib is not needed before.
            from experiments.plots.pictures import draw_figures

            draw_figures(run.figures, config, dataset, state, scores, records, say)
    return result


def at_target(config: TrainConfig, error: float | None) -> bool:
    """Whether this error, if there is one, is the one to stop at."""
    return (
        config.target_error is not None
        and error is not None
        and abs(error - config.target_error) <= TARGET_TOLERANCE
    )


def progress_bar(steps: int) -> tqdm:
    """A bar of training steps; not redrawn often where it cannot be redrawn in place."""
    return tqdm(
        total=steps,
        bar_format="{l_bar}{bar}| step {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        mininterval=0.1 if sys.stderr.isatty() else 10,
        disable=not processes.is_first(),
    )


def show(progress: tqdm, record: Record) -> None:
    """Put the newest metrics beside the bar."""
    progress.set_postfix_str(
        f"loss {record['loss']:.4f}, accuracy {record['accuracy']:.1%}, "
        f"{record['images_per_second']:.0f} images/s",
        refresh=False,
    )
