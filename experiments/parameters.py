"""How large must a network be? `python -m experiments.parameters` trains capsules and CNNs of
several sizes, with several seeds.

The paper's claim is that capsules reach the accuracy of a CNN with far fewer parameters. What can
be trained is in claims/networks.py; each run is a folder as of `experiments.train`,
RUNS/DATASET/NETWORK-SEED. `experiments.report` compares them.
"""

import dataclasses
import sys
from pathlib import Path

from experiments.claims.experiment import StudyCommand
from experiments.claims.networks import check_networks
from experiments.devices.hardware import start_jax
from experiments.learning.configs import TrainConfig
from experiments.runs.summary import table
from experiments.runs.trained import check_runs, trained
from experiments.runtime.command_line import entry_point


@dataclasses.dataclass(frozen=True)
class ParametersCommand(StudyCommand):
    """Train capsules and CNNs of several sizes."""

    networks: tuple[str, ...] = ("capsules", "cnn", "cnn-68k", "capsules-32-8-8-8", "cnn-25k")
    """Which: names of `experiments.claims.networks.NETWORKS`, in this order."""

    def __post_init__(self):
        check_networks(self.networks)

    def runs(self, seed: int) -> dict[Path, TrainConfig]:
        return self.study.networks(self.networks, seed)


def run(command: ParametersCommand, typed: str) -> None:
    """Train all, and print the table."""
    command = command.asked()
    study = command.study
    start_jax()
    runs = {path: config for seed in study.seeds for path, config in command.runs(seed).items()}
    check_runs(runs, study.data_dir)
    shown = ("num_parameters", "seed", "steps", "test_error", "train_seconds")
    results = []
    for path, config in runs.items():
        result = trained(config, path, study.data_dir, typed)
        results.append(
            {"network": path.name.rpartition("-")[0]} | {field: result[field] for field in shown}
        )
    print(table(results))


main = entry_point("experiments.parameters", ParametersCommand, run)

if __name__ == "__main__":
    sys.exit(main())
