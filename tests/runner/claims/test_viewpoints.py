"""Familiar and new viewpoints: how networks are matched and what is recorded, on a tiny problem."""

import json

import numpy as np
import pytest
import tiny_run

from experiments import viewpoints
from experiments.claims import experiment, study
from experiments.claims.networks import NETWORKS
from experiments.plots import pictures
from experiments.runs.loop import TARGET_TOLERANCE
from experiments.viewpoints import ViewpointsCommand


@pytest.fixture
def file(tmp_path):
    """An .npz file of the tiny problem, its images seen from three azimuths."""
    data = tiny_run.dataset(num_train=60, num_test=90)
    labels = np.concatenate([data.train_labels, data.test_labels])
    arrays = {
        "image": np.concatenate([data.train_images, data.test_images]),
        "label": labels,
        "split": np.repeat(["train", "test"], [60, 90]),
        "azimuth": np.arange(150) % 3 * 20,
    }
    np.savez(tmp_path / "views.npz", **arrays)
    return tmp_path / "views.npz"


@pytest.mark.slow
def test_networks_are_matched_on_familiar_views_and_scored_on_all(
    file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(NETWORKS, "capsules", tiny_run.cnn(3))  # nothing here depends on the family
    monkeypatch.setitem(NETWORKS, "cnn", tiny_run.cnn(4))
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    command = [
        "--dataset",
        str(file),
        "--train-values",
        "0",
        "40",
        "--quick",
        "--runs",
        str(tmp_path / "runs"),
    ]
    command += ["--flags=--batch-size 8 --max-shift 1"]
    assert viewpoints.main(command) == 0
    folder = tmp_path / "runs" / "quick" / "views" / "viewpoints-azimuth"
    record = json.loads((folder / "seed-0.json").read_text())
    assert (record["dataset"], record["train_values"], record["seed"]) == ("views", [0, 40], 0)
    for name in ("capsules", "cnn"):
        found, at_end = record["networks"][name], record["unmatched"][name]
        assert (at_end["familiar_examples"], at_end["new_examples"]) == (60, 30)
        by_value = found["errors_by_value"]
        assert found["familiar_error"] == pytest.approx((by_value["0"] + by_value["40"]) / 2)
        assert found["new_error"] == by_value["20"]
        trained = json.loads((folder / f"{name}-0" / "result.json").read_text())
        assert (at_end["familiar_error"], at_end["steps"]) == (
            trained["test_error"],
            study.QUICK_STEPS,
        )
        assert (found == at_end) == (name != record["stopped"])
    errors = [found["familiar_error"] for found in record["networks"].values()]
    assert record["matched"] == (abs(errors[0] - errors[1]) <= TARGET_TOLERANCE)

    monkeypatch.setattr(
        experiment, "trained", lambda *_: pytest.fail("a finished run was repeated")
    )
    assert viewpoints.main(command) == 0
    assert json.loads((folder / "seed-0.json").read_text()) == record
    assert "familiar_error" in capsys.readouterr().out


def test_a_record_depends_on_the_flags_of_capsules_and_on_which_they_are():
    asked = ViewpointsCommand(study.Study()).settings(0)
    of_flags = ViewpointsCommand(study.Study(capsule_flags="--conv-channels 7")).settings(0)
    of_another = ViewpointsCommand(study.Study(), capsules="dynamic").settings(0)
    assert of_flags != asked != of_another


def test_the_better_network_is_stopped_where_it_is_as_good_as_the_other(monkeypatch):
    """The other's error is its target, whichever network that is."""
    ends = {"capsules-7": 0.30, "cnn-7": 0.10, "cnn-7-stopped": 0.302}
    stopped, scored = {}, {}

    def score(config, workdir, data_dir):
        scored[workdir.name] = config
        return {"familiar_error": ends[workdir.name]}

    monkeypatch.setattr(
        viewpoints, "trained", lambda config, workdir, *_: stopped.update({workdir.name: config})
    )
    monkeypatch.setattr(viewpoints, "finished", lambda workdir: {"test_error": ends[workdir.name]})
    monkeypatch.setattr(viewpoints, "score", score)
    command = ViewpointsCommand(factor="elevation")
    record = viewpoints.measure(command, 7, "")
    assert (record["stopped"], record["matched"]) == ("cnn", True)
    assert record["networks"] == {
        "capsules": {"familiar_error": 0.30},
        "cnn": {"familiar_error": 0.302},
    }
    assert record["unmatched"]["cnn"] == {"familiar_error": 0.10}
    assert (
        list(stopped) == ["cnn-7-stopped"] and stopped["cnn-7-stopped"] == scored["cnn-7-stopped"]
    )
    assert (scored["cnn-7-stopped"].target_error, scored["cnn-7"].target_error) == (0.30, None)
    assert [stopped["cnn-7-stopped"].steps, stopped["cnn-7-stopped"].eval_every] == [2200, 22]
    assert {(config.factor, config.train_values, config.seed) for config in scored.values()} == {
        ("elevation", (0, 1, 2), 7)
    }

    ends.update({"cnn-7": 0.296})
    assert viewpoints.measure(command, 7, "")["stopped"] is None
    ends.update({"cnn-7": 0.5, "capsules-7-stopped": 0.4})
    assert viewpoints.measure(command, 7, "") | {"networks": {}, "unmatched": {}} == {
        "stopped": "capsules",
        "matched": False,
        "networks": {},
        "unmatched": {},
    }


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--factor azimuth", "which values of azimuth are familiar? Give them by --train-values"),
        ("--factor nosuch --train-values 1", "views has no factor `nosuch`; its factors: azimuth"),
        (
            "--train-values 1 2",
            "values of azimuth must be some of the training images' [0, 20, 40]; got [1, 2]",
        ),
    ],
)
def test_views_that_there_are_not_are_refused(flags, message, file, tmp_path, capsys):
    assert (
        viewpoints.main(["--dataset", str(file), *flags.split(), "--runs", str(tmp_path / "runs")])
        == 2
    )
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.json"))


@pytest.mark.parametrize("name", ["nosuch", "cnn-25k"])
def test_only_capsules_are_compared_with_the_cnn(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        viewpoints.main(["--capsules", name])
    assert "capsules must be one of capsules, capsules-32-8-8-8, " in capsys.readouterr().err


def test_other_capsules_are_trained_as_their_recipe_says():
    command = ViewpointsCommand(capsules="capsules-32-8-8-8")
    runs = {path.name: config for path, config in command.runs(0).items()}
    assert runs["capsules-0"].model.conv_capsules == (8, 8) and runs["cnn-0"].model.family == "cnn"
