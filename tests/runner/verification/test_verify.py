"""`experiments.verify`: right routing passes, wrong routing does not, and both are written down."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from experiments import verify
from experiments.measurements.layer import Layer
from experiments.verification import routing
from experiments.verification.memory import check_memory
from experiments.verification.step_equality import Steps, differences

CONV = routing.Case(Layer(batch=2, size=4, stride=1, children=2, parents=3, iterations=2))
# Whose types two devices can share.
EVEN = routing.Case(Layer(batch=2, size=4, stride=1, children=2, parents=2, iterations=2))
CLASSES = routing.Case(
    Layer(batch=1, size=2, kernel=1, children=2, parents=2, iterations=2), classes=True
)


@pytest.fixture
def smaller(monkeypatch):
    """Checks of what is small enough for a test."""
    checks = {
        "routing": functools.partial(routing.check_routing, [CONV]),
        "precision": functools.partial(routing.check_precision, CONV),
        "divided": functools.partial(routing.check_divided, EVEN),
        "steps": functools.partial(verify.check_steps, 2),
        "memory": functools.partial(check_memory, [1]),
    }
    monkeypatch.setattr(verify, "CHECKED", checks)


def verified(folder, *words):
    code = verify.main(["--output", str(folder), *words])
    return code, json.loads((folder / "verify.json").read_text())


def test_this_cpu_passes(smaller, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(routing, "distinct_implementations", lambda: ["streamed", "dense"])
    code, record = verified(tmp_path, "--checks", "routing", "precision")
    assert (code, record["passed"]) == (0, True)
    cases = [finding["case"] for finding in record["findings"]]
    assert any("streamed, float32: gradients" in case for case in cases)
    assert any("dense, float32: values" in case for case in cases)
    assert "all as it should be" in capsys.readouterr().out


@pytest.mark.slow
def test_all_checks_pass(smaller, tmp_path, monkeypatch):
    monkeypatch.setitem(
        verify.CHECKED,
        "routing",
        functools.partial(
            routing.check_routing, [dataclasses.replace(CONV, low_precision=True), CLASSES]
        ),
    )
    code, record = verified(tmp_path)
    assert code == 0
    assert {finding["check"] for finding in record["findings"]} == set(verify.CHECKED)
    assert any("streamed, bfloat16: gradients" in finding["case"] for finding in record["findings"])
    assert any("divided over 2: gradients" in finding["case"] for finding in record["findings"])


def test_a_wrong_result_is_found(smaller, tmp_path, monkeypatch, capsys):
    def a_little_wrong(case, implementation, arguments):
        right = routing.on_host(case, arguments)
        wrong = {"dense": ["poses"], "streamed": ["gradient of transforms"]}.get(implementation, [])
        return right | {name: 1.02 * right[name] for name in wrong}, True

    monkeypatch.setattr(routing, "on_device", a_little_wrong)
    code, record = verified(tmp_path, "--checks", "routing")
    assert (code, record["passed"]) == (1, False)
    wrong = [
        finding["case"].split("; ")[1] for finding in record["findings"] if not finding["passed"]
    ]
    assert sorted(wrong) == [
        "dense, float32: values",
        "streamed, float32: gradients",
    ]
    assert "2 off" in capsys.readouterr().out


def test_what_fails_or_is_not_reached_has_not_passed(smaller, tmp_path, monkeypatch, capsys):
    def failing():
        yield [routing.Finding("routing", "not a number", float("nan"), 1.0)]
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(verify, "CHECKED", {"routing": failing, "memory": lambda: iter([])})
    code, record = verified(tmp_path, "--checks", "routing", "memory")
    assert code == 1
    assert [(finding["passed"], finding["note"]) for finding in record["findings"]] == [
        (False, ""),
        (False, "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"),
    ]
    monkeypatch.setattr(verify.time, "monotonic", iter(np.arange(0, 1e6, 1000.0)).__next__)
    code, record = verified(tmp_path, "--checks", "memory")
    assert (code, record["findings"][0]["case"]) == (1, "not looked at")
    capsys.readouterr()


@pytest.mark.parametrize("number, cases", [(1, ["1"]), (3, ["1", "the rest of it"])])
def test_a_rest_is_missing_only_where_there_is_one(number, cases, tmp_path, monkeypatch, capsys):
    """The time is over as soon as the first finding is there."""

    def check():
        monkeypatch.setattr(verify.time, "monotonic", lambda: 1e6)
        yield from ([routing.Finding("memory", str(1 + one), 0.0, 1.0)] for one in range(number))

    monkeypatch.setattr(verify.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(verify, "CHECKED", {"memory": check})
    code, record = verified(tmp_path, "--checks", "memory")
    assert [finding["case"] for finding in record["findings"]] == cases
    assert code == (number > 1)
    capsys.readouterr()


def test_a_step_that_is_not_a_number_is_told():
    names = [f".{part}" for part in Steps._fields] + [".params['later']"]
    expected = {name: np.array([1.0, 2.0]) for name in names}
    found = expected | {".losses": np.array([1.0, np.nan]), ".params": np.array([np.nan, 2.0])}
    largest = differences(found, expected)
    assert np.isnan([largest["losses"], largest["params"]]).all()
    assert largest["gradient"] == 0


def test_no_checks_are_refused(capsys):
    with pytest.raises(SystemExit):
        verify.main(["--checks"])
    assert "checks" in capsys.readouterr().err
