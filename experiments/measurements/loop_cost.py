"""What a run costs beside its steps: the loop against the bare step, in turns;
`python -m experiments.benchmark --parts loop`.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.data.dataset import Dataset
from experiments.data.preprocessing import ImageConfig
from experiments.devices.hardware import choose_devices, programs_kept_in
from experiments.devices.parallel import Execution
from experiments.learning.configs import TrainConfig
from experiments.runs.directory import read_records
from experiments.runs.loop import train
from experiments.runs.steps import make_programs, take_steps

# A checkpoint every so many steps, far more often than by default.
SAVE_EVERY = 50
STEPS = 4 * SAVE_EVERY
# Nearly nothing to score: evaluation is not what is measured.
CONFIG = TrainConfig(dataset="mnist", images=ImageConfig(), steps=STEPS, eval_every=SAVE_EVERY)


def noise(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Images like MNIST's, and labels."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (number, 28, 28, 1), np.uint8), random.integers(
        0, 10, number, np.int32
    )


def benchmark_loop(repeats: int) -> dict[str, Any]:
    """Milliseconds of a step of the default recipe at MNIST's size, on all devices.

    Returns:
        Of each repeat, `bare`: one compiled step after the other on one batch that is there
        already; and `loop`: a whole run, with its batches drawn and its metrics logged, from its
        first checkpoint to its last step.
    """
    dataset = Dataset("mnist", tuple("0123456789"), *noise(20_000), *noise(2))
    execution = Execution(choose_devices(CONFIG.batch_size))
    programs = make_programs(CONFIG, dataset, execution)
    batches, init = programs.begin(CONFIG.seed)
    batch = programs.step.shard(batches(0))
    milliseconds: dict[str, list[float]] = {"bare": [], "loop": []}
    with tempfile.TemporaryDirectory() as folder, programs_kept_in(Path(folder, "compiled")):
        compiled = programs.step.step.lower(programs.step.replicate(init()), batch).compile()
        bare_step = programs.step._replace(step=compiled, shard=lambda batch: batch)
        for number in range(repeats):
            state = programs.step.replicate(init())
            start = time.perf_counter()
            for newest in take_steps(bare_step, lambda _: batch, state, range(STEPS - SAVE_EVERY)):
                state, _ = newest
            jax.block_until_ready(state)
            milliseconds["bare"].append(1e3 * (time.perf_counter() - start) / (STEPS - SAVE_EVERY))

            workdir = Path(folder, str(number))
            train(CONFIG, dataset, workdir, execution=execution)
            records = {
                (record["step"], record["split"]): record["seconds"]
                for record in read_records(workdir)
            }
            seconds = records[STEPS, "train"] - records[SAVE_EVERY, "diagnostics"]
            milliseconds["loop"].append(1e3 * seconds / (STEPS - SAVE_EVERY))
    return milliseconds
