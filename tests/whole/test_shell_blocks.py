"""The shell blocks of the documentation run as they stand, in their order, but that they train for
two steps, on noise.

What installs and tests is left to `.ci/run`, what takes two hosts to test_hosts.py.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_pages import TEXTS, TOP, blocks

SITE = "experiments/documentation"
# The blocks of this page go on with what those above them have left; all others stand alone.
ONE_AFTER_THE_OTHER = f"{SITE}/getting_started.md"
STANDING_ALONE = ("README.md", "experiments/README.md", f"{SITE}/commands.md", f"{SITE}/results.md")
LEFT_TO_OTHERS = re.compile(
    r"git clone .*|cd emcaps|python3 -m venv \.venv|\. \.venv/bin/activate|pip install .*"
    r"|python -m pytest.*|\.ci/run.*|python .* --coordinator .*"
)
# The `python` that the commands find.
PYTHON = """\
import runpy, sys
import numpy as np
from experiments.data import loading
from experiments.data.dataset import Dataset

load, SHAPES = loading.load, {"mnist": (28, 28, 1), "toynorb": (48, 48, 2)}

def noise(name, data_dir=None):
    if name not in SHAPES:
        return load(name, data_dir)
    builder = loading.BUILDERS[name](data_dir="nowhere")
    names = builder.info.features[builder.label_feature].names
    labels = np.arange(64, dtype=np.int32) % len(names)
    images = np.random.default_rng(0).integers(0, 256, (64, *SHAPES[name]), np.uint8)
    return Dataset(name, tuple(names), images, labels, images[::-1].copy(), labels[::-1].copy())

loading.load = noise
_, _, module, *words = sys.argv
if module == "experiments.train":
    words += "--steps 2 --eval-every 2 --batch-size 8".split()
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def commands(block):
    """Those that are not left to others."""
    lines = [re.sub(r"\s+#.*", "", line) for line in block.replace("\\\n", "").splitlines()]
    typed = [command.removeprefix(".venv/bin/") for line in lines for command in line.split(" && ")]
    return [command for command in typed if not LEFT_TO_OTHERS.fullmatch(command)]


@pytest.fixture
def type_in(tmp_path, monkeypatch):
    """A function that has bash run commands at the top of a checkout, where an error ends them, and
    returns what they print.
    """
    for part in ("emcaps", "experiments"):
        (tmp_path / part).symlink_to(TOP / part)
    (tmp_path / "python.py").write_text(PYTHON)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "python.py"} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # As many as a command on these pages asks for.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

    def run(typed):
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(typed)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def test_every_page_with_commands_is_run_here():
    shown = {page for page, text in TEXTS.items() if any(map(commands, blocks(text, "bash")))}
    assert shown == {ONE_AFTER_THE_OTHER, *STANDING_ALONE}


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(commands(block), id=f"{page}-{number}")
        for page in STANDING_ALONE
        for number, block in enumerate(blocks(TEXTS[page], "bash"))
        if commands(block)
    ],
)
def test_a_block_runs_alone(typed, type_in):
    assert type_in(typed)


@pytest.mark.slow
def test_getting_started_runs_from_top_to_bottom(type_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = TEXTS[ONE_AFTER_THE_OTHER]
    for example in blocks(page, "python"):
        exec(compile(example, ONE_AFTER_THE_OTHER, "exec"), {})
    Image.fromarray(np.full((28, 28), 255, np.uint8)).save("digit.png")
    type_in([command for block in blocks(page, "bash") for command in commands(block)])
    for made in ("toys.safetensors", "runs/predict/predictions.png", "runs/stripes/result.json"):
        assert (tmp_path / made).exists(), made
