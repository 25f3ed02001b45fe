"""Configs and command lines."""

import dataclasses
import json

import pytest

from emcaps import CapsNet, RoutingOptions
from experiments.data.preprocessing import NORB_IMAGES, ImageConfig
from experiments.learning.configs import (
    ModelConfig,
    TrainConfig,
    as_cnn,
    default_config,
    from_json,
    to_json,
)
from experiments.learning.presets import PRESETS, CapsuleInit
from experiments.runs.flags import TrainCommand, default_command
from experiments.runtime.command_line import parse

PROGRAM = "python -m experiments.train"


def test_json_keeps_a_config():
    config = TrainConfig(
        model=ModelConfig(conv_capsules=(3, 2, 1)), dataset="fashion_mnist", learning_rate=1e-3
    )
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    "change", [('"seed"', '"sede"'), ('"seed": 0,', ""), ('"num_iterations"', '"iterations"')]
)
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
    "field, value",
    [
        ("max_shift", -1),
        ("downsample", 0),
        ("crop", 0),
        ("contrast", 1.5),
        ("brightness", -0.1),
        ("max_rotation", -1),
        ("max_scaling", 1.0),
    ],
)
def test_views_that_cannot_be_do_not_exist(field, value):
    with pytest.raises(ValueError, match=f"{field} .*{value}"):
        ImageConfig(**{field: value})


def test_defaults_are_those_of_the_preset_and_the_data_set():
    config = default_config("--steps 3 --dataset smallnorb --preset ibm".split())
    assert (
        config.images == NORB_IMAGES
        and (config.model.routing, config.model.capsule_init) == PRESETS["ibm"]
    )
    assert (config.dataset, config.steps) == ("smallnorb", 8000)
    assert default_config(["--dataset=mnist"]) == TrainConfig(
        dataset="mnist", images=ImageConfig(), steps=8000, eval_every=2000
    )
    assert default_config([]) == default_config(["--dataset", "nosuch"]) == TrainConfig()


def test_the_cnn_is_trained_on_the_same_data_by_its_own_loss():
    config = default_config("--model cnn --dataset mnist".split())
    assert config == as_cnn(default_config(["--dataset", "mnist"]))
    assert (config.model.family, config.loss, config.dataset, config.steps) == (
        "cnn",
        "cross_entropy",
        "mnist",
        8000,
    )
    assert (config.schedule, config.learning_rate) == ("cosine", 1e-3)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--num-iterations 3 --conv-channels 32", "a cnn has no conv_channels, routing"),
        ("--preset paper", "a cnn has no EM routing, of which there could be a preset; got paper"),
        ("--baseline", "--baseline trains the cnn beside capsules; got --model cnn"),
        ("--loss spread", "a cnn is trained with the loss cross_entropy; got spread"),
        ("--calibrate-betas", "a cnn has no betas and no temperatures"),
    ],
)
def test_what_a_cnn_does_not_have_is_refused(flags, message, capsys):
    words = ["--model", "cnn", *flags.split()]
    with pytest.raises(SystemExit):
        parse(TrainCommand, PROGRAM, words, default_command(words))
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_capsules_do_not_have_is_refused():
    with pytest.raises(ValueError, match="capsules have no cnn_channels, cnn_hidden_units"):
        ModelConfig(cnn_channels=(2, 3), cnn_hidden_units=4)
    with pytest.raises(
        ValueError, match=r"cnn_channels must be two positive numbers; got \(0, 3\)"
    ):
        ModelConfig(family="cnn", cnn_channels=(0, 3))


def test_views_to_train_on_are_values_of_a_factor():
    assert TrainConfig(factor="azimuth", train_values=(0, 1)).scored == "test"
    with pytest.raises(
        ValueError, match=r"give factor and train_values together; got azimuth and \[\]"
    ):
        TrainConfig(factor="azimuth")
    with pytest.raises(ValueError, match=r"target_error must lie in \[0, 1\]; got 14"):
        TrainConfig(target_error=14)


def test_class_capsules_can_have_a_temperature_of_their_own():
    config = ModelConfig(class_inverse_temperature=5.0)
    assert [options.inverse_temperature for options in config.layer_routing] == [1.0, 1.0, 5.0]
    assert set(ModelConfig(class_iterations=None).layer_routing) == {ModelConfig().routing}


def test_layers_route_as_those_of_the_library():
    assert ModelConfig().layer_routing == CapsNet(3).layer_routing()


@pytest.mark.parametrize(
    "flags, iterations",
    [
        ("", [1, 1, 2]),
        ("--class-iterations 3", [1, 1, 3]),
        ("--num-iterations 3", [3, 3, 3]),
        ("--num-iterations=3 --class-iterations 4", [3, 3, 4]),
        ("--num_iterations 3", [3, 3, 3]),
        ("--preset emcaps", [1, 1, 2]),
        ("--preset paper", [3, 3, 3]),
        ("--preset paper --class-iterations 2", [3, 3, 2]),
        ("--preset ibm --num-iterations 1", [1, 1, 1]),
    ],
)
def test_iterations_that_are_given_are_those_of_all_layers(flags, iterations):
    config = parse(TrainCommand, PROGRAM, flags.split(), default_command(flags.split())).config
    assert [options.num_iterations for options in config.model.layer_routing] == iterations


def test_what_does_not_apply_to_a_network_is_read_as_the_default_of_today():
    """Of a CNN's runs the file has what was the default of capsules at the time."""
    config = as_cnn(default_config([]))
    values = json.loads(to_json(config))
    values["model"] |= {"conv_channels": 32, "class_iterations": None}
    values["model"]["routing"]["num_iterations"] = 2
    assert from_json(json.dumps(values)) == config


def test_class_capsules_can_have_iterations_of_their_own():
    config = ModelConfig(
        routing=RoutingOptions(num_iterations=3), class_iterations=2, class_inverse_temperature=5.0
    )
    assert config.iterations == {"num_iterations": 3, "class_iterations": 2}
    assert ModelConfig(
        routing=RoutingOptions(num_iterations=3), class_iterations=None
    ).iterations == {"num_iterations": 3}
    assert [options.num_iterations for options in config.layer_routing] == [3, 3, 2]
    assert [options.inverse_temperature for options in config.layer_routing] == [1.0, 1.0, 5.0]
    with pytest.raises(ValueError, match="class_iterations must be positive; got 0"):
        ModelConfig(class_iterations=0)
    with pytest.raises(ValueError, match="a cnn has no class_iterations"):
        ModelConfig(family="cnn", class_iterations=3)
    with pytest.raises(ValueError, match="vector capsules have no class_iterations"):
        ModelConfig(family="dynamic", class_iterations=3)


def test_images_are_held_out_by_number_or_by_object():
    assert TrainConfig().scored == "test"
    assert (
        TrainConfig(holdout=3).scored == TrainConfig(holdout_instances=(4, 6)).scored == "held-out"
    )
    with pytest.raises(ValueError, match="give holdout or holdout_instances, not both"):
        TrainConfig(holdout=3, holdout_instances=(4, 6))


def test_flags_are_flat():
    flags = (
        "--dataset fashion_mnist --data-dir d --workdir w --steps 3 --batch-size 4 --seed 5 "
        "--num-iterations 6"
    )
    flags += " --learning-rate 0.1 --eval-every 7 --conv-capsules 8 9 --parallel pmap --devices 2"
    command = parse(TrainCommand, PROGRAM, flags.split())
    assert (
        str(command.data_dir),
        str(command.workdir),
        command.hardware.parallel,
        command.hardware.devices,
    ) == (
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
            "error: dataset must be one of mnist, fashion_mnist, smallnorb, toynorb, toynorb96, "
            "toynorb_tuning, cifar10, affnist, drawings, or a path that ends in .npz; got 'nosuch'",
        ),
        (
            "--qqq 3",
            "error: unknown argument --qqq; --help lists all flags",
        ),
        ("stray", "error: unknown argument stray; --help lists all flags"),
        ("--stepz 3", "error: unknown argument --stepz; did you mean --steps? --help"),
        ("--no-resum", "error: unknown argument --no-resum; did you mean --no-resume? --help"),
        ("--resume x", "error: unknown argument x after --resume; --help lists all flags"),
        ("--steps many", "error: Error parsing --steps: invalid literal"),
        ("--steps 0", "error: steps must be positive; got 0"),
        ("--num-iterations 0", "error: num_iterations must be at least 1; got 0"),
        (
            "--parallel threads",
            "error: invalid choice 'threads' for argument '--parallel'. Expected one of ('jit', "
            "'pmap').",
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


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("identity", "1", TypeError),
        ("beta_u", float("nan"), ValueError),
        ("beta_a_stddev", -1.0, ValueError),
    ],
)
def test_wrong_initial_values_are_refused(field, value, error):
    with pytest.raises(error, match=f"^{field} must"):
        CapsuleInit(**{field: value})
