"""The study of variants: its flags, its runs, its table."""

import json
import math

import pytest
import tiny_run

from experiments import ablation
from experiments.ablation import STUDIES, AblationConfig, table, variant_config, variants
from experiments.data import loading

CAPSULES = (
    "--conv-channels 4 --primary-capsules 2 --conv-capsules 3 --num-iterations 1 --max-shift 1"
)
CNN = "--model cnn --cnn-channels 2 2 --cnn-hidden-units 3 --max-shift 1"  # compiles fast


def test_every_variant_of_every_study_is_a_config():
    config = AblationConfig(study=("all",), steps=7, batch_size=5, holdout=3)
    configs = [variant_config(config, flags) for flags in variants(config)]
    assert len(configs) == len({flags for study in STUDIES.values() for flags in study})
    assert len(set(configs)) == len(configs)
    assert {(c.steps, c.batch_size, c.holdout) for c in configs} == {(7, 5, 3)}


def test_iterations_multiply_the_variants():
    config = AblationConfig(
        study=("coordinates",), iterations=(1, 3), flags="--preset ibm --damping 0.2"
    )
    assert variants(config) == [
        "--no-add-coordinates --num-iterations 1",
        "--no-add-coordinates --num-iterations 3",
    ]
    chosen = variant_config(config, variants(config)[1])
    assert (chosen.model.add_coordinates, chosen.model.routing.num_iterations) == (False, 3)
    assert (chosen.model.routing.field_mass, chosen.model.routing.damping) == (100.0, 0.2)


def test_an_unknown_study_is_refused():
    with pytest.raises(
        ValueError, match=r"study must be of default, iterations, .* or all; got nosuch"
    ):
        AblationConfig(study=("nosuch",))


@pytest.mark.parametrize(
    "flags, causes", [(CNN, False), pytest.param(CAPSULES, True, marks=pytest.mark.slow)]
)
def test_a_study_is_run_recorded_and_not_repeated(flags, causes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda name, data_dir: tiny_run.dataset())
    command = ["--study", "default", "--seeds", "0", "1", "--steps", "2", "--batch-size", "4"]
    command += ["--holdout", "5", "--output", str(tmp_path), f"--flags={flags}"]
    command += ["--causes"] if causes else []
    assert ablation.main(command) == 0
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(record["seed"], record["variant"], record["finite"]) for record in records] == [
        (0, "", True),
        (1, "", True),
    ]
    if causes:
        before, after = records[0]["before"], records[0]["after"]
        assert before["gradient_norm"]["class_caps"] > 0 and before["gradient_noise"]["conv"] > 0
        assert before["gradient_norm_by_iterations"] == pytest.approx(
            [math.hypot(*before["gradient_norm"].values())]
        )
        assert before["class_caps"]["assignment_entropy"] == pytest.approx(math.log(3))
        assert before != after
    written = (tmp_path / "table.md").read_text()
    assert "| `default` |" in written and written.strip() in capsys.readouterr().out

    def no_training(*_):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(ablation, "run_variant", no_training)
    assert ablation.main(command) == 0
    assert (tmp_path / "table.md").read_text() == written


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, learned",
    [
        ("--assignment-temperature-rate 1 --reconstruction", 2),
        ("--assignment-temperature-rate 0 --assignment-temperature-end 1", 0),
    ],
)
def test_agreement_is_measured_where_it_has_not_been(flags, learned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda name, data_dir: tiny_run.dataset())
    flags = f"{CAPSULES.replace('--num-iterations 1', '--num-iterations 2')} {flags}"
    command = [
        "--study",
        "default",
        "--seeds",
        "0",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--holdout",
        "5",
    ]
    command += ["--output", str(tmp_path), f"--flags={flags}"]
    assert ablation.main(command) == 0 and ablation.main([*command, "--agreement"]) == 0
    before, after = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert "agreement" not in before and before["accuracy"] == after["accuracy"]
    assert after["agreement"]["class_caps"]["best_share"][0] == pytest.approx(1 / 3, rel=1e-5)
    assert len(after.get("temperatures", {}).get("assignment_temperature", "")) == learned
    assert "x even" in capsys.readouterr().out
    assert ablation.main(command) == 0  # of the two records the newer one counts
    assert " | 1 |" in capsys.readouterr().out


def test_a_cnn_has_no_causes_in_its_routing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda name, data_dir: tiny_run.dataset())
    assert (
        ablation.main(
            [
                "--study",
                "default",
                "--holdout",
                "5",
                "--causes",
                "--output",
                str(tmp_path),
                f"--flags={CNN}",
            ]
        )
        == 2
    )
    assert (
        "error: --causes measures EM routing, of which a network of the kind cnn has none"
        in capsys.readouterr().err
    )


def test_the_table_counts_runs_that_are_not_finite():
    run = {"variant": "", "accuracy": 0.5, "gradient_norm_first": 1.0, "gradient_norm_last": 2.0}
    text = table([run | {"finite": True}, run | {"finite": False}], [""], "two runs").markdown()
    assert "| `default` | 50.00 ± 0.00 | 50.00 | 50.00 | 1 to 2 | 2, 1 not finite |" in text
