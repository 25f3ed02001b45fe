"""Whether routing routes: what each iteration decides in each capsule layer, and what this does to
the classes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import emcaps
from emcaps import ReceptiveField, RoutingResult
from experiments.runtime.records import Record
from experiments.runtime.tables import Table


def make_agreement(model: emcaps.CapsNet) -> Callable[[Any, jax.Array, np.ndarray], Record]:
    """The function `measure(params, images, labels)`: what routing decides of images.

    Its arguments are the network's parameters, floating images `[B, height, width, channels]`, and
    labels `[B]`. Its result, in terms of JSON, has lists of T numbers, where T is a layer's number
    of iterations.

    Of each capsule layer, by name:

        - `entropy`: of a child's assignments, in units of what it is after the first iteration: of
          even ones, where all parents compete from the first iteration on (see
          `emcaps.diagnostics.RoutingDiagnostics`);
        - `best_share`: in [0, 1], how much of the data goes to the best parent of its child.

    Of the class capsules, by name `classes`, means over the images:

        - `true_share`: how much of the data goes to the true class, in units of an even share,
          which is 1 / classes;
        - `true_spread`: the square root of the sum of the true class's variances. But for what
          `min_variance` adds it is the root mean square distance of its votes from their mean;
        - `true_activation` and `rival_activation`: of the true class, and of the most active other
          one.
    """
    compiled = jax.jit(functools.partial(_measure, model))

    def measure(params: Any, images: jax.Array, labels: np.ndarray) -> Record:
        layers, classes = jax.device_get(compiled(params, images, labels))
        in_order = {layer: layers[layer] for layer in model.layer_names()} | {"classes": classes}
        return {
            name: {kind: values.tolist() for kind, values in numbers.items()}
            for name, numbers in in_order.items()
        }

    return measure


def _measure(
    model: emcaps.CapsNet, params: Any, images: jax.Array, labels: jax.Array
) -> tuple[Any, Any]:
    """What the function of `make_agreement` says of the layers, and of the classes, in arrays
    `[T]`.
    """
    # Without a decoder.
    variables = {
        "params": {name: params[name] for name in ("conv", "primary", *model.layer_names())}
    }
    output: Any = model.apply(variables, images)
    intermediates = output[1]
    names, strides = model.layer_names(), [*(stride for _, stride in model.layer_geometry()[2:]), 1]
    data = {
        name: intermediates[below].activations
        for name, below in zip(names, ("primary", *names), strict=False)
    }
    results = {
        name: emcaps.diagnostics.results_by_iteration(model, variables, images, name)
        for name in names
    }
    layers = {}
    for name, stride in zip(names, strides, strict=True):
        field = ReceptiveField(
            data[name].shape[1:3], results[name][0].assignments.shape[3:5], stride
        )
        entropies = jnp.stack(
            [emcaps.diagnostics.diagnose(result).assignment_entropy for result in results[name]]
        )
        shares = jnp.stack(
            [_best_share(data[name], result.assignments, field) for result in results[name]]
        )
        layers[name] = {"entropy": entropies / entropies[0], "best_share": shares}
    of_classes = [
        _of_classes(data["class_caps"], result, labels) for result in results["class_caps"]
    ]
    return layers, jax.tree.map(lambda *values: jnp.stack(values), *of_classes)


def _best_share(data: jax.Array, assignments: jax.Array, field: ReceptiveField) -> jax.Array:
    """How much of the data `[B, H, W, I]` goes to the best parent of its child.

    What no parent sees does not count.
    """
    by_child = assignments.transpose(3, 4, 5, 6, 1, 2, 0)  # [KH, KW, I, J, OH, OW, B]
    best = jnp.maximum(field.scatter_max(by_child.max(3)).transpose(3, 1, 2, 0), 0)
    return (data * best).sum() / (data * (best > 0)).sum()


def _of_classes(data: jax.Array, result: RoutingResult, labels: jax.Array) -> dict[str, jax.Array]:
    """What an iteration makes of the classes, given the data `[B, H, W, I]` that is divided among
    them.
    """
    examples = jnp.arange(len(labels))
    assignments, activations = result.assignments[:, 0, 0], result.activations[:, 0, 0]
    of_class = jnp.einsum("byxi,byxij->bj", data, assignments) / data.sum((1, 2, 3))[:, None]
    variances = result.variances[:, 0, 0].sum((-2, -1))
    return {
        "true_share": of_class[examples, labels].mean() * activations.shape[1],
        "true_spread": jnp.sqrt(variances[examples, labels]).mean(),
        "true_activation": activations[examples, labels].mean(),
        "rival_activation": activations.at[examples, labels].set(-1).max(-1).mean(),
    }


def agreement_table(runs: Mapping[str, Sequence[Record]]) -> Table:
    """What `make_agreement` has found after the last iteration, and the temperatures that were
    learned.

    Args:
        runs: by variant the records of its seeds, over which means are taken, with `agreement` and
            perhaps `temperatures`.
    """
    of_routing = (
        "entropy of each layer, %",
        "data to the true class",
        "spread of its votes",
        "activations, true and rival",
    )
    rows = []
    for name, records in runs.items():
        found = jax.tree.map(
            lambda *values: float(np.mean(values)), *(record["agreement"] for record in records)
        )
        learned = jax.tree.map(
            lambda *values: float(np.mean(values)),
            *(record.get("temperatures", {}) for record in records),
        )
        layers, classes = (
            [name for name in records[0]["agreement"] if name != "classes"],
            found["classes"],
        )
        cells = (
            " / ".join(f"{100 * layer['entropy'][-1]:.0f}" for layer in map(found.get, layers)),
            f"{classes['true_share'][-1]:.2f} x even",
            f"{classes['true_spread'][0]:.2f} to {classes['true_spread'][-1]:.2f}",
            f"{classes['true_activation'][-1]:.2f}, {classes['rival_activation'][-1]:.2f}",
            "; ".join(
                f"{kind.removesuffix('_temperature')} "
                f"{' / '.join(f'{layer} {value:.2g}' for layer, value in values.items())}"
                for kind, values in learned.items()
            ),
        )
        rows.append((f"`{name or 'default'}`", *cells))
    return Table(
        "What routing decides after training", ("variant", *of_routing, "temperatures"), rows
    )
