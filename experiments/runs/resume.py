"""Where an unfinished run goes on: what a checkpoint remembers beside the state, and which
checkpoint it is.

Whether a folder may be trained in at all says `directory.check_usable`; here other configs and
other data than the checkpoint's are refused.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.learning.configs import TrainConfig, from_json
from experiments.learning.step import Metrics, TrainState
from experiments.runs.checkpoints import Checkpoints, DamagedCheckpoint
from experiments.runs.directory import differing_fields, is_longer
from experiments.runs.run_data import Fingerprint, check_data, remembered
from experiments.runtime.errors import RunnerError, UsageError


def facts_of(
    config: TrainConfig,
    data: Fingerprint,
    place: tuple[int, int],
    window: Sequence[Metrics],
    origin: str | None,
) -> dict[str, Any]:
    """What to save with the state after a step, in terms of JSON. Random keys are those of the
    config's seed and the step.

    Args:
        config: of the run.
        data: `fingerprint` of what it trains on and is scored on.
        place: epoch and position in it of the next batch.
        window: metrics of the steps since the last record, which the next record is to contain.
        origin: of the weights that the run began with, if they are those of another.
    """
    metrics = [[float(value) for value in step] for step in window]
    facts = {
        "config": dataclasses.asdict(config),
        **data._asdict(),
        "epoch": place[0],
        "position": place[1],
        "window": metrics,
    }
    return facts | {"origin": origin}


def go_on_from(
    checkpoints: Checkpoints,
    config: TrainConfig,
    data: Fingerprint,
    like: TrainState,
    shardings: Any,
    fall_back: bool,
) -> tuple[TrainState, Mapping[str, Any]]:
    """The newest state of a run, and what was saved with it.

    Args:
        checkpoints: of the run, at least one.
        config: what it should be a run of.
        data: `fingerprint` of what it would go on with.
        like: a state of such a run.
        shardings: where to put the state.
        fall_back: whether to pass over damaged checkpoints; they are set aside.

    Raises:
        UsageError: it is of another config or data.
        RunnerError: the newest checkpoint is damaged, and may not be passed over, or all are.
    """
    *earlier, newest = checkpoints.steps()
    try:
        return restored(checkpoints, newest, config, data, like, shardings)
    except DamagedCheckpoint as error:
        if not earlier:
            raise RunnerError(
                f"{error}, and there is no other; to begin anew, choose another --workdir"
            ) from error
        if not fall_back:
            raise RunnerError(
                f"{error}; with --fall-back the run goes on from the newest that is whole"
            ) from error
    damaged = [newest]
    for step in reversed(earlier):
        try:
            found = restored(checkpoints, step, config, data, like, shardings)
        except DamagedCheckpoint:
            damaged.append(step)
            continue
        checkpoints.set_aside(damaged)
        return found
    raise RunnerError(
        f"all checkpoints in {checkpoints.folder} are damaged; to begin anew, choose another "
        "--workdir"
    )


def restored(
    checkpoints: Checkpoints,
    step: int,
    config: TrainConfig,
    data: Fingerprint,
    like: TrainState,
    shardings: Any,
) -> tuple[TrainState, Mapping[str, Any]]:
    """The state of a step and its facts.

    Raises DamagedCheckpoint, and UsageError if it is of another config or other data.
    """
    facts = checkpoints.facts(step)
    where = f"the checkpoint of step {step} in {checkpoints.folder}"
    try:
        saved_config = from_json(json.dumps(facts["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(
            f"{where} is damaged (its config is none that this version knows: {error})"
        ) from error
    made_longer = step == saved_config.steps and is_longer(config, saved_config)
    if not made_longer and (differences := differing_fields(saved_config, config)):
        raise UsageError(f"{where} is of another config ({differences}); choose another --workdir")
    check_data(remembered(facts), data, config, where)
    return checkpoints.restore(step, like, shardings), facts
