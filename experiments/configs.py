"""What determines a run's result, as frozen dataclasses; where and on what it runs is not in here.

`python -m experiments.train` with no flags trains the defaults below: MNIST, the recipe of `emcaps.RoutingOptions`. What this
takes and what it reaches is in the README.
"""

import dataclasses
import json
from typing import Any

from experiments.datasets import DATASETS


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network, `emcaps.CapsNet`."""

    conv_channels: int = 32
    """Channels of the first convolution, the paper's A."""
    primary_capsules: int = 8
    """Primary capsule types, the paper's B."""
    conv_capsules: tuple[int, ...] = (8, 8)
    """Capsule types of each convolutional capsule layer, the paper's C and D."""
    num_iterations: int = 2
    """Routing iterations in every capsule layer."""

    def __post_init__(self):
        check_positive(self, "conv_channels", "primary_capsules", "num_iterations")
        if not self.conv_capsules or min(self.conv_capsules) < 1:
            raise ValueError(f"conv_capsules must be one or more positive numbers; got {self.conv_capsules}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. Two runs with equal configs give equal results on equal hardware."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    dataset: str = "mnist"
    """Data set: mnist or fashion_mnist."""
    steps: int = 4000
    """Training steps."""
    batch_size: int = 64
    """Images in a step, over all devices."""
    seed: int = 0
    """Seed of the parameters, the shuffling and the augmentation."""
    learning_rate: float = 3e-3
    """Adam's learning rate at the first step."""
    decay_rate: float = 0.96
    """The learning rate is multiplied by this every `decay_steps`."""
    decay_steps: int = 20_000
    """Steps in which the learning rate falls by `decay_rate`, smoothly."""
    weight_decay: float = 0.0
    """Factor of the L2 term in the gradient; the paper's released code has 2e-7."""
    margin_start: float = 0.2
    """Margin of the spread loss at the first step."""
    margin_end: float = 0.9
    """Margin of the spread loss after the ramp."""
    margin_ramp: float = 0.5
    """Fraction of the steps over which the margin rises."""
    max_shift: int = 2
    """Training images are shifted at random by up to this many pixels."""
    eval_every: int = 1000
    """Evaluate and save a checkpoint after this many steps, and after the last."""

    def __post_init__(self):
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {self.dataset!r}")
        check_positive(self, "steps", "batch_size", "learning_rate", "decay_rate", "decay_steps", "eval_every")
        for name in ("seed", "weight_decay", "max_shift"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in ("margin_start", "margin_end", "margin_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError, naming the field, unless every named field is positive."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive; got {getattr(config, name)}")


def to_json(config: TrainConfig) -> str:
    """The config as a JSON object, one field a line."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> TrainConfig:
    """The inverse of `to_json`. Raises ValueError for a field that is unknown or missing."""
    values = json.loads(text)
    check_fields(TrainConfig, values)
    check_fields(ModelConfig, values["model"])
    model = dict(values["model"], conv_capsules=tuple(values["model"]["conv_capsules"]))
    return TrainConfig(**dict(values, model=ModelConfig(**model)))


def check_fields(config_class: type, values: dict[str, Any]) -> None:
    """Raise ValueError unless the keys of `values` are exactly the fields of the dataclass."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    if wrong := fields ^ values.keys():
        raise ValueError(f"{config_class.__name__} has the fields {', '.join(sorted(fields))}; wrong: {', '.join(sorted(wrong))}")
