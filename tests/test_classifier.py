"""Classifiers: the weights that come with the package, and files of one's own."""

import dataclasses
import itertools
import json
import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open

import emcaps
from emcaps import CapsNet, Classifier, Examples, RoutingOptions, View, load_classifier, save_classifier
from experiments import datasets, export, training
from experiments.toynorb.builder import ToyNorb
from experiments.toynorb.scene import AZIMUTHS, ELEVATIONS, photograph
from experiments.toynorb.shapes import toy
from experiments.views import test_view as central_view

PARAMETERS = {"mnist": 68_308, "toynorb": 68_618}
EXAMPLES = {"mnist": 0, "toynorb": 5}


@pytest.fixture(scope="module")
def small():
    """A classifier of 14x14 images, untrained."""
    model = CapsNet(3, 4, 2, (2,), RoutingOptions(num_iterations=1))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 13, 13, 2)))["params"]
    images = np.random.default_rng(0).integers(0, 256, (4, 15, 14, 2), np.uint8)
    view, examples = View(standardize=True, crop=13), Examples(images, np.array([0, 1, 2, 0], np.int32))
    return Classifier(model, params, view, (15, 14, 2), ("a", "b", "c"), examples, {"test_error": 0.5})


@pytest.mark.parametrize("number", [0, 1, 2, 3, 128, 131])
def test_any_number_of_images_is_classified_each_by_itself(small, number):
    images = np.resize(small.examples.images, (number, 15, 14, 2))
    classes, activations, poses = small.predict(images)
    assert (classes.shape, activations.shape, poses.shape) == ((number,), (number, 3), (number, 3, 4, 4))
    assert classes.dtype == np.int32
    capsules, _ = jax.jit(small.model.apply)({"params": small.params}, small.view(small.examples.images))
    np.testing.assert_allclose(activations, np.resize(capsules.activations, (number, 3)), rtol=1e-4)
    np.testing.assert_allclose(poses, np.resize(capsules.poses, (number, 3, 4, 4)), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(classes, np.asarray(activations).argmax(-1))


def test_bytes_and_numbers_up_to_1_are_the_same_image(small):
    images = small.examples.images
    np.testing.assert_allclose(small.predict(images / np.float32(255)).poses, small.predict(images).poses, rtol=1e-3, atol=1e-4)


def test_predictions_are_part_of_other_programs(small):
    """Under `jit`, and differentiable by the images."""
    images = jnp.asarray(small.examples.images / np.float32(255))
    expected = small.predict(images)
    np.testing.assert_allclose(jax.jit(small.predict)(images).activations, expected.activations, rtol=1e-4)
    slope = jax.jit(jax.grad(lambda images: small.predict(images).activations[:, 0].sum()))(images)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([[0]], TypeError, "images must be an array; got list"),
        (np.zeros((1, 15, 14, 2), np.int32), TypeError, "images must be uint8, or floating point in .*; got int32"),
        (np.zeros((15, 14, 2), np.uint8), ValueError, r"images must have shape \[N, 15, 14, 2\]; got shape \[15, 14, 2\]"),
        (np.zeros((1, 14, 15, 2), np.uint8), ValueError, r"images must have shape .*; got shape \[1, 14, 15, 2\]"),
        (np.zeros((1, 2, 15, 14), np.uint8), ValueError, r"got shape \[1, 2, 15, 14\]: do channels come first\?"),
        (np.full((1, 15, 14, 2), 7.0), ValueError, r"images must lie in \[0, 1\]; got 7"),
        (np.full((1, 15, 14, 2), np.nan), ValueError, r"images must lie in \[0, 1\]; got nan"),
    ],
)
def test_wrong_images_are_refused(small, images, error, message):
    with pytest.raises(error, match=message):
        small.predict(images)


def test_a_file_holds_all_of_it(small, tmp_path):
    save_classifier(tmp_path / "small.safetensors", small)
    loaded = load_classifier(tmp_path / "small.safetensors")
    assert loaded.model.clone(routing=RoutingOptions(num_iterations=1)) == small.model
    for name in ("view", "image_shape", "class_names", "facts"):
        assert getattr(loaded, name) == getattr(small, name)
    jax.tree.map(np.testing.assert_array_equal, (loaded.params, loaded.examples), (small.params, small.examples))
    np.testing.assert_array_equal(loaded.predict(small.examples.images).poses, small.predict(small.examples.images).poses)
    with pytest.raises(FileExistsError):
        save_classifier(tmp_path / "small.safetensors", small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a", "b")}, "class_names must be 3 names; got 2"),
        ({"image_shape": (20, 20, 1)}, "variables must be those of the model"),
        ({"params": {}}, "variables must be those of the model"),
        ({"examples": Examples(np.zeros((1, 3, 3, 2), np.uint8), np.zeros(1, np.int32))}, "examples must be uint8 images"),
    ],
)
def test_parts_that_do_not_fit_together_are_not_written(small, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        save_classifier(tmp_path / "wrong.safetensors", dataclasses.replace(small, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "float16", jnp.float32])
def test_a_file_keeps_the_dtype_that_the_network_computes_in(small, tmp_path, dtype):
    classifier = dataclasses.replace(small, model=small.model.clone(dtype=dtype))
    save_classifier(tmp_path / "a.safetensors", classifier)
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.model.dtype == jnp.dtype(dtype)
    for ours, theirs in zip(loaded.predict(small.examples.images), classifier.predict(small.examples.images), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_keeps_how_parameters_start_and_their_own_dtype(small, tmp_path):
    model = small.model.clone(capsule_init=emcaps.CapsuleInit(identity=0.5, beta_a=jnp.float32(0.25)))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small.params)
    save_classifier(tmp_path / "a.safetensors", dataclasses.replace(small, model=model, params=params))
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.model.capsule_init == emcaps.CapsuleInit(identity=0.5, beta_a=0.25)
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
        del described["model"]["dtype"], described["model"]["capsule_init"]
        described["class_names"] = [0.0, 1.0, 2.0]

    save_classifier(tmp_path / "a.safetensors", small)
    rewritten(tmp_path / "a.safetensors", older)
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.model.dtype is None and loaded.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(loaded.predict(small.examples.images).poses, small.predict(small.examples.images).poses)


def test_parameters_are_not_read_with_less_precision(small, tmp_path):
    def wider(_, arrays):
        arrays["params/conv/bias"] = arrays["params/conv/bias"].astype(np.float64)

    save_classifier(tmp_path / "a.safetensors", small)
    rewritten(tmp_path / "a.safetensors", wider)
    with pytest.raises(ValueError, match="params/conv/bias is float64, which JAX would make float32; enable jax_enable_x64"):
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
    classifier = dataclasses.replace(small, facts=facts, image_shape=image_shape, class_names=class_names)
    save_classifier(tmp_path / "a.safetensors", classifier)
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert loaded.facts == {"steps": 5, "test_error": 0.5, "held_out": True, "seeds": [0, 1], "mean": None}
    assert [type(value) for value in loaded.facts.values()] == [int, float, bool, list, type(None)]
    assert (loaded.image_shape, loaded.class_names) == ((15, 14, 2), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("facts", "error", "message"),
    [
        ({3: "steps"}, TypeError, "keys of facts must be strings; got 3"),
        ({"run": {"folder": Path("a")}}, TypeError, r"facts\['run'\]\['folder'\] must be in terms of JSON; got .*Path"),
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
    other = dataclasses.replace(small, class_names=("a", "b", "d"), params=jax.tree.map(lambda leaf: leaf + 1, small.params))
    with monkeypatch.context() as patch:
        patch.setattr(emcaps.classifier, "load_classifier", lambda _: other)
        with pytest.raises(
            ValueError, match=f"{path} cannot hold .* read back, it has another class_names, params/class_caps/beta_a"
        ):
            save_classifier(path, small)
    with monkeypatch.context() as patch:
        patch.setattr(emcaps.classifier, "LARGEST_FILE", 1000)
        with pytest.raises(ValueError, match="at most 1000 are read"):
            save_classifier(path, small)
    assert not list(tmp_path.iterdir())
    path.write_text("of somebody else")
    with pytest.raises(FileExistsError):
        save_classifier(path, small)
    assert path.read_text() == "of somebody else"


@pytest.mark.parametrize(
    "settings",
    [
        {"conv_capsules": [2]},
        {"routing": [RoutingOptions(num_iterations=1)] * 2},
        {"routing": RoutingOptions(num_iterations=1, assignment_temperature=jnp.float32(16), inverse_temperature=np.array(1.0))},
        {"capsule_init": emcaps.CapsuleInit(beta_a=np.array(0.5))},
    ],
)
def test_networks_with_lists_and_arrays_classify(small, tmp_path, settings):
    classifier = dataclasses.replace(small, model=small.model.clone(**settings))
    expected = small.predict(small.examples.images)
    np.testing.assert_array_equal(classifier.predict(small.examples.images).poses, expected.poses)
    save_classifier(tmp_path / "a.safetensors", classifier)
    loaded = load_classifier(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(loaded.predict(small.examples.images).poses, expected.poses)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, TypeError, "model must be a CapsNet; got NoneType"),
        ({"model": CapsNet(3, 4, 2, np.array([2]))}, TypeError, "conv_capsules must be a tuple of ints"),  # pyright: ignore
        ({"params": [1]}, ValueError, "variables must be those of the model"),
        ({"view": None}, TypeError, "view must be a View; got NoneType"),
        ({"image_shape": 15}, TypeError, "image_shape must be a tuple, list or array of one axis; got 15"),
        ({"image_shape": (15, 14)}, ValueError, "image_shape must be a tuple of 3 ints"),
        ({"image_shape": (15.0, 14, 2)}, TypeError, "each entry of image_shape must be a Python int.*; got 15.0"),
        ({"class_names": "abc"}, TypeError, "class_names must be a tuple, list or array of one axis; got 'abc'"),
        ({"class_names": np.arange(3)}, TypeError, "class_names must be strings; got 0"),
        ({"examples": None}, TypeError, "examples must be Examples"),
        ({"facts": [1]}, TypeError, "facts must be a mapping; got list"),
    ],
)
def test_what_is_no_classifier_is_refused_by_name(small, changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(small, **changes)


def test_labels_of_examples_are_of_the_classes(small):
    with pytest.raises(ValueError, match=r"labels of examples must lie in \[0, 2\]; got 3"):
        dataclasses.replace(small, examples=small.examples._replace(labels=np.array([0, 3, 1, 2])))


def test_a_traced_temperature_is_no_part_of_a_classifier(small):
    def classify(temperature):
        routing = RoutingOptions(num_iterations=1, assignment_temperature=temperature)
        return dataclasses.replace(small, model=small.model.clone(routing=routing)).predict(small.examples.images)

    with pytest.raises(TypeError, match="assignment_temperature of a classifier's network must be a known number"):
        jax.jit(classify)(16.0)


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
        *("cut", "empty", "pickle", "huge header", "huge array", "no description", "deep description"),
        *("unknown setting", "wrong setting", "other network", "not finite", "missing array"),
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
        ("cifar10", ValueError, "name must be one of 'mnist', 'toynorb', or a path that ends in .safetensors; got 'cifar10'"),
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
    dataset = tiny.dataset()
    monkeypatch.setattr(datasets, "load", lambda name, data_dir: dataset)
    monkeypatch.setattr(training, "draw_figures", lambda *_: None)
    training.train(tiny.CONFIG, dataset, tmp_path / "run")
    command = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "run.safetensors")]
    assert export.main(command) == 0
    classifier = load_classifier(tmp_path / "run.safetensors")
    wrong = np.asarray(classifier.predict(dataset.test_images).classes) != dataset.test_labels
    assert wrong.mean() == pytest.approx(classifier.facts["test_error"])
    capsys.readouterr()
    assert export.main(command) != 0
    assert "is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("view", [View(), View(downsample=2, standardize=True, crop=5)])
def test_a_view_is_what_the_experiments_call_a_test_view(view):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 14, 16, 2), np.uint8))
    config = dataclasses.replace(tiny.CONFIG.images, **dataclasses.asdict(view))
    np.testing.assert_array_equal(view(images), central_view(config, images))


def test_wrong_views_are_refused():
    with pytest.raises(ValueError, match="crop must be at most the images' height and width"):
        View(crop=9)(jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="downsample must divide the images' height and width, 7x8; got 2"):
        View(downsample=2)(jnp.zeros((1, 7, 8, 1)))
    for wrong in ({"downsample": 0}, {"crop": -1}):
        with pytest.raises(ValueError, match="must be at least 1"):
            View(**wrong)


@pytest.mark.parametrize("name", emcaps.PRETRAINED)
def test_the_weights_that_come_with_the_package_are_small_and_know_their_examples(name):
    classifier = load_classifier(name)
    assert (emcaps.classifier.WEIGHTS / f"{name}.safetensors").stat().st_size < 1e6
    assert sum(leaf.size for leaf in jax.tree.leaves(classifier.params)) == PARAMETERS[name]
    images, labels = classifier.examples
    assert len(labels) == EXAMPLES[name]
    np.testing.assert_array_equal(classifier.predict(images).classes, labels)


def wrong_share(classifier, images, labels):
    return (np.asarray(classifier.predict(images).classes) != labels).mean()


@pytest.mark.parametrize(
    ("number", "tolerance"),
    [(2000, 0.005), pytest.param(10_000, 2e-4, marks=pytest.mark.slow)],  # three standard deviations; two images, by rounding
)
def test_the_mnist_weights_make_the_errors_that_are_published(number, tolerance, optimized):
    root = os.environ.get("TFDS_DATA_DIR")
    if not root or not Path(root, "mnist").is_dir():
        pytest.skip("MNIST is not prepared in TFDS_DATA_DIR")
    classifier, dataset = load_classifier("mnist"), datasets.load("mnist")
    assert classifier.facts["test_examples"] == len(dataset.test_labels)
    found = wrong_share(classifier, dataset.test_images[:number], dataset.test_labels[:number])
    assert found == pytest.approx(classifier.facts["test_error"], abs=tolerance)


def rendered(views):
    """Stereo pairs, in all lightings, and the categories of test toys: for each of (category, instance, elevation, azimuths)."""
    images, labels = [], []
    for category, instance, elevation, azimuths in views:
        azimuths = jnp.array([AZIMUTHS[label] for label in azimuths], jnp.float32)
        pairs = np.asarray(photograph(toy(category, instance), jnp.full_like(azimuths, ELEVATIONS[elevation]), azimuths))
        images.append(np.moveaxis(pairs.reshape(-1, 2, 48, 48), 1, -1))
        labels += [category] * len(images[-1])
    return np.concatenate(images), np.array(labels)


def test_the_toynorb_weights_make_about_the_errors_that_are_published(optimized):
    """On three views of each test toy, from one elevation: 450 pairs, of which those of a toy are alike."""
    toys = enumerate(itertools.product(range(5), ToyNorb.SPLITS["test"]))
    views = [(*which, number % 9, [(number + place) % 18 for place in (0, 6, 12)]) for number, which in toys]
    classifier = load_classifier("toynorb")
    assert wrong_share(classifier, *rendered(views)) == pytest.approx(classifier.facts["test_error"], abs=0.05)


@pytest.mark.slow
def test_the_toynorb_weights_make_exactly_the_errors_that_are_published(optimized):
    views = itertools.product(range(5), ToyNorb.SPLITS["test"], range(9), [range(18)])
    classifier, (images, labels) = load_classifier("toynorb"), rendered(views)
    assert len(labels) == classifier.facts["test_examples"]
    assert wrong_share(classifier, images, labels) == pytest.approx(classifier.facts["test_error"], abs=2e-4)
