"""How large must a network be? `python -m experiments.parameters` trains capsules and CNNs of several sizes, with several seeds.

The paper's claim is that capsules reach the accuracy of a CNN with far fewer parameters. What is trained is in `NETWORKS`; each run
is a folder as of `experiments.train`, RUNS/DATASET/NETWORK-SEED, and `experiments.report` compares them.
"""

import dataclasses
import sys

from experiments.claims.study import NETWORKS, Study, asked, check_networks, check_trainable, train_network
from experiments.devices.hardware import start_jax
from experiments.runs.summary import table
from experiments.runtime.command_line import entry_point


@dataclasses.dataclass(frozen=True)
class ParametersCommand:
    """Train capsules and CNNs of several sizes."""

    study: Study = dataclasses.field(default_factory=Study)
    networks: tuple[str, ...] = ("capsules", "cnn", "cnn-68k", "capsules-32-8-8-8", "cnn-25k")
    """Which: names of `NETWORKS`, in this order."""

    def __post_init__(self):
        check_networks(self.networks, NETWORKS)

    def shortened(self) -> "ParametersCommand":
        """What `--quick` asks for."""
        return dataclasses.replace(self, study=self.study.shortened())


def run(command: ParametersCommand, typed: str) -> None:
    """Train all, and print the table."""
    command = asked(command)
    study = command.study
    start_jax()
    check_trainable(study, command.networks, study.seeds)
    results = []
    for seed in study.seeds:
        for name in command.networks:
            result = train_network(study, name, seed, typed)
            shown = ("num_parameters", "seed", "steps", "test_error", "train_seconds")
            results.append({"network": name} | {field: result[field] for field in shown})
    print(table(results))


main = entry_point("experiments.parameters", ParametersCommand, run)

if __name__ == "__main__":
    sys.exit(main())
