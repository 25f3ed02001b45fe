"""The networks that the paper's claims are about: recipes, each of which makes of a data set's
default config its own.

    python -m experiments.parameters --networks NAME --dataset DATASET

trains them. Each size of capsules has a CNN of about its size beside it, whose learning rate was
chosen on held-out toys of toynorb.

What a recipe promises: parameters are counted for toynorb, and tested; errors are those on its test
set after 2,200 steps of 32, where nothing else is said, mean and 95% interval of seeds 0 to 2, and
times those of one core of an Intel Xeon beside other work (documentation/claims.md). Of a recipe
without an error none has been measured.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from experiments.learning.configs import TrainConfig, as_cnn, as_dynamic

Recipe = Callable[[TrainConfig], TrainConfig]


def with_model(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A config with these fields of its model."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def capsules(config: TrainConfig) -> TrainConfig:
    """Our default: 68,619 parameters; 10.6 ± 3.9%, 569 s."""
    return config


def capsules_25k(config: TrainConfig) -> TrainConfig:
    """Narrower: 25,099 parameters; 12.5 ± 2.9%, 343 s."""
    return with_model(config, conv_channels=32, conv_capsules=(8, 8))


def capsules_310k(config: TrainConfig) -> TrainConfig:
    """All layers 32 wide, as the paper's: 316,651 parameters."""
    return with_model(config, conv_channels=32, primary_capsules=32, conv_capsules=(32, 32))


def capsules_decoder(config: TrainConfig) -> TrainConfig:
    """Our default with a decoder: 2,734,603 parameters."""
    return with_decoder(config)


def with_decoder(config: TrainConfig) -> TrainConfig:
    """The same with a decoder, whose images are in [0, 1]: not standardized."""
    images = dataclasses.replace(config.images, standardize=False)
    return with_model(dataclasses.replace(config, images=images), reconstruction=True)


def dynamic(config: TrainConfig) -> TrainConfig:
    """Dynamic routing at a quarter of its paper's widths, three iterations: 669,952 parameters.

    24.4 ± 2.1% after 1,000 steps of 64 of toynorb, 481 s; 1.48 ± 0.11% after 1,000 of MNIST.
    """
    return with_model(as_dynamic(config), dynamic_channels=64, dynamic_capsules=8)


def dynamic_once(config: TrainConfig) -> TrainConfig:
    """The same with one iteration: 669,952 parameters.

    1.65 ± 0.09% after 1,000 steps of 64 of MNIST.
    """
    return with_model(dynamic(config), dynamic_iterations=1)


def dynamic_decoder(config: TrainConfig) -> TrainConfig:
    """Three iterations and a decoder: 3,335,936 parameters.

    1.48 ± 0.11% after 1,000 steps of 64 of MNIST.
    """
    return with_decoder(dynamic(config))


def dynamic_once_decoder(config: TrainConfig) -> TrainConfig:
    """One iteration and a decoder: 3,335,936 parameters.

    1.65 ± 0.13% after 1,000 steps of 64 of MNIST.
    """
    return with_decoder(dynamic_once(config))


def cnn_25k(config: TrainConfig) -> TrainConfig:
    """24,229 parameters; 19.4 ± 4.5%, 81 s."""
    return small_cnn(config, (8, 16), 20)


def cnn_68k(config: TrainConfig) -> TrainConfig:
    """67,057 parameters; 17.2 ± 9.0%, 118 s."""
    return small_cnn(config, (16, 32), 26)


def cnn_310k(config: TrainConfig) -> TrainConfig:
    """315,429 parameters."""
    return small_cnn(config, (32, 64), 64)


def small_cnn(config: TrainConfig, channels: tuple[int, int], hidden_units: int) -> TrainConfig:
    """The paper's CNN with other widths, and the learning rate that suits them."""
    config = dataclasses.replace(as_cnn(config), learning_rate=3e-3)
    return with_model(config, cnn_channels=channels, cnn_hidden_units=hidden_units)


def cnn(config: TrainConfig) -> TrainConfig:
    """The paper's CNN: 4,253,349 parameters; 8.4 ± 1.2%, 452 s."""
    return as_cnn(config)


NETWORKS: dict[str, Recipe] = {
    "capsules": capsules,
    "capsules-32-8-8-8": capsules_25k,
    "capsules-32-32-32-32": capsules_310k,
    "capsules-decoder": capsules_decoder,
    "dynamic": dynamic,
    "dynamic-once": dynamic_once,
    "dynamic-decoder": dynamic_decoder,
    "dynamic-once-decoder": dynamic_once_decoder,
    "cnn": cnn,
    "cnn-25k": cnn_25k,
    "cnn-68k": cnn_68k,
    "cnn-310k": cnn_310k,
}


def is_capsules(name: str) -> bool:
    """Whether one of `NETWORKS` is of matrix capsules."""
    return NETWORKS[name](TrainConfig()).model.family == "capsules"


def check_networks(networks: Sequence[str], known: Collection[str] = NETWORKS.keys()) -> None:
    """Raise ValueError unless these are one or more of the known names, each once."""
    if not networks or not set(networks) <= set(known) or len(set(networks)) < len(networks):
        raise ValueError(
            f"networks must be of {', '.join(known)}, each once; got {', '.join(networks)}"
        )
