"""What keeps the experiments from working on a machine is said in one line, with what to do."""

import ast
import builtins
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import experiments

TOP = Path(__file__).parents[2]


def test_here_nothing_is_in_the_way():
    assert experiments.obstacle() is None


def test_without_the_packages_a_command_says_how_to_get_them():
    # -S: as in an environment in which nothing was installed.
    command = [sys.executable, "-S", "-m", "experiments.train"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: not installed: jax, flax, numpy, safetensors, tyro, optax, ")
    assert line.endswith("-m pip install -e '.[experiments]'")


def test_only_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(experiments, "EXTRA", (*experiments.EXTRA, "nosuch"))
    assert experiments.obstacle().startswith("not installed: nosuch; ")


def test_all_that_the_extra_installs_is_looked_for():
    extra = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.match(r"[\w-]+", requirement)[0] for requirement in extra["experiments"]}
    of = importlib.metadata.packages_distributions()
    assert all(wanted & set(of[name]) for name in experiments.EXTRA)
    assert len(wanted) == len(experiments.EXTRA)


def test_an_old_python_is_told_its_version(monkeypatch):
    monkeypatch.setattr(experiments, "OLDEST_PYTHON", (4, 0))
    assert experiments.obstacle().startswith("emcaps needs Python 4.0 or newer; this is 3.")


def test_an_old_python_can_read_what_tells_it():
    ast.parse(Path(experiments.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))


def test_the_oldest_python_is_the_one_that_is_packaged():
    oldest = ".".join(map(str, experiments.OLDEST_PYTHON))
    assert f'requires-python = ">={oldest}"' in (TOP / "pyproject.toml").read_text()


def test_what_jax_says_of_the_processor_is_passed_on(monkeypatch):
    real = builtins.__import__

    def without_avx(name, *rest):
        if name == "jax":
            raise RuntimeError("built using AVX instructions,\nwhich your CPU does not support")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_avx)
    said = experiments.obstacle()
    assert said == (
        "JAX does not run on this machine: built using AVX instructions, which your CPU does not "
        "support"
    )


def test_imported_it_raises(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    source = compile(Path(experiments.__file__).read_text(), "experiments", "exec")
    with pytest.raises(ImportError, match=r"needs Python 3\.11 or newer"):
        exec(source, {"__name__": "experiments"})
