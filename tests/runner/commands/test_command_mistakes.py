"""A mistake in a command costs one line on stderr and exit code 2, before anything is compiled or
written.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

from experiments.data import loading
from experiments.learning.configs import as_cnn, to_json
from experiments.runs.checkpoints import Checkpoints

COMPILED = []  # how long each program took that has been compiled
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: (
        COMPILED.append(seconds) if event == "/jax/core/compile/backend_compile_duration" else None
    )
)

# What each entry point cannot do without.
REQUIRED = {
    "ablation": "",
    "adversarial": "",
    "aot": "",
    "benchmark": "",
    "equality": "--output new.npz",
    "equivariance": "",
    "evaluate": "--workdir run",
    "export": "--workdir run --out new.safetensors",
    "figures": "--workdir run",
    "jumble": "",
    "meshes": "",
    "parameters": "",
    "predict": "CLASSIFIER IMAGES",
    "report": "",
    "scaling": "",
    "toys": "",
    "train": "",
    "verify": "",
    "viewpoints": "",
}
WRONG_TYPES = {
    "ablation": "--steps",
    "adversarial": "--num-images",
    "aot": "--chips",
    "benchmark": "--repeats",
    "equality": "--precision",
    "equivariance": "--num-views",
    "evaluate": "--crops",
    "export": "--examples",
    "figures": "--images",
    "jumble": "--pieces",
    "meshes": "--devices",
    "parameters": "--seeds",
    "scaling": "--parts",
    "toys": "--num-toys",
    "train": "--batch-size",
    "verify": "--seconds",
    "viewpoints": "--train-values",
}
SMALL = "--conv-channels 4 --primary-capsules 2 --conv-capsules 2 --num-iterations 1"
TRAIN = (
    f"train --dataset mnist --steps 6 --batch-size 8 {SMALL} --max-shift 1 --margin-ramp 0.1 "
    "--warmup-steps 0"
)
STUDY = "--dataset mnist --steps 6 --flags=--batch-size=8"
# Commands, and what the line names. There are 20 training and 37 test images of 13x13, and two
# devices.
MISTAKES = [
    # values out of range
    ("ablation --steps 0", "steps must be positive; got 0"),
    ("ablation --batch-size 0", "batch_size must be positive; got 0"),
    ("ablation --seeds 1 1", "seeds must be one or more different numbers; got [1, 1]"),
    ("ablation --flags=--steps=5", "flags must leave out --steps"),
    ("ablation --study nosuch", "study must be of"),
    ("ablation --iterations 0 --dataset mnist --holdout 5", "num_iterations must be at least 1"),
    ("adversarial --epsilons 0.2 0.1", "epsilons must be"),
    ("aot --examples 0", "examples must be positive; got 0"),
    ("aot --chips", "there is nothing to compile"),
    ("aot --chips 0", "chips must be positive"),
    ("aot --networks 32/8", "a network is given by four widths, such as 64/8/16/16; got 32/8"),
    ("benchmark --stride 0", "stride must be positive; got 0"),
    ("benchmark --kernel 15", "kernel must be at most size, 14; got 15"),
    ("benchmark --kernel 7", "kernel must be at most the smallest size of the sweeps, 6; got 7"),
    ("benchmark --repeats 0", "repeats must be positive; got 0"),
    ("benchmark --parts", "parts must be one or more of"),
    ("equality --output new.npz --accumulate 0", "accumulate must be positive; got 0"),
    ("equivariance --num-views 0", "num_views must be positive; got 0"),
    ("evaluate --workdir run --crops 0", "crops must be positive; got 0"),
    ("evaluate --workdir run --devices 0", "devices must be positive; got 0"),
    ("jumble --pieces 1", "pieces must be"),
    ("predict mnist", "IMAGES must be one or more image files or folders; got none"),
    ("parameters --capsule-flags=--seed=5", "flags must leave out --seed"),
    ("parameters --seeds -1", "seeds must not be negative; got [-1]"),
    ("parameters --steps 0", "steps must be positive; got 0"),
    ("parameters --networks nosuch", "networks must be of"),
    ("scaling --parts", "parts must be some of"),
    ("toys --num-toys 0", "num_toys must be positive; got 0"),
    ("train --steps 0", "steps must be positive; got 0"),
    ("train --learning-rate -1", "learning_rate must be positive; got -1.0"),
    ("train --target-error 2", "target_error must lie in [0, 1]; got 2.0"),
    ("viewpoints --capsules cnn", "capsules must be one of"),
    # impossible combinations
    (
        "ablation --causes --study default --dataset mnist --holdout 5 --flags=--model=cnn",
        "--causes",
    ),
    ("adversarial --seeds 1 1", "seeds must be one or more different numbers; got [1, 1]"),
    ("aot --accelerators v5e --chips 2", "of a TPU 1, 4 or 8; got [2]"),
    ("aot --chips 8 --divided 8/8/8/12", "8 chips cannot share the parent types of 8/8/8/12"),
    (
        "equality --output new.npz --num-processes 2",
        "num_processes and process_id go with an address as coordinator",
    ),
    ("equivariance --dataset mnist", "dataset must be toynorb"),
    ("equivariance --flags=--holdout-instances=8", "--flags"),
    ("evaluate --workdir run --crops 4", "there are no 4 crops"),
    (
        "export --workdir done --out new.npz",
        "out must end in .safetensors or .stablehlo; got new.npz",
    ),
    ("export --workdir done --out nosuch/new.safetensors", "there is no folder nosuch"),
    ("jumble --dataset mnist --moved 0.5", "moved is not how mnist is jumbled"),
    ("jumble --dataset mnist --flags=--crop=5", "--flags"),
    ("jumble --dataset drawings --flags=--holdout=5", "--flags"),
    ("toys --dataset mnist", "dataset must be toynorb"),
    ("toys --flags=--holdout-instances=8", "--flags"),
    ("train --model cnn --baseline", "--baseline"),
    ("train --holdout 5 --holdout-instances 1", "give holdout or holdout_instances, not both"),
    ("train --factor azimuth", "give factor and train_values together"),
    ("train --parallel pmap --model-axis 2", "--parallel"),
    ("train --preset paper --model dynamic", "preset"),
    # flags for another entry point
    ("ablation --flags=--nosuch", "--nosuch"),
    ("parameters --flags=--nosuch", "--nosuch"),
    ("parameters --flags=--batch-size=0", "batch_size must be positive; got 0"),
    # data sets that there are not, and that are not such
    ("ablation --dataset nosuch", "dataset must be one of"),
    ("adversarial --dataset nosuch", "dataset must be one of"),
    ("jumble --dataset nosuch", "dataset must be one of"),
    ("parameters --dataset nosuch", "dataset must be one of"),
    ("train --dataset nosuch", "dataset must be one of"),
    ("train --dataset nosuch.npz", "there is no file nosuch.npz"),
    ("train --dataset other.npz", "other.npz: there is no array `image`; the file has numbers"),
    ("viewpoints --dataset nosuch --train-values 1", "dataset must be one of"),
    # folders that cannot be used
    ("ablation --output file", "file is not a folder"),
    ("adversarial --runs file", "file is not a folder"),
    ("aot --output file", "file is not a folder"),
    ("benchmark --output file", "file is not a folder"),
    ("equivariance --runs file", "file is not a folder"),
    ("evaluate --workdir empty", "empty holds no run"),
    ("evaluate --workdir begun", "begun has no checkpoints yet"),
    ("evaluate --workdir run --step 5", "run has checkpoints of the steps [6]; none of step 5"),
    ("evaluate --workdir alien", "alien/config.json is not the config of a run"),
    ("export --workdir empty --out new.safetensors", "empty holds no run"),
    ("export --workdir run --out new.safetensors", "run is not finished"),
    ("export --workdir cnn --out new.safetensors", "cnn holds a cnn"),
    ("export --workdir done --out there.safetensors", "there.safetensors is there already"),
    ("figures --workdir empty", "empty holds no run"),
    ("figures --workdir cnn", "cnn holds a run of a network (cnn)"),
    ("figures --workdir run --step 5", "none of step 5"),
    ("figures --workdir run --images 37", "images must be"),
    ("jumble --runs file/runs", "file is not a folder"),
    ("parameters --runs file", "file is not a folder"),
    ("predict mnist file --output other.npz", "other.npz is not a folder"),
    ("predict mnist empty", "the folder empty has no files .png, .jpg, .jpeg, .bmp in it"),
    ("predict mnist file nosuch.png", "there is no file or folder nosuch.png"),
    ("predict nosuch file", "there is no classifier nosuch: name must be one of"),
    ("predict nosuch.safetensors file", "there is no classifier nosuch.safetensors: [Errno 2]"),
    ("predict there.safetensors file", "there.safetensors is no classifier"),
    ("predict run file", "run is a folder; `python -m experiments.export --workdir run"),
    ("report --runs empty", "empty holds no results"),
    ("report --runs empty --output file", "file is not a folder"),
    ("scaling --output file", "file is not a folder"),
    ("toys --runs file", "file is not a folder"),
    ("toynorb.sheets --output file", "file is not a folder"),
    (f"{TRAIN} --workdir done", "done holds a finished run"),
    (
        f"{TRAIN} --workdir done --seed 1",
        "done holds a finished run of another config (seed: 0 there, 1 here,",
    ),
    (
        f"{TRAIN} --workdir run --seed 1",
        "run holds an unfinished run of another config (seed: 0 there, 1 here,",
    ),
    (f"{TRAIN} --workdir run --eval-every 4 --no-resume", "--resume"),
    (f"{TRAIN} --workdir alien", "alien/config.json is not the config of a run"),
    (f"{TRAIN} --workdir other", "other holds files of something else"),
    (f"{TRAIN} --workdir file", "file is not a folder"),
    (f"{TRAIN} --workdir file/new", "file is not a folder"),
    (f"{TRAIN} --workdir new --baseline --holdout 5", "new-cnn holds files of something else"),
    # flags without their values
    *((f"train {flag} --seed 3", flag) for flag in ("--dataset", "--preset", "--model")),
    ("train --num-iterations", "--num-iterations"),
    ("jumble --flags=--num-iterations", "--num-iterations"),
    # what the data or the devices do not have
    (
        "ablation --dataset mnist",
        "holdout must leave an image of each class to train on: it is at most 17; got 10000",
    ),
    (
        f"ablation --dataset mnist --holdout 5 --batch-size 16 --flags='{SMALL}'",
        "batch_size must be at most",
    ),
    ("ablation --dataset mnist --holdout 5 --batch-size 8 --study presets", "too small"),
    (
        f"adversarial {STUDY} --num-images 38",
        "num_images must be at most the 37 test images; got 38",
    ),
    ("benchmark --batch 3", "a batch of 3 cannot be divided among 2 devices"),
    ("equality --output new.npz --devices 3", "3 were requested"),
    (
        "equivariance --flags=--batch-size=8",
        "crop must be at most the images' height and width, 13x13; got 32",
    ),
    ("evaluate --workdir run --devices 3", "3 were requested"),
    (f"jumble {STUDY} --num-images 38", "num_images must be at most the 37 test images; got 38"),
    (
        f"jumble {STUDY} --num-images 20 --pieces 2",
        "pieces must divide the images' height and width, 13x13; got 2",
    ),
    ("parameters --dataset mnist --flags=--batch-size=21", "batch_size must be at most"),
    (
        "parameters --dataset mnist --flags=--holdout=20",
        "holdout must leave an image of each class to train on: it is at most 17; got 20",
    ),
    ("parameters --dataset mnist --flags=--batch-size=8", "too small"),
    (f"{TRAIN} --devices 3", "there are 2 devices"),
    (f"{TRAIN} --batch-size 7 --devices 2", "a batch of 7 cannot be divided among 2 devices"),
    (f"{TRAIN} --devices 1 --model-axis 2", "the model axis"),
    (
        f"{TRAIN} --devices 2 --model-axis 2 --conv-capsules 3",
        "the model axis must divide each of conv_capsules, [3]; got 2",
    ),
    (
        f"{TRAIN} --batch-size 22",
        "batch_size must be at most the number of training images, 20; got 22",
    ),
    (f"{TRAIN} --crop 14", "crop must be at most the images' height and width, 13x13; got 14"),
    (f"{TRAIN} --conv-capsules 3 3", "too small"),
    (
        f"{TRAIN} --holdout 20",
        "holdout must leave an image of each class to train on: it is at most 17; got 20",
    ),
    (f"{TRAIN} --holdout-instances 1", "no factor `instance`"),
    (f"{TRAIN} --factor azimuth --train-values 1", "no factor `azimuth`"),
    (f"viewpoints {STUDY}", "--train-values"),
    (f"viewpoints {STUDY} --train-values 1", "no factor `azimuth`"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs, and with what is none."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("alien", "begun", "cnn", "done", "empty", "other", "new-cnn", "run"):
        (folder / name).mkdir()
    configs = {"alien": "{}", "cnn": to_json(as_cnn(tiny_run.CONFIG))} | dict.fromkeys(
        ("begun", "done", "run"), to_json(tiny_run.CONFIG)
    )
    for name, text in configs.items():
        (folder / name / "config.json").write_text(text)
    for name in (
        "done/result.json",
        "file",
        "new-cnn/metrics.jsonl",
        "other/metrics.jsonl",
        "there.safetensors",
    ):
        (folder / name).write_text("{}")
    np.savez(folder / "other.npz", numbers=np.zeros(3))
    with Checkpoints(folder / "run" / "checkpoints") as checkpoints:
        checkpoints.save(6, tiny_run.initial_state())
    jax.clear_caches()  # what was compiled before would count as nothing
    return folder


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    """The current directory, a copy of that folder."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    load = loading.load
    monkeypatch.setattr(
        loading,
        "load",
        lambda name, data_dir: load(name) if name.endswith(".npz") else tiny_run.dataset(),
    )
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes | None]:
    """All files, and folders, below a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command of this process is refused with."""
    before = contents(folder)
    COMPILED.clear()
    module, *arguments = shlex.split(command)
    try:
        code = importlib.import_module(f"experiments.{module}").main(arguments)
    except SystemExit as exit:
        code = exit.code
    compiled = len(COMPILED)
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert (
        printed.err.startswith("error: ")
        and printed.err.endswith("\n")
        and printed.err.count("\n") == 1
    ), printed.err
    assert printed.out == ""
    assert contents(folder) == before
    assert compiled == 0
    return printed.err


def test_all_entry_points_are_tried():
    files = Path(__file__).parents[3].glob("experiments/*.py")
    assert REQUIRED.keys() == {
        file.stem for file in files if '__name__ == "__main__"' in file.read_text()
    }


@pytest.mark.parametrize("module", REQUIRED)
def test_an_unknown_flag_is_named(module, folder, capsys):
    assert "--nosuch" in refused(f"{module} {REQUIRED[module]} --nosuch 1", folder, capsys)


@pytest.mark.parametrize("module, flag", WRONG_TYPES.items())
def test_a_value_of_the_wrong_type_is_named(module, flag, folder, capsys):
    line = refused(f"{module} {REQUIRED[module]} {flag} x", folder, capsys)
    assert flag.strip("-").replace("-", "_") in line.replace("-", "_") and "x" in line


@pytest.mark.parametrize("module", [module for module, words in REQUIRED.items() if words])
def test_a_missing_flag_is_named(module, folder, capsys):
    assert REQUIRED[module].split()[0] in refused(module, folder, capsys)


@pytest.mark.parametrize("command, named", MISTAKES)
def test_a_mistake_costs_one_line(command, named, folder, capsys):
    assert named in refused(command, folder, capsys)


def test_a_measurement_with_other_settings_is_named(folder, capsys):
    for experiment in ("adversarial", "jumble", "equivariance", "toys", "viewpoints-azimuth"):
        for dataset in ("mnist", "toynorb"):
            path = Path("runs", dataset, experiment, "seed-1.json")
            path.parent.mkdir(parents=True)
            path.write_text("{}")
    for module in ("adversarial", "jumble", "equivariance", "toys", "viewpoints"):
        line = refused(f"{module} --runs runs", folder, capsys)
        assert "seed-1.json was measured with other settings" in line and "--runs" in line


def test_a_process_ends_with_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "experiments.train", "--steps", "x"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        ended.stderr.startswith("error: ")
        and ended.stderr.count("\n") == 1
        and "--steps" in ended.stderr
    )
    assert not list(tmp_path.iterdir())
