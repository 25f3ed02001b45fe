"""A trained network with all that it takes to use it, in one file of plain arrays; two of them come with the package."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

from emcaps.capsnet import CapsNet, check_network
from emcaps.checks import check_finite, check_range
from emcaps.layers import RoutingOptions
from emcaps.sharding import is_sharded
from emcaps.views import View

WEIGHTS = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"
PRETRAINED = ("mnist", "toynorb")
"""The classifiers that come with the package, by name; README.md says how they were trained and what errors they make."""

AT_ONCE = 128  # images that are classified in one call of the compiled program
LARGEST_FILE = 2**30  # bytes


class Prediction(NamedTuple):
    """What a classifier says of N images.

    Attributes:
        classes: int32 `[N]`, the most active class; `Classifier.class_names` has their names.
        activations: of all class capsules, float32 `[N, J]` in [0, 1].
        poses: of all class capsules, float32 `[N, J, 4, 4]`; that of the winner is `poses[n, classes[n]]`.
    """

    classes: jax.Array
    activations: jax.Array
    poses: jax.Array


class Examples(NamedTuple):
    """A few test images that come with a classifier, or none: uint8 `[N, H, W, C]`, and their classes, int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network, and what it was trained for.

    Attributes:
        model: the network.
        params: its parameters: it is applied as `model.apply({"params": params}, view(images))`.
        view: what the network sees of an image.
        image_shape: `(H, W, C)` of the images that it takes.
        class_names: one for each class.
        examples: a few images of the test set; there may be none.
        facts: where it comes from, in terms of JSON: the data set, the error on its test set, the command that trained it.
    """

    model: CapsNet
    params: Any
    view: View
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    examples: Examples
    facts: Mapping[str, Any]

    def predict(self, images: jax.Array | np.ndarray) -> Prediction:
        """Classify images, as many as there are.

        What is compiled is for 1, 2, 4, ... or 128 images, whatever N is: more are taken 128 at a time, and fewer are filled up.
        Images that are sharded over explicit axes of a mesh are taken all at once, as they are, each by the device where it is.

        Args:
            images: `[N, H, W, C]` of `image_shape`, uint8, or floating in [0, 1] (checked where they are known).

        Returns:
            A `Prediction` of all N; for N = 0 an empty one.

        Raises:
            TypeError: images are no array, or neither uint8 nor floating point.
            ValueError: images have another shape, or known values out of range.
        """
        self._check_images(images)
        if is_sharded(images):
            return _predict(self.model, self.view, self.params, images)
        number, parts = len(images), []
        for start in range(0, max(number, 1), AT_ONCE):
            part = jnp.asarray(images[start : start + AT_ONCE])
            size = 1 << max(len(part) - 1, 0).bit_length()
            filled = jnp.pad(part, [(0, size - len(part))] + [(0, 0)] * 3)
            predicted = _predict(self.model, self.view, self.params, filled)
            parts.append([array[: len(part)] for array in predicted])
        return Prediction(*map(jnp.concatenate, zip(*parts, strict=True)))

    def _check_images(self, images: Any) -> None:
        if not isinstance(images, jax.Array | np.ndarray):
            raise TypeError(f"images must be an array; got {type(images).__name__}")
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"images must be uint8, or floating point in [0, 1]; got {images.dtype}")
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must have shape [N, {expected}]; got shape {list(images.shape)}")
        if images.dtype != np.uint8:
            check_range("images", images, 0, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(model: CapsNet, view: View, params: Any, images: jax.Array) -> Prediction:
    output: Any = model.apply({"params": params}, view(images))
    capsules, stages = output
    # Activations can round to 1 where their logits differ.
    logits = stages["class_caps"].activation_logits[:, 0, 0]
    return Prediction(logits.argmax(-1).astype(jnp.int32), capsules.activations, capsules.poses)


def load_classifier(name: str | Path) -> Classifier:
    """A classifier that comes with the package, or that `save_classifier` has written.

    Args:
        name: `"mnist"` or `"toynorb"`; or the path of a file, which ends in `.safetensors`. Files may come from anywhere: they hold
            arrays and JSON, nothing in them is run, and what does not fit together is refused.

    Raises:
        TypeError: the name is neither a string nor a path.
        ValueError: there is no classifier of this name, or the file holds none.
        OSError: the file cannot be read.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be a string or a path; got {name!r}")
    if name not in PRETRAINED and Path(name).suffix != SUFFIX:
        known = ", ".join(map(repr, PRETRAINED))
        raise ValueError(f"name must be one of {known}, or a path that ends in {SUFFIX}; got {str(name)!r}")
    path = WEIGHTS / f"{name}{SUFFIX}" if name in PRETRAINED else Path(name)
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path} is no classifier: it has {size} bytes, and at most {LARGEST_FILE} are read")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})["emcaps"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        return _build(described, arrays)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no classifier: {error}") from error


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier into a new file, of arrays and JSON, for `load_classifier`.

    Raises:
        TypeError, ValueError: it is not a classifier whose parts fit together, or the path does not end in `.safetensors`.
        FileExistsError: there is a file already.
    """
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier must be a Classifier; got {type(classifier).__name__}")
    if Path(path).suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}; got {str(path)!r}")
    _check_parts(classifier)
    model = classifier.model
    described = {
        "model": {
            "num_classes": model.num_classes,
            "conv_channels": model.conv_channels,
            "primary_capsules": model.primary_capsules,
            "conv_capsules": list(model.conv_capsules),
            "routing": [dataclasses.asdict(routing) for routing in model.layer_routing()],
            "add_coordinates": model.add_coordinates,
        },
        "view": dataclasses.asdict(classifier.view),
        "image_shape": list(classifier.image_shape),
        "class_names": list(classifier.class_names),
        "facts": dict(classifier.facts),
    }
    arrays = {f"params/{key}": np.asarray(value) for key, value in _flat(classifier.params).items()}
    arrays |= {f"examples/{key}": np.asarray(value) for key, value in classifier.examples._asdict().items()}
    contents = safetensors_numpy.save(arrays, {"emcaps": json.dumps(described, default=float)})
    with open(path, "xb") as file:
        file.write(contents)


def _build(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Classifier:
    """The classifier of a file. Raises KeyError, TypeError or ValueError if the file's parts do not fit together."""
    settings = dict(described["model"])
    settings["routing"] = tuple(RoutingOptions(**routing) for routing in settings["routing"])
    settings["conv_capsules"] = tuple(settings["conv_capsules"])
    params = {key.removeprefix("params/"): array for key, array in arrays.items() if key.startswith("params/")}
    classifier = Classifier(
        CapsNet(**settings),
        jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params, sep="/")),
        View(**described["view"]),
        tuple(described["image_shape"]),
        tuple(described["class_names"]),
        Examples(arrays["examples/images"], arrays["examples/labels"]),
        described["facts"],
    )
    _check_parts(classifier)
    return classifier


def _check_parts(classifier: Classifier) -> None:
    """Raise TypeError or ValueError unless the parts of a classifier fit together."""
    image = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.uint8)
    seen = jax.eval_shape(classifier.view, image)
    check_network(classifier.model, {"params": classifier.params}, np.zeros(seen.shape, seen.dtype))
    for key, value in _flat(classifier.params).items():
        check_finite(f"params/{key}", value)
    if len(classifier.class_names) != classifier.model.num_classes:
        raise ValueError(f"class_names must be {classifier.model.num_classes} names; got {len(classifier.class_names)}")
    images, labels = classifier.examples
    if images.dtype != np.uint8 or images.shape[1:] != tuple(classifier.image_shape) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"examples must be uint8 images [N, {', '.join(map(str, classifier.image_shape))}] and their labels [N]; "
            f"got {images.dtype} {list(images.shape)} and {list(labels.shape)}"
        )


def _flat(params: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")
