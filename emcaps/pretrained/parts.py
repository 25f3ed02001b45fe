"""The parts of a classifier: what they must be, how they are kept, and what they are in terms of
JSON.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.core import Tracer

from emcaps.capsnet import CapsNet, check_network
from emcaps.checks import check_finite, check_floating, check_labels, check_sizes
from emcaps.pretrained.views import View


def entries(name: str, value: Any) -> tuple[Any, ...]:
    """The entries of a tuple, list or array as a tuple, NumPy's scalars as Python's.

    Raises TypeError if it is none.
    """
    if (
        not isinstance(value, tuple | list | np.ndarray | jax.Array)
        or getattr(value, "ndim", 1) != 1
    ):
        raise TypeError(f"{name} must be a tuple, list or array of one axis; got {value!r}")
    listed = np.asarray(value) if isinstance(value, jax.Array) else value
    return tuple(entry.item() if isinstance(entry, np.generic) else entry for entry in listed)


def check_parts(
    model: Any,
    params: Any,
    view: Any,
    image_shape: tuple[Any, ...],
    class_names: tuple[Any, ...],
    examples: Any,
    facts: Any,
) -> None:
    """Raise TypeError or ValueError unless these are the parts of a `Classifier`, and
    fit together.
    """
    if not isinstance(view, View):
        raise TypeError(f"view must be a View; got {type(view).__name__}")
    check_sizes("image_shape", image_shape, 3)
    seen = jax.eval_shape(view, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))
    jax.eval_shape(functools.partial(check_network, model, {"params": params}), seen)
    for key, value in flat(params).items():
        check_floating(f"params/{key}", value)
        check_finite(f"params/{key}", value)
    for name in class_names:
        if not isinstance(name, str):
            raise TypeError(f"class_names must be strings; got {name!r}")
    if len(class_names) != model.num_classes:
        raise ValueError(f"class_names must be {model.num_classes} names; got {len(class_names)}")
    if getattr(examples, "_fields", None) != ("images", "labels") or not all(
        isinstance(e, np.ndarray | jax.Array) for e in examples
    ):
        raise TypeError(f"examples must be Examples(images, labels), both arrays; got {examples!r}")
    images, labels = examples
    if (
        images.dtype != np.uint8
        or images.shape[1:] != image_shape
        or labels.shape != images.shape[:1]
    ):
        raise ValueError(
            f"examples must be uint8 images [N, {', '.join(map(str, image_shape))}] and their "
            f"labels [N]; got {images.dtype} {list(images.shape)} and {list(labels.shape)}"
        )
    check_labels("labels of examples", labels, images.shape[:1], model.num_classes)
    if not isinstance(facts, Mapping):
        raise TypeError(f"facts must be a mapping; got {type(facts).__name__}")


def flat(params: Any) -> dict[str, Any]:
    """Arrays by their path, as in `conv/bias`."""
    return traverse_util.flatten_dict(params, sep="/")


def settled(model: CapsNet) -> CapsNet:
    """The same network with tuples for lists, and Python's numbers for arrays of one: programs are
    found again by its hash.

    How its parameters would start is forgotten, since it is no part of what is trained.
    """
    return model.clone(
        conv_capsules=tuple(model.conv_capsules),
        routing=tuple(map(_with_numbers, model.layer_routing())),
        transform_init=CapsNet.transform_init,
        beta_u_init=CapsNet.beta_u_init,
        beta_a_init=CapsNet.beta_a_init,
        dtype=None if model.dtype is None else jnp.dtype(model.dtype),
        param_dtype=jnp.dtype(model.param_dtype),
        capsule_kernels=None if model.capsule_kernels is None else tuple(model.capsule_kernels),
        capsule_strides=None if model.capsule_strides is None else tuple(model.capsule_strides),
    )


def _with_numbers(options: Any) -> Any:
    """A record of options with Python's numbers for arrays of one.

    Raises TypeError if they are not known.
    """
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for name, value in given.items():
        if isinstance(value, Tracer):
            raise TypeError(
                f"{name} of a classifier's network must be a known number; it is being traced"
            )
        if np.ndim(value):
            raise TypeError(
                f"{name} of a classifier's network must be one number; got shape "
                f"{list(np.shape(value))}"
            )
    arrays = {
        name: value
        for name, value in given.items()
        if isinstance(value, np.generic | np.ndarray | jax.Array)
    }
    return dataclasses.replace(options, **{name: value.item() for name, value in arrays.items()})


def plain(name: str, value: Any) -> Any:
    """A value in terms of JSON: NumPy's and JAX's scalars as Python's, tuples as lists.

    Raises TypeError or ValueError if not.
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.shape == ():
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"keys of {name} must be strings; got {key!r}")
        return {str(key): plain(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(f"an entry of {name}", entry) for entry in value]
    if value is not None and not isinstance(value, str | bool | int | float):
        raise TypeError(f"{name} must be in terms of JSON; got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, which all numbers of JSON are; got {value}")
    return value
