"""The command that compares all of emcaps in each of JAX's ways of sharding: it finds what is
right, and what is not.
"""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import meshes as command
from experiments.verification import meshes

FEW = ["--devices", "2", "--ways", "explicit", "automatic", "shard_map", "export"]


def rows_of(folder):
    return json.loads((folder / "meshes.json").read_text())["rows"]


def test_every_case_can_be_made():
    """By the shapes: the parameters of modules take long to compile."""
    made = jax.eval_shape(lambda: {case.name: case.shared for case in meshes.cases()})
    assert {"squash", "spread_loss", "CapsNet", "Decoder"} < made.keys()


@pytest.mark.parametrize("case", ["squash", pytest.param("spread_loss", marks=pytest.mark.slow)])
def test_what_is_divided_is_compared_and_counted(case, tmp_path, monkeypatch, capsys):
    # Functions come first, and modules are not made.
    monkeypatch.setattr(command, "cases", lambda: itertools.islice(meshes.cases(), 9))
    assert command.main([*FEW, "--cases", case, "--output", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert [(row["case"], row["way"], row["devices"]) for row in rows] == [
        (case, way, devices)
        for way, devices in (("explicit", 2), ("automatic", 2), ("shard_map", 2), ("export", 1))
    ]
    assert all(row["right"] and row["difference"] < 1e-6 for row in rows)
    assert f"| {case} | " in capsys.readouterr().out


def run_as_the_only_case(case, folder, monkeypatch):
    monkeypatch.setattr(command, "cases", lambda: iter([case]))
    return command.main(
        ["--devices", "2", "--ways", "automatic", "shard_map", "--output", str(folder)]
    )


RANDOM = np.random.default_rng(0).normal(size=(meshes.BATCH, 3)).astype(np.float32)


def test_examples_that_see_each_other_are_found_out(tmp_path, monkeypatch, capsys):
    case = meshes.Case("centered", lambda batch, _: batch - batch.mean(0), RANDOM, ())
    assert run_as_the_only_case(case, tmp_path, monkeypatch) == 1
    assert [row["right"] for row in rows_of(tmp_path)] == [True, False]
    assert "NOT RIGHT" in capsys.readouterr().out


def test_what_is_not_a_number_is_not_right(tmp_path, monkeypatch, capsys):
    """On two devices; on one, what it is compared with, it is a number. What comes before is."""

    def function(batch, _):
        whole = batch.shape[0] == meshes.BATCH
        return batch, batch if whole else batch * jnp.nan

    case = meshes.Case("lost", function, RANDOM, ())
    assert run_as_the_only_case(case, tmp_path, monkeypatch) == 1
    assert [row["right"] for row in rows_of(tmp_path)] == [True, False]
    assert "nan NOT RIGHT" in capsys.readouterr().out


def test_trees_of_other_lengths_are_not_compared():
    with pytest.raises(ValueError, match="zip"):
        meshes._distance([np.ones(2)], [np.ones(2), np.zeros(2)])


def test_low_precision_may_be_as_far_from_float32_as_on_one_device(tmp_path, monkeypatch):
    rounded = lambda batch, _: batch.astype(jnp.bfloat16)  # noqa: E731
    case = meshes.Case("rounded", rounded, RANDOM, (), lambda batch, _: batch)
    assert run_as_the_only_case(case, tmp_path, monkeypatch) == 0
    assert all(row["difference"] > meshes.TOLERANCE for row in rows_of(tmp_path))
    case = case._replace(
        function=lambda batch, _: rounded(batch - batch.mean(0), _),
        exact=lambda batch, _: batch - batch.mean(0),
    )
    assert run_as_the_only_case(case, tmp_path, monkeypatch) == 1


@pytest.mark.parametrize(
    "flags, words",
    [(["--ways", "telepathy"], "ways must be"), (["--devices", "3"], "divisors of the batch")],
)
def test_mistakes_get_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(flags)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
