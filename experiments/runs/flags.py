"""The flags of a training run, and the configuration that they make.

Those of the run itself are here; the others are fields of `TrainConfig` and `ModelConfig`
(learning/configs.py), `CapsuleInit` (learning/presets.py), `ImageConfig` (data/preprocessing.py),
`Hardware` (devices/hardware.py), and `RoutingOptions` of emcaps.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.devices.hardware import Hardware
from experiments.learning.configs import FAMILIES, Preset, TrainConfig, default_config
from experiments.runtime.command_line import fail, parse


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a matrix capsule network with EM routing; the same command continues a run that was
    stopped.
    """

    config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    preset: Preset = "emcaps"
    """Constants and initial values of the routing, which other flags may change: ours, the paper's,
    or IBM's.
    """
    baseline: bool = False
    """Then train the paper's CNN on the same data for as many steps, into the folder WORKDIR-cnn,
    and print both results.
    """
    workdir: Path | None = None
    """The run's folder; the default is runs/ and the data set's name, without .npz or what is
    before it.
    """
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    resume: bool = True
    """An unfinished run of the same flags in that folder goes on; otherwise it is refused."""
    fall_back: bool = False
    """Where its newest checkpoints are damaged, a run goes on from the newest that is whole."""
    tensorboard: bool = False
    """Write what metrics.jsonl holds for TensorBoard too, into the folder tensorboard of the run;
    the package is of the extra `tensorboard`.
    """
    hardware: Hardware = dataclasses.field(default_factory=Hardware)

    def __post_init__(self):
        family = self.config.model.family
        if family != "capsules" and self.preset != "emcaps":
            raise ValueError(
                f"{FAMILIES[family]} no EM routing, of which there could be a preset; got "
                f"{self.preset}"
            )
        if family == "cnn" and self.baseline:
            raise ValueError("--baseline trains the cnn beside capsules; got --model cnn")
        if self.hardware.model_axis > 1 and (family != "capsules" or self.baseline):
            raise ValueError(
                "--model-axis divides the parent types of matrix capsules; give --model capsules "
                "and --no-baseline"
            )


def default_command(words: Sequence[str]) -> TrainCommand:
    """What no flag says, given the words of a command.

    Of toynorb nothing is published to compare with: the CNN is trained too.
    """
    config = default_config(words)
    return TrainCommand(
        config=config, baseline=config.dataset == "toynorb" and config.model.family == "capsules"
    )


def config_of(
    words: Sequence[str], recipe: Callable[[TrainConfig], TrainConfig] = lambda config: config
) -> TrainConfig:
    """The config that flags of `experiments.train` make.

    Args:
        words: the flags.
        recipe: makes of the defaults for these flags what they change.

    A flag that is not understood, or is not for the network of the recipe, ends the process as for
    `experiments.train`.
    """
    try:
        defaults = TrainCommand(config=recipe(default_config(words)))
    except ValueError as error:
        fail(str(error))
    return parse(TrainCommand, "python -m experiments.train", words, defaults).config


def check_left_open(flags: str, *names: str) -> None:
    """Raise ValueError if flags of `experiments.train` have one of those that a command of many
    runs decides by flags of its own.
    """
    given = {word.partition("=")[0].replace("_", "-") for word in flags.split()}
    if decided := sorted(given & set(names)):
        raise ValueError(
            f"flags must leave out {decided[0]}, which this command decides for its runs; got "
            f"{flags!r}"
        )
