"""Files of classifiers: what is written comes back as it was; what is no classifier is refused, and
nothing in it is run.
"""

import dataclasses
import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open

import emcaps
from emcaps.pretrained import Examples, load_classifier, save_classifier
from experiments import export
from experiments.data import loading
from experiments.plots import pictures
from experiments.runs import loop


@pytest.fixture
def small():
    return tiny_run.classifier()


def test_a_file_holds_all_of_it(small, tmp_path):
    save_classifier(tmp_path / "small.safetensors", small)
    loaded = load_classifier(tmp_path / "small.safetensors")
    assert loaded.model == small.model
    for name in ("view", "image_shape", "class_names", "facts"):
        assert getattr(loaded, name) == getattr(small, name)
    jax.tree.map(
        np.testing.assert_array_equal,
        (loaded.params, loaded.examples),
        (small.params, small.examples),
    )
    np.testing.assert_array_equal(
        loaded.predict(small.examples.images).poses, small.predict(small.examples.images).poses
    )
    with pytest.raises(FileExistsError):
        save_classifier(tmp_path / "small.safetensors", small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a", "b")}, "class_names must be 3 names; got 2"),
        ({"image_shape": (20, 20, 1)}, "variables must be those of the model"),
        ({"params": {}}, "variables must be those of the model"),
        (
            {"examples": Examples(np.zeros((1, 3, 3, 2), np.uint8), np.zeros(1, np.int32))},
            "examples must be uint8 images",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_not_written(small, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        save_classifier(tmp_path / "wrong.safetensors", dataclasses.replace(small, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow), jnp.float32]
)
def test_a_file_keeps_the_dtype_that_the_network_computes_in(small, tmp_path, dtype):
    classifier = dataclasses.replace(small, model=small.model.clone(dtype=dtype))
    save_classifier(tmp_path / "a.safetensors", classifier)
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.model.dtype == jnp.dtype(dtype)
    for ours, theirs in zip(
        loaded.predict(small.examples.images),
        classifier.predict(small.examples.images),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_keeps_the_dtype_of_parameters_and_not_how_they_start(small, tmp_path):
    model = small.model.clone(transform_init=emcaps.NearIdentity(0.5), param_dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small.params)
    save_classifier(
        tmp_path / "a.safetensors", dataclasses.replace(small, model=model, params=params)
    )
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.model == small.model.clone(param_dtype=jnp.dtype("bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.bfloat16)}


def rewritten(path, change):
    """Change what a file says of a classifier, and its arrays."""
    arrays = safetensors_numpy.load_file(path)
    with safe_open(path, framework="numpy") as file:
        described = json.loads(file.metadata()["emcaps"])
    change(described, arrays)
    path.write_bytes(safetensors_numpy.save(arrays, {"emcaps": json.dumps(described)}))


def test_files_of_before_are_read_as_they_were(small, tmp_path):
    def older(described, _):
        for name in (
            "dtype",
            "param_dtype",
            "conv_kernel",
            "conv_stride",
            "capsule_kernels",
            "capsule_strides",
        ):
            del described["model"][name]
        described["model"]["capsule_init"] = {"identity": 0.0}
        described["class_names"] = [0.0, 1.0, 2.0]

    save_classifier(tmp_path / "a.safetensors", small)
    rewritten(tmp_path / "a.safetensors", older)
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.model.dtype is None and loaded.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(
        loaded.predict(small.examples.images).poses, small.predict(small.examples.images).poses
    )


def test_parameters_are_not_read_with_less_precision(small, tmp_path):
    def wider(_, arrays):
        arrays["params/conv/bias"] = arrays["params/conv/bias"].astype(np.float64)

    save_classifier(tmp_path / "a.safetensors", small)
    rewritten(tmp_path / "a.safetensors", wider)
    with pytest.raises(
        ValueError,
        match="params/conv/bias is float64, which JAX would make float32; enable jax_enable_x64",
    ):
        load_classifier(tmp_path / "a.safetensors")


def test_numbers_of_numpy_are_kept_as_what_they_are(small, tmp_path):
    facts = {
        "steps": np.int64(5),
        "test_error": np.float32(0.5),
        "held_out": np.bool_(True),
        "seeds": (0, np.int32(1)),
        "mean": None,
    }
    image_shape, class_names = np.array(small.image_shape), np.array(small.class_names)
    classifier = dataclasses.replace(
        small, facts=facts, image_shape=image_shape, class_names=class_names
    )
    save_classifier(tmp_path / "a.safetensors", classifier)
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.facts == {
        "steps": 5,
        "test_error": 0.5,
        "held_out": True,
        "seeds": [0, 1],
        "mean": None,
    }
    assert [type(value) for value in loaded.facts.values()] == [int, float, bool, list, type(None)]
    assert (loaded.image_shape, loaded.class_names) == ((15, 14, 2), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("facts", "error", "message"),
    [
        ({3: "steps"}, TypeError, "keys of facts must be strings; got 3"),
        (
            {"run": {"folder": Path("a")}},
            TypeError,
            r"facts\['run'\]\['folder'\] must be in terms of JSON; got .*Path",
        ),
        ({"curve": np.zeros(3)}, TypeError, r"facts\['curve'\] must be in terms of JSON"),
        ({"test_error": np.nan}, ValueError, r"facts\['test_error'\] must be finite"),
    ],
)
def test_facts_that_a_file_would_change_are_refused(small, tmp_path, facts, error, message):
    with pytest.raises(error, match=message):
        save_classifier(tmp_path / "a.safetensors", dataclasses.replace(small, facts=facts))
    assert not list(tmp_path.iterdir())


def test_what_does_not_come_back_as_it_was_is_not_left(small, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    other = dataclasses.replace(
        small, class_names=("a", "b", "d"), params=jax.tree.map(lambda leaf: leaf + 1, small.params)
    )
    with monkeypatch.context() as patch:
        patch.setattr(emcaps.pretrained.classifier, "load_classifier", lambda _: other)
        with pytest.raises(
            ValueError,
            match=(
                f"{path} cannot hold .* read back, it has another class_names, "
                "params/class_caps/beta_a"
            ),
        ):
            save_classifier(path, small)
    with monkeypatch.context() as patch:
        patch.setattr(emcaps.pretrained.classifier, "LARGEST_FILE", 1000)
        with pytest.raises(ValueError, match="at most 1000 are read"):
            save_classifier(path, small)
    assert not list(tmp_path.iterdir())
    path.write_text("of somebody else")
    with pytest.raises(FileExistsError):
        save_classifier(path, small)
    assert path.read_text() == "of somebody else"


class Canary:
    """What would write a file if somebody unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def damaged(contents, kind, canary):
    """The contents of a file that is no classifier."""
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    described = json.loads(header["__metadata__"]["emcaps"])
    arrays = safetensors_numpy.load(contents)
    again = lambda: safetensors_numpy.save(arrays, {"emcaps": json.dumps(described)})  # noqa: E731
    if kind == "cut":
        return contents[: len(contents) // 2]
    if kind == "empty":
        return b""
    if kind == "pickle":
        return pickle.dumps(Canary(canary))
    if kind == "huge header":
        return (2**60).to_bytes(8, "little") + contents[8:]
    if kind == "huge array":
        header["params/conv/bias"]["shape"] = [2**40]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + contents[8 + length :]
    if kind == "no description":
        return safetensors_numpy.save(arrays)
    if kind == "deep description":
        return safetensors_numpy.save(arrays, {"emcaps": "[" * 100_000})
    if kind == "unknown setting":
        described["model"]["hidden"] = 3
    if kind == "wrong setting":
        described["model"]["routing"][0]["num_iterations"] = "os.system('true')"
    if kind == "huge setting":
        described["model"]["num_classes"] = 10**30
    if kind == "huge images":
        described["image_shape"] = [10**8, 10**8, 1]
    if kind == "other network":
        described["model"]["conv_channels"] = 2**40
    if kind == "not finite":
        arrays["params/conv/bias"] = np.full(4, np.nan, np.float32)
    if kind == "missing array":
        del arrays["params/conv/bias"]
    return again()


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "cut",
            "empty",
            "pickle",
            "huge header",
            "huge array",
            "no description",
            "deep description",
        ),
        *("unknown setting", "wrong setting", "huge setting", "huge images"),
        *("other network", "not finite", "missing array"),
    ],
)
def test_a_file_that_holds_no_classifier_is_refused_and_nothing_in_it_is_run(small, tmp_path, kind):
    path, canary = tmp_path / "small.safetensors", tmp_path / "canary"
    save_classifier(path, small)
    path.write_bytes(damaged(path.read_bytes(), kind, canary))
    with pytest.raises(ValueError, match=f"{path} is no classifier: "):
        load_classifier(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (None, TypeError, "name must be a string or a path; got None"),
        (
            "cifar10",
            ValueError,
            "name must be one of 'mnist', 'toynorb', or a path that ends in .safetensors; got "
            "'cifar10'",
        ),
        ("nowhere/at/all.safetensors", FileNotFoundError, "nowhere"),
    ],
)
def test_unknown_names_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        load_classifier(name)


def test_what_is_not_a_classifier_is_not_written(small, tmp_path):
    with pytest.raises(TypeError, match="classifier must be a Classifier; got dict"):
        save_classifier(tmp_path / "a.safetensors", {})
    with pytest.raises(ValueError, match=r"path must end in .safetensors; got .*a.npz"):
        save_classifier(tmp_path / "a.npz", small)


@pytest.mark.slow
def test_a_finished_run_is_exported(tmp_path, monkeypatch, capsys):
    dataset = tiny_run.dataset()
    monkeypatch.setattr(loading, "load", lambda name, data_dir: dataset)
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    loop.train(tiny_run.CONFIG, dataset, tmp_path / "run")
    command = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "run.safetensors")]
    assert export.main(command) == 0
    classifier = load_classifier(tmp_path / "run.safetensors")
    wrong = np.asarray(classifier.predict(dataset.test_images).classes) != dataset.test_labels
    assert wrong.mean() == pytest.approx(classifier.facts["test_error"])
    capsys.readouterr()
    assert export.main(command) != 0
    assert "is not overwritten" in capsys.readouterr().err
