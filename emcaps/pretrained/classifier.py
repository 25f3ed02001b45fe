"""A trained network with all that it takes to use it, in one file of plain arrays; two of them come
with the package.
"""

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
from jax import export as jax_export
from jax.experimental import checkify
from safetensors import numpy as safetensors_numpy

from emcaps.capsnet import CapsNet
from emcaps.checks import check_pixels, check_range
from emcaps.options import EARLIER, RoutingOptions
from emcaps.pretrained.parts import check_parts, entries, flat, plain, settled
from emcaps.pretrained.views import View
from emcaps.sharding import is_sharded

WEIGHTS = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"
PRETRAINED = ("mnist", "toynorb")
"""The classifiers that come with the package, by name; the model card of the documentation says
how they were trained and what errors they make.
"""

AT_ONCE = 128  # images that are classified in one call of the compiled program
LARGEST_FILE = 2**30  # bytes
# What is raised of a file that holds something else.
UNFIT = (
    safetensors.SafetensorError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
PLATFORMS = ("cpu", "cuda", "tpu")  # that a classifier is exported for


class Prediction(NamedTuple):
    """What a classifier says of N images.

    Attributes:
        classes: int32 `[N]`, the most active class; `Classifier.class_names` has their names.
        activations: of all class capsules, `[N, J]` in [0, 1], in the network's dtype: float32, if
            nothing else was asked for.
        poses: of all class capsules, `[N, J, 4, 4]`, likewise; that of the winner is
            `poses[n, classes[n]]`.
    """

    classes: jax.Array
    activations: jax.Array
    poses: jax.Array


class Examples(NamedTuple):
    """A few test images that come with a classifier, or none: uint8 `[N, H, W, C]`, and their
    classes, int32 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network, and what it was trained for.

    Attributes:
        model: the network. Its lists are kept as tuples, arrays among its settings as Python's
            numbers, and `routing` as that of each layer.
        params: its parameters: it is applied as `model.apply({"params": params}, view(images))`.
        view: what the network sees of an image.
        image_shape: `(H, W, C)` of the images that it takes; given as a tuple, list or array, and
            kept as a tuple.
        class_names: strings, one for each class; likewise.
        examples: a few images of the test set; there may be none.
        facts: where it comes from, in terms of JSON: the data set, the error on its test set, the
            command that trained it.

    Raises:
        TypeError, ValueError: an attribute is not as above, or they do not fit together.
    """

    model: CapsNet
    params: Any
    view: View
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    examples: Examples
    facts: Mapping[str, Any]

    def __post_init__(self):
        self._keep("image_shape", entries("image_shape", self.image_shape))
        self._keep("class_names", entries("class_names", self.class_names))
        check_parts(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        self._keep("model", settled(self.model))

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the way around `frozen`

    def predict(self, images: jax.Array | np.ndarray) -> Prediction:
        """The classes, activations and poses of images, as many as there are.

        What is compiled is for 1, 2, 4, ... or 128 images, whatever N is: more are taken 128 at a
        time, and fewer are filled up. Images that are sharded over explicit axes of a mesh are
        taken all at once, as they are, each by the device where it is.

        Args:
            images: `[N, H, W, C]` of `image_shape`, uint8, or floating in [0, 1] (checked where
                they are known).

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

    def export(self) -> bytes:
        """The classifier as a program with its weights in it, which runs without emcaps and Flax:
        StableHLO for CPU, CUDA and TPU, as `jax.export` serializes it.

        `jax.export.deserialize(bytearray(contents)).call(images)` gives the classes, activations
        and poses of `predict`, as a tuple, of uint8 images `[N, H, W, C]` of `image_shape`, for any
        N of at least 1. JAX reads what it wrote for at least six months, and no longer: the
        classifier is what to keep, and the program what to make of it.

        Raises:
            ImportError: there is no `flatbuffers`, by which JAX writes and reads such programs.
            ValueError: the network routes by kernels (`implementation="kernels"`), which a program
                in a file cannot hold.
        """
        if any(routing.implementation == "kernels" for routing in self.model.layer_routing()):
            raise ValueError(
                'a classifier with implementation="kernels" cannot be exported; choose "streamed"'
            )

        def predict(images: jax.Array) -> tuple[jax.Array, ...]:
            # The checks of debug mode, which cannot be serialized, are turned into an error that
            # nobody asks for.
            checked = checkify.checkify(functools.partial(_predict, self.model, self.view))
            _, prediction = checked(self.params, images)
            return tuple(prediction)

        (number,) = jax_export.symbolic_shape("N")
        images = jax.ShapeDtypeStruct((number, *self.image_shape), jnp.uint8)
        return bytes(jax_export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize())

    def _check_images(self, images: Any) -> None:
        check_pixels("images", images)
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            channels_first = (
                images.ndim == 4 and (*images.shape[2:], images.shape[1]) == self.image_shape
            )
            hint = ": do channels come first? They must be last" if channels_first else ""
            raise ValueError(
                f"images must have shape [N, {expected}]; got shape {list(images.shape)}{hint}"
            )
        if images.dtype != np.uint8:
            check_range("images", images, 0, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(model: CapsNet, view: View, params: Any, images: jax.Array) -> Prediction:
    output: Any = model.apply({"params": params}, view(images))
    capsules, intermediates = output
    # Activations can round to 1 where their logits differ.
    logits = intermediates["class_caps"].activation_logits[:, 0, 0]
    return Prediction(logits.argmax(-1).astype(jnp.int32), capsules.activations, capsules.poses)


def load_classifier(name: str | Path) -> Classifier:
    """A classifier that comes with the package, or that `save_classifier` has written.

    Args:
        name: `"mnist"` or `"toynorb"`; or the path of a file, which ends in `.safetensors`. Files
            may come from anywhere: they hold arrays and JSON, nothing in them is run, and what does
            not fit together is refused. How the parameters of its network start, which older files
            say, is ignored.

    Raises:
        TypeError: the name is neither a string nor a path.
        ValueError: there is no classifier of this name, or the file holds none.
        OSError: the file cannot be read.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be a string or a path; got {name!r}")
    if name not in PRETRAINED and Path(name).suffix != SUFFIX:
        known = ", ".join(map(repr, PRETRAINED))
        raise ValueError(
            f"name must be one of {known}, or a path that ends in {SUFFIX}; got {str(name)!r}"
        )
    path = WEIGHTS / f"{name}{SUFFIX}" if name in PRETRAINED else Path(name)
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(
            f"{path} is no classifier: it has {size} bytes, and at most {LARGEST_FILE} are read"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})["emcaps"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        return _build(described, arrays)
    except UNFIT as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is no classifier: {reason}") from error


def save_classifier(path: str | Path, classifier: Classifier) -> None:
    """Write a classifier into a new file, of arrays and JSON, for `load_classifier`.

    It is read back, and counts as saved if it is the same. Otherwise, or if it cannot be written,
    no file is left.

    Raises:
        TypeError, ValueError: it is not a classifier, or its facts are not JSON; the path does not
            end in `.safetensors`; the file does not hold the same.
        FileExistsError: there is a file already.
        OSError: the file cannot be written.
    """
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier must be a Classifier; got {type(classifier).__name__}")
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}; got {str(path)!r}")
    described, arrays = _described(classifier), _arrays(classifier)
    contents = safetensors_numpy.save(arrays, {"emcaps": json.dumps(described)})
    with open(path, "xb") as file:  # it fails, and removes nothing, where there is a file
        try:
            file.write(contents)
            file.flush()
            _check_holds(path, described, arrays)
        except BaseException:
            file.close()
            path.unlink()
            raise


def _check_holds(
    path: Path, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Raise ValueError unless a file holds the classifier of this description and these arrays."""
    loaded = load_classifier(path)
    found, found_arrays = _described(loaded), _arrays(loaded)
    wrong = [key for key in described if found[key] != described[key]]
    wrong += [
        key
        for key in arrays.keys() | found_arrays.keys()
        if not _equal(arrays.get(key), found_arrays.get(key))
    ]
    if wrong:
        raise ValueError(
            f"{path} cannot hold this classifier: read back, it has another "
            f"{', '.join(sorted(wrong))}"
        )


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return (
        one is not None
        and other is not None
        and one.dtype == other.dtype
        and np.array_equal(one, other)
    )


def _described(classifier: Classifier) -> dict[str, Any]:
    """All of a classifier but its arrays, in terms of JSON.

    Raises TypeError or ValueError if its facts are not.
    """
    model = classifier.model
    return {
        "model": {
            "num_classes": model.num_classes,
            "conv_channels": model.conv_channels,
            "primary_capsules": model.primary_capsules,
            "conv_capsules": list(model.conv_capsules),
            "routing": [dataclasses.asdict(routing) for routing in model.layer_routing()],
            "add_coordinates": model.add_coordinates,
            "dtype": None if model.dtype is None else model.dtype.name,
            "param_dtype": model.param_dtype.name,
            "conv_kernel": model.conv_kernel,
            "conv_stride": model.conv_stride,
            "capsule_kernels": model.capsule_kernels,
            "capsule_strides": model.capsule_strides,
        },
        "view": dataclasses.asdict(classifier.view),
        "image_shape": list(classifier.image_shape),
        "class_names": list(classifier.class_names),
        "facts": plain("facts", classifier.facts),
    }


def _arrays(classifier: Classifier) -> dict[str, np.ndarray]:
    """All arrays of a classifier, by name."""
    arrays = {f"params/{key}": np.asarray(value) for key, value in flat(classifier.params).items()}
    return arrays | {
        f"examples/{key}": np.asarray(value) for key, value in classifier.examples._asdict().items()
    }


def _build(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Classifier:
    """The classifier of a file.

    Raises KeyError, TypeError or ValueError if the file's parts do not fit together.
    """
    settings = dict(described["model"])
    settings["routing"] = tuple(
        RoutingOptions(**EARLIER | routing) for routing in settings["routing"]
    )
    # Of older files: how parameters start, which is no part of what is trained.
    settings.pop("capsule_init", None)
    params = {
        key.removeprefix("params/"): array
        for key, array in arrays.items()
        if key.startswith("params/")
    }
    return Classifier(
        CapsNet(**settings),
        traverse_util.unflatten_dict(
            {key: _as_it_is(key, array) for key, array in params.items()}, sep="/"
        ),
        View(**described["view"]),
        tuple(described["image_shape"]),
        # In older files a number can be where a name was one: 0.0 for 0.
        tuple(name if isinstance(name, str) else f"{name:g}" for name in described["class_names"]),
        Examples(arrays["examples/images"], arrays["examples/labels"]),
        described["facts"],
    )


def _as_it_is(name: str, array: np.ndarray) -> jax.Array:
    """An array as JAX's. Raises ValueError if it would be one of less precision."""
    if (kept := jnp.asarray(array)).dtype != array.dtype:
        raise ValueError(
            f"params/{name} is {array.dtype}, which JAX would make {kept.dtype}; enable "
            "jax_enable_x64 to read it"
        )
    return kept
