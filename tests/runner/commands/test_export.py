"""What an exported file says of its run."""

import dataclasses
import json

import pytest
import tiny_run

from emcaps.pretrained import load_classifier
from experiments import export
from experiments.learning.configs import to_json
from experiments.learning.network import make_model
from experiments.runs.restore import Restored


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run that held images out, of which nothing is computed: its folder."""
    config = dataclasses.replace(tiny_run.CONFIG, holdout=3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    facts = dict.fromkeys(export.FACTS, 1) | {"steps": 6, "test_error": 0.25}
    result = facts | {"scored_on": "held-out training images"}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))

    def restore(config, workdir, data_dir, step, devices):
        assert step == 6  # whatever checkpoints there are
        state = tiny_run.initial_state()
        return Restored(step, state, tiny_run.dataset(), make_model(config.model, 3))

    monkeypatch.setattr(export, "restore", restore)
    return tmp_path / "run"


def test_a_file_says_of_which_images_and_step_its_error_is(run, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    assert export.main(["--workdir", str(run), "--out", str(out)]) == 0
    assert "error 25.0000% on the held-out training images" in capsys.readouterr().out
    facts = load_classifier(str(out)).facts
    assert facts["scored_on"] == "held-out training images"

    # One from before there was this fact.
    result = json.loads((run / "result.json").read_text())
    del result["scored_on"]
    (run / "result.json").write_text(json.dumps(result))
    out = tmp_path / "earlier.safetensors"
    assert export.main(["--workdir", str(run), "--out", str(out)]) == 0
    assert "on the test set" in capsys.readouterr().out
