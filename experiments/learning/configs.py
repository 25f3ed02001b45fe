"""What determines a run's result, as frozen dataclasses; where and on what it runs is not in here.

`python -m experiments.train` with no flags trains the defaults below: toynorb, with the routing of
`emcaps.CapsNet`. What this takes and what it reaches is in documentation/results.md.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import tyro

from emcaps import CapsNet, ClassCaps, ConvCaps, RoutingOptions
from emcaps.options import EARLIER
from experiments.data.dataset import DATASETS
from experiments.data.npz_files import SUFFIX
from experiments.data.preprocessing import DATASET_IMAGES, TOYNORB_IMAGES, ImageConfig
from experiments.learning.presets import PRESETS, CapsuleInit
from experiments.runtime.fields import (
    check_not_negative,
    check_positive,
    check_positive_or_none,
    default_of,
)

Preset = Literal["emcaps", "paper", "ibm"]
FAMILIES = {"capsules": "capsules have", "dynamic": "vector capsules have", "cnn": "a cnn has"}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: `CapsNet`; `DynamicCapsNet`, to which `dynamic_...` apply; or `BaselineCNN`,
    with `cnn_...`.
    """

    family: Annotated[Literal["capsules", "dynamic", "cnn"], tyro.conf.arg(name="model")] = (
        "capsules"
    )
    """Matrix capsules with EM routing, vector capsules with dynamic routing, or the paper's
    convolutional network.
    """
    conv_channels: int = CapsNet.conv_channels
    """Channels of the first convolution, the paper's A."""
    primary_capsules: int = CapsNet.primary_capsules
    """Primary capsule types, the paper's B."""
    conv_capsules: tuple[int, ...] = CapsNet.conv_capsules
    """Capsule types of each convolutional capsule layer, the paper's C and D."""
    add_coordinates: bool = True
    """Coordinate addition in the class capsules."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In what the network below the class capsules computes.

    Parameters, and the statistics of routing, are float32.
    """
    class_inverse_temperature: float | None = None
    """Inverse temperature of the class capsules; None: that of the other capsule layers."""
    class_iterations: int | None = ClassCaps.routing.num_iterations
    """Routing iterations of the class capsules; None, the default with --num-iterations or a
    preset: as many as of the other capsule layers."""
    reconstruction: bool = False
    """Also train a decoder, from the class capsules' poses to the images, whose error is added to
    the loss.
    """
    dynamic_channels: int = 256
    """Channels of the first convolution before dynamic routing; the default is the paper's."""
    dynamic_capsules: int = 32
    """Primary capsule types of dynamic routing; the default is the paper's."""
    dynamic_iterations: int = 3
    """Iterations of dynamic routing."""
    cnn_channels: tuple[int, int] = (32, 64)
    """Channels of the CNN's two convolutions; the default is the paper's."""
    cnn_hidden_units: int = 1024
    """Hidden units of the CNN; the default is the paper's."""
    routing: RoutingOptions = ConvCaps.routing
    capsule_init: CapsuleInit = dataclasses.field(default_factory=CapsuleInit)

    def __post_init__(self):
        check_positive(self, "conv_channels", "primary_capsules", "cnn_hidden_units")
        check_positive(self, "dynamic_channels", "dynamic_capsules", "dynamic_iterations")
        if min(self.cnn_channels) < 1:
            raise ValueError(f"cnn_channels must be two positive numbers; got {self.cnn_channels}")
        if not self.conv_capsules or min(self.conv_capsules) < 1:
            raise ValueError(
                f"conv_capsules must be one or more positive numbers; got {self.conv_capsules}"
            )
        check_positive_or_none(self, "class_inverse_temperature", "class_iterations")
        if given := [
            name
            for name in of_other_families(self.family)
            if getattr(self, name) != default_of(self, name)
        ]:
            raise ValueError(f"{FAMILIES[self.family]} no {', '.join(given)}")

    @property
    def iterations(self) -> dict[str, int]:
        """Routing iterations, as a result has them, `class_iterations` where class capsules have
        their own; of a CNN none.
        """
        if self.family != "capsules":
            return {"num_iterations": self.dynamic_iterations} if self.family == "dynamic" else {}
        given = {
            "num_iterations": self.routing.num_iterations,
            "class_iterations": self.class_iterations,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def layer_routing(self) -> tuple[RoutingOptions, ...]:
        """How each capsule layer routes, the class capsules last."""
        of_classes = {
            "inverse_temperature": self.class_inverse_temperature,
            "num_iterations": self.class_iterations,
        }
        given = {name: value for name, value in of_classes.items() if value is not None}
        return (self.routing,) * len(self.conv_capsules) + (
            dataclasses.replace(self.routing, **given),
        )


def of_other_families(family: str) -> list[str]:
    """The fields of `ModelConfig` that do not apply to a network of this family."""
    of_all, of_capsules = {"family"}, {"reconstruction"}
    own = {"capsules": ("dynamic_", "cnn_"), "dynamic": ("dynamic_",), "cnn": ("cnn_",)}[family]
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    applies = {name for name in names if name.startswith(own) != (family == "capsules")}
    return [
        name
        for name in names
        if name not in applies | of_all | (of_capsules if family != "cnn" else set())
    ]


# How the other networks are trained.
WITHOUT_EM_ROUTING: dict[str, Any] = {"learning_rate": 1e-3, "schedule": "cosine"}
# Steps on any data set but the default, which is for a run of minutes, and the one that this is to
# be chosen on.
LONGER = 8000


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. Two runs with equal configs give equal results on equal hardware."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    images: ImageConfig = TOYNORB_IMAGES
    dataset: str = "toynorb"
    """Data set: mnist, affnist, fashion_mnist, cifar10, smallnorb, toynorb, toynorb96,
    toynorb_tuning, drawings, or the path of an .npz file. It has image (uint8 [N, H, W, C] or [N,
    H, W]), label ([N], from 0) and perhaps class_names and split ([N], train or test). Its other
    integers [N], such as instance or azimuth, are factors; all other arrays play no part. Without
    split, the upper half of each class's instances is tested; without instance, a fifth of each
    class's images."""
    steps: int = 2200
    """Training steps."""
    batch_size: int = 32
    """Images in a step, over all devices."""
    calibrate_betas: bool = False
    """Set beta_u and beta_a from the first batch, so that activations start near 0.5 and differ."""
    seed: int = 0
    """Seed of the parameters, the shuffling and the augmentation."""
    learning_rate: float = 1e-2
    """Adam's learning rate after the warm-up."""
    schedule: Literal["cosine", "exponential", "schedule_free"] = "schedule_free"
    """How the learning rate falls: to 0 at the last step, or as the paper's; or not at all, and the
    network is an average of the parameters over all steps (schedule-free Adam, Defazio et al.
    2024)."""
    decay_rate: float = 0.96
    """The exponential schedule multiplies the learning rate by this every `decay_steps`."""
    decay_steps: int = 20_000
    """Steps in which the learning rate falls by `decay_rate`, smoothly."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises from 0."""
    clip_norm: float | None = 1.0
    """Gradients with a larger norm are scaled down to it; None: never."""
    loss: Literal["spread", "margin", "cross_entropy"] = "spread"
    """Loss: the paper's, that of dynamic routing, or that of a softmax over the
    activation logits.
    """
    weight_decay: float = 0.0
    """Factor of the L2 term in the gradient; the paper's released code has 2e-7."""
    margin_start: float = 0.2
    """Margin of the spread loss at the first step."""
    margin_end: float = 0.9
    """Margin of the spread loss after the ramp."""
    margin_ramp: float = 0.5
    """Fraction of the steps over which the margin rises."""
    assignment_temperature_end: float | None = None
    """The assignment temperature goes geometrically from that of the model to this over the
    training; its rate must be 0.
    """
    inverse_temperature_start: float | None = None
    """The inverse temperature goes geometrically from this to that of the model over the training;
    its rate must be 0.
    """
    init_from: str | None = None
    """Begin with the weights of this run (its folder) or classifier (as `load_classifier` takes
    it), of the same network. Steps, schedule and optimizer begin anew."""
    eval_every: int = 1100
    """Evaluate and save a checkpoint after this many steps, and after the last."""
    target_error: float | None = None
    """Training ends early, at the first evaluation whose error is within half a point of this (a
    fraction of 1).
    """
    holdout: int = 0
    """So many of the training images, of each class its share (to a whole number, and never its
    last image), are not trained on, and scored in place of the test set, which is then not looked
    at."""
    holdout_instances: tuple[int, ...] = ()
    """The same with all training images of these objects, where the data set has a factor
    `instance`.
    """
    factor: str | None = None
    """Train and score only on images that have one of `train_values` for this factor of the data
    set, such as azimuth.
    """
    train_values: tuple[int, ...] = ()
    """Values of `factor`."""

    def __post_init__(self):
        if self.dataset not in DATASETS and not self.dataset.endswith(SUFFIX):
            raise ValueError(
                f"dataset must be one of {', '.join(DATASETS)}, or a path that ends in {SUFFIX}; "
                f"got {self.dataset!r}"
            )
        check_positive(
            self, "steps", "batch_size", "learning_rate", "decay_rate", "decay_steps", "eval_every"
        )
        check_not_negative(self, "seed", "weight_decay", "warmup_steps", "holdout")
        check_positive_or_none(
            self, "clip_norm", "assignment_temperature_end", "inverse_temperature_start"
        )
        if (
            self.inverse_temperature_start is not None
            and self.model.routing.inverse_temperature is None
        ):
            raise ValueError(
                "inverse_temperature_start needs a constant inverse_temperature to rise to; got "
                "None"
            )
        learned = {name for routing in self.model.layer_routing for name in routing.learns()}
        for moved in ("assignment_temperature_end", "inverse_temperature_start"):
            name = moved.rpartition("_")[0]
            if name in learned and getattr(self, moved) is not None:
                got = (
                    f"{moved} {getattr(self, moved)}, {name}_rate "
                    f"{getattr(self.model.routing, f'{name}_rate')}"
                )
                raise ValueError(f"a temperature that is learned has no schedule; got {got}")
        for name in ("margin_start", "margin_end", "margin_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")

        if self.model.family == "cnn":
            if self.loss != "cross_entropy":
                raise ValueError(f"a cnn is trained with the loss cross_entropy; got {self.loss}")
        if self.model.family != "capsules":
            if (
                self.calibrate_betas
                or self.assignment_temperature_end
                or self.inverse_temperature_start
            ):
                raise ValueError(f"{FAMILIES[self.model.family]} no betas and no temperatures")
        if self.calibrate_betas and self.init_from is not None:
            raise ValueError(
                f"calibrate_betas would replace betas of init_from; got {self.init_from}"
            )
        if self.model.reconstruction and self.images.standardize:
            raise ValueError("reconstruction needs images in [0, 1]; with standardize they are not")
        if self.target_error is not None and not 0 <= self.target_error <= 1:
            raise ValueError(f"target_error must lie in [0, 1]; got {self.target_error}")
        if (self.factor is None) != (not self.train_values):
            raise ValueError(
                f"give factor and train_values together; got {self.factor} and "
                f"{list(self.train_values)}"
            )
        if self.holdout and self.holdout_instances:
            raise ValueError(
                f"give holdout or holdout_instances, not both; got {self.holdout} and "
                f"{self.holdout_instances}"
            )

    @property
    def scored(self) -> str:
        """What errors are of: `test`, or `held-out`."""
        return "held-out" if self.holdout or self.holdout_instances else "test"


def to_json(config: TrainConfig) -> str:
    """The config as a JSON object, one field a line."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> TrainConfig:
    """The inverse of `to_json`. Raises ValueError for a field that is unknown or missing."""
    return build(TrainConfig, json.loads(text))


# What was before there were such fields.
LATER: dict[str, Any] = {
    "class_iterations": None,
    "init_from": None,
    "max_rotation": 0.0,
    "max_scaling": 0.0,
    **EARLIER,
}


def build(config_class: type, values: dict[str, Any]) -> Any:
    """A config dataclass from JSON values, the configs in it likewise.

    Raises ValueError unless the keys are exactly its fields; those of `LATER` may be missing, as in
    runs of earlier versions. What does not apply to a network had the default of its version, and
    has today's.
    """
    fields = get_type_hints(config_class)
    values = {name: value for name, value in LATER.items() if name in fields} | values
    if wrong := fields.keys() ^ values.keys():
        raise ValueError(
            f"{config_class.__name__} has the fields {', '.join(sorted(fields))}; wrong: "
            f"{', '.join(sorted(wrong))}"
        )
    other = of_other_families(values["family"]) if config_class is ModelConfig else []
    values = {name: value for name, value in values.items() if name not in other}
    for name, value in values.items():
        if dataclasses.is_dataclass(fields[name]):
            values[name] = build(fields[name], value)
        elif get_origin(fields[name]) is tuple:
            values[name] = tuple(value)
    return config_class(**values)


def default_config(words: Sequence[str]) -> TrainConfig:
    """What no flag says, given the words of a command: the defaults of the preset, network and data
    set that it names.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    defaults = {"preset": "emcaps", "model": "capsules", "dataset": TrainConfig.dataset}
    # A flag without its value, the parser of all flags will refuse.
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", nargs="?", default=default, const=default)
    parser.add_argument("--num-iterations", "--num_iterations", nargs="?")
    chosen = parser.parse_known_args(words)[0]
    model = ModelConfig(class_iterations=None) if chosen.num_iterations else ModelConfig()
    # What there is no preset of, the parser of all flags will refuse.
    if chosen.preset in PRESETS:
        routing, init = PRESETS[chosen.preset]
        model = ModelConfig(routing=routing, capsule_init=init, class_iterations=None)
    config = TrainConfig(model=model)
    # A data set that there is not, the parser of all flags will refuse.
    if chosen.dataset != config.dataset and (
        chosen.dataset in DATASETS or chosen.dataset.endswith(SUFFIX)
    ):
        images = DATASET_IMAGES.get(chosen.dataset, ImageConfig())
        config = dataclasses.replace(config, dataset=chosen.dataset, images=images)
        if chosen.dataset != "toynorb_tuning":
            config = dataclasses.replace(config, steps=LONGER, eval_every=LONGER // 4)
    other_families = {"dynamic": as_dynamic, "cnn": as_cnn}
    return other_families[chosen.model](config) if chosen.model in other_families else config


def as_dynamic(config: TrainConfig) -> TrainConfig:
    """The same run of vector capsules with dynamic routing, for a config of matrix capsules without
    a schedule of temperatures.
    """
    return dataclasses.replace(
        config, model=ModelConfig(family="dynamic"), loss="margin", **WITHOUT_EM_ROUTING
    )


def as_cnn(config: TrainConfig) -> TrainConfig:
    """The same run of the CNN: the same data, steps and seed; loss, learning rate and schedule are
    its own.
    """
    return dataclasses.replace(
        config,
        model=ModelConfig(family="cnn"),
        loss="cross_entropy",
        **WITHOUT_EM_ROUTING,
        calibrate_betas=False,
        init_from=None,
        assignment_temperature_end=None,
        inverse_temperature_start=None,
    )
