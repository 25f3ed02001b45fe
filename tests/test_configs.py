"""Configs and command lines."""

import dataclasses

import pytest

from emcaps import PRESETS
from experiments.command_line import parse
from experiments.configs import NORB_IMAGES, ImageConfig, ModelConfig, TrainConfig, default_config, from_json, to_json
from experiments.train import TrainCommand

PROGRAM = "python -m experiments.train"


def test_json_keeps_a_config():
    config = TrainConfig(model=ModelConfig(conv_capsules=(3, 2, 1)), dataset="fashion_mnist", learning_rate=1e-3)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("change", [('"seed"', '"sede"'), ('"seed": 0,', ""), ('"num_iterations"', '"iterations"')])
def test_json_with_unknown_or_missing_fields_is_refused(change):
    with pytest.raises(ValueError, match="wrong: "):
        from_json(to_json(TrainConfig()).replace(*change))


@pytest.mark.parametrize(
    "field, value",
    [
        ("dataset", "nosuch"),
        ("steps", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1e-7),
        ("margin_end", 1.5),
    ],
)
def test_a_config_with_impossible_values_does_not_exist(field, value):
    with pytest.raises(ValueError, match=f"{field} .*{value}"):
        dataclasses.replace(TrainConfig(), **{field: value})


@pytest.mark.parametrize(
    "field, value", [("max_shift", -1), ("downsample", 0), ("crop", 0), ("contrast", 1.5), ("brightness", -0.1)]
)
def test_views_that_cannot_be_do_not_exist(field, value):
    with pytest.raises(ValueError, match=f"{field} .*{value}"):
        ImageConfig(**{field: value})


def test_defaults_are_those_of_the_preset_and_the_data_set():
    config = default_config("--steps 3 --dataset smallnorb --preset ibm".split())
    assert config.images == NORB_IMAGES and (config.model.routing, config.model.capsule_init) == PRESETS["ibm"]
    assert default_config(["--dataset=mnist"]) == default_config(["--dataset", "nosuch"]) == TrainConfig()


def test_images_are_held_out_by_number_or_by_object():
    assert TrainConfig().scored == "test"
    assert TrainConfig(holdout=3).scored == TrainConfig(holdout_instances=(4, 6)).scored == "held-out"
    with pytest.raises(ValueError, match="give holdout or holdout_instances, not both"):
        TrainConfig(holdout=3, holdout_instances=(4, 6))


def test_flags_are_flat():
    flags = "--dataset fashion_mnist --data-dir d --workdir w --steps 3 --batch-size 4 --seed 5 --num-iterations 6"
    flags += " --learning-rate 0.1 --eval-every 7 --conv-capsules 8 9 --parallel pmap --devices 2"
    command = parse(TrainCommand, PROGRAM, flags.split())
    assert (str(command.data_dir), str(command.workdir), command.parallel, command.devices) == (
        "d",
        "w",
        "pmap",
        2,
    )
    config = command.config
    assert (config.dataset, config.steps, config.batch_size, config.seed) == (
        "fashion_mnist",
        3,
        4,
        5,
    )
    assert (config.learning_rate, config.eval_every) == (0.1, 7)
    assert (config.model.routing.num_iterations, config.model.conv_capsules) == (6, (8, 9))


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--dataset nosuch",
            "error: dataset must be one of mnist, fashion_mnist, smallnorb, toynorb, toynorb96, cifar10, "
            "or a path that ends in .npz; got 'nosuch'",
        ),
        (
            "--nosuch 3",
            "error: unknown argument --nosuch; known flags: --conv-channels, --primary-capsules",
        ),
        ("stray", "error: unknown argument stray; known flags: "),
        ("--steps many", "error: Error parsing --steps: invalid literal"),
        ("--steps 0", "error: steps must be positive; got 0"),
        ("--num-iterations 0", "error: num_iterations must be at least 1; got 0"),
        (
            "--parallel threads",
            "error: invalid choice 'threads' for argument '--parallel'. Expected one of ('jit', 'pmap').",
        ),
    ],
)
def test_a_wrong_command_gets_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(TrainCommand, PROGRAM, flags.split())
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_help_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(TrainCommand, PROGRAM, ["--help"])
    assert not exit.value.code
    assert "--num-iterations" in capsys.readouterr().out
