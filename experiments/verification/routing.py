"""Whether routing on a device is right: against float64 on the host, in two precisions, and with
its parent types divided.

`python -m experiments.verify --checks routing precision divided memory`.
"""

import dataclasses
import functools
import itertools
import math
import re
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import emcaps
from experiments.measurements import textbook
from experiments.measurements.layer import Layer, distinct_implementations, layer_arguments
from experiments.runtime.errors import first_line
from experiments.runtime.processes import processors

NAMES = ("poses", "activations", "transforms", "beta_u", "beta_a")
Arrays = tuple[np.ndarray, ...]
Outcome = dict[str, np.ndarray]  # poses and activations, and the gradient for each argument


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        check: which check it belongs to.
        case: what was looked at.
        found: a number, or None where the check itself has failed.
        bound: the most that it may be; None where it is only told.
        unit: of both; empty for relative errors.
        note: what else there is to say.
    """

    check: str
    case: str
    found: float | None
    bound: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is as it must be: what is not a number is not."""
        return self.found is not None and (self.bound is None or self.found <= self.bound)


def failed(check: str, case: str, error: Exception) -> Finding:
    """An error is a finding too, which has not passed; its traceback goes to stderr."""
    traceback.print_exception(error)
    return Finding(check, case, None, note=f"{type(error).__name__}: {first_line(error)}")


@dataclasses.dataclass(frozen=True)
class Case:
    """A routing with its arguments."""

    layer: Layer
    classes: bool = False
    """Whether the parents are class capsules, with coordinates, which see the whole map."""
    low_precision: bool = False
    """Whether it is routed in bfloat16 as well."""

    def __str__(self) -> str:
        layer = self.layer
        columns = layer.batch * (1 if self.classes else layer.positions)
        kind = (
            "class capsules"
            if self.classes
            else f"{layer.kernel}x{layer.kernel}, stride {layer.stride}"
        )
        children = f"{layer.size}x{layer.size}x{layer.children}"
        return f"{children} to {layer.parents}, {kind}, batch {layer.batch}: {columns} columns"

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("float32", "bfloat16") if self.low_precision else ("float32",)

    def arguments(self) -> Arrays:
        """As of `conv_em_routing` or `class_em_routing`, float32."""
        layer = dataclasses.replace(self.layer, kernel=1) if self.classes else self.layer
        poses, activations, transforms, *betas = map(np.asarray, layer_arguments(layer))
        return (poses, activations, transforms[0, 0] if self.classes else transforms, *betas)

    def route(
        self, formulation: str, *arguments: jax.Array, **keywords: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Poses and activations, by the textbook or by one of emcaps' implementations."""
        static = {"num_iterations": self.layer.iterations, **keywords}
        if self.classes:
            ours, theirs = emcaps.class_em_routing, textbook.class_em_routing
            places = np.linspace(0, 1, self.layer.size)
            static["coordinates"] = jnp.asarray(
                np.stack(np.meshgrid(places, places, indexing="ij"), -1), arguments[0].dtype
            )
        else:
            ours, theirs = emcaps.conv_em_routing, textbook.conv_em_routing
            static["stride"] = self.layer.stride
        if formulation == "textbook":
            return theirs(*arguments, **static)
        return ours(*arguments, **static, implementation=formulation)[:2]


CASES = (
    Case(Layer(batch=3, size=7, children=4, parents=5)),
    Case(Layer(batch=7, size=14, children=8, parents=16), low_precision=True),
    Case(Layer(batch=1, size=8, stride=1, children=32, parents=32)),
    Case(Layer(batch=3, size=4, children=16, parents=5), classes=True, low_precision=True),
)
# Relative errors that rounding explains, of values and of gradients. In float32 a CPU comes to
# 1e-5; results in bfloat16 are rounded to 8 bits, and so are the gradients at each position, whose
# sum the class capsules' transforms get.
BOUNDS = {"float32": (2e-5, 1e-4), "bfloat16": (2.0**-8, 2.0**-6)}


@functools.cache
def with_gradients(case: Case, formulation: str, **keywords: Any) -> Any:
    """A compiled function from what each pose entry and activation counts in a loss, and the
    arguments, to an `Outcome`.
    """

    def loss(
        arguments: Any, weights: Sequence[jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        result = case.route(formulation, *arguments, **keywords)
        poses, activations = (
            (weight * field.astype(weight.dtype)).sum()
            for weight, field in zip(weights, result, strict=True)
        )
        return poses + activations, result

    def outcome(weights: Sequence[jax.Array], *arguments: jax.Array) -> dict[str, jax.Array]:
        gradients, result = jax.grad(loss, has_aux=True)(arguments, weights)
        named = dict(zip(NAMES[:2], result, strict=True))
        return named | {
            f"gradient of {name}": gradient for name, gradient in zip(NAMES, gradients, strict=True)
        }

    return jax.jit(outcome)


def loss_weights(case: Case, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """For poses and activations, numbers that bfloat16 has."""
    positions = 1 if case.classes else math.isqrt(case.layer.positions)
    shape = (case.layer.batch, positions, positions, case.layer.parents)
    random = np.random.default_rng(0)
    poses, activations = (
        random.normal(size=size).astype(ml_dtypes.bfloat16).astype(dtype)
        for size in ((*shape, 4, 4), shape)
    )
    return poses, activations


def rounded(arguments: Arrays, dtype: str) -> Arrays:
    """The arguments as a device gets them."""
    return tuple(
        np.asarray(array).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        for array in arguments
    )


def on_host(case: Case, arguments: Arrays) -> Outcome:
    """The textbook's formulation in float64, by the CPU that is beside every accelerator."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return jax.device_get(
            with_gradients(case, "textbook")(
                loss_weights(case, "float64"), *rounded(arguments, "float64")
            )
        )


def on_device(case: Case, implementation: str, arguments: Arrays) -> tuple[Outcome, bool]:
    """On the first device, twice: and whether it gave the same bits."""
    function, weights = with_gradients(case, implementation), loss_weights(case)
    first, second = (jax.device_get(function(weights, *arguments)) for _ in range(2))
    return first, all(np.array_equal(first[name], second[name]) for name in first)


def errors(outcome: Outcome, reference: Outcome) -> tuple[float, float]:
    """The largest relative errors, of results and of gradients; not a number if one is missing.

    Of an array: relative to its largest entry, but activations are shares of 1.
    """
    largest = [0.0, 0.0]
    for name in outcome:
        ours, exact = np.asarray(outcome[name], np.float64), reference[name]
        magnitude = 1.0 if name == "activations" else np.abs(exact).max()
        kind = name.startswith("gradient")
        largest[kind] = float(np.maximum(largest[kind], np.abs(ours - exact).max() / magnitude))
    return largest[0], largest[1]


def compare(
    check: str,
    case: str,
    outcome: Outcome,
    reference: Outcome,
    bounds: tuple[float, float],
    note: str,
) -> list[Finding]:
    """Errors of results and of gradients, as findings."""
    rows = zip(("values", "gradients"), errors(outcome, reference), bounds, strict=True)
    return [
        Finding(check, f"{case}: {kind}", found, bound, note=note) for kind, found, bound in rows
    ]


def check_routing(cases: Sequence[Case] = CASES) -> Iterator[list[Finding]]:
    """Every case, implementation and precision on the first device, in the order in which they are
    done.

    They are compiled side by side, since that takes most of the time, by not so many threads that
    all wait for tracing.
    """
    pool = ThreadPoolExecutor(min(8, processors()))
    try:
        references, pending = {}, {}
        for case, implementation in itertools.product(cases, distinct_implementations()):
            for dtype in case.dtypes:
                if (case, dtype) not in references:
                    references[case, dtype] = pool.submit(
                        on_host, case, rounded(case.arguments(), dtype)
                    )
                given = case, implementation, dtype, references[case, dtype]
                pending[pool.submit(compare_with_host, *given)] = (
                    f"{case}; {implementation}, {dtype}"
                )
        for future in as_completed(pending):
            try:
                yield future.result()
            except Exception as error:
                yield [failed("routing", pending[future], error)]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def compare_with_host(
    case: Case, implementation: str, dtype: str, reference: Future
) -> list[Finding]:
    """One implementation in one precision, on the first device."""
    outcome, repeats = on_device(case, implementation, rounded(case.arguments(), dtype))
    note = "same bits again" if repeats else "other bits when run again"
    return compare(
        "routing",
        f"{case}; {implementation}, {dtype}",
        outcome,
        reference.result(),
        BOUNDS[dtype],
        note,
    )


def check_precision(case: Case = CASES[0]) -> Iterator[list[Finding]]:
    """What the device makes of a float32 product that asks for nothing, and whether streamed
    routing has such products.

    TF32 (NVIDIA) keeps 10 of the 23 bits of the factors and bfloat16 passes (TPU) 7: relative
    errors of 5e-4 and 4e-3, which the variances of votes that agree would not survive.
    """
    left, right = (
        np.random.default_rng(seed).normal(size=(256, 256)).astype(np.float32) for seed in (0, 1)
    )
    exact = left.astype(np.float64) @ right.astype(np.float64)

    def product_error(precision: str | None) -> float:
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))(left, right)
        return float(np.abs(np.asarray(product, np.float64) - exact).max() / np.abs(exact).max())

    default, highest = product_error(None), product_error("highest")
    yield [
        Finding(
            "precision",
            "256x256 float32 product, the device's default",
            default,
            note="5e-4: TF32; 4e-3: bfloat16",
        ),
        Finding("precision", "256x256 float32 product, highest", highest, 1e-6),
    ]
    arguments = case.arguments()
    lowered = with_gradients(case, "streamed").lower(loss_weights(case), *arguments)
    products = re.findall(r"stablehlo\.dot_general.*", lowered.as_text())
    careless = sum("HIGHEST" not in line for line in products)
    loses_digits = default > 10 * highest
    note = f"of {len(products)}; " + (
        "they would lose digits here" if loses_digits else "here both are the same"
    )
    case_name = "products in streamed routing at the default"
    yield [Finding("precision", case_name, careless, 0 if loses_digits else None, "products", note)]


def check_divided(case: Case = CASES[2]) -> Iterator[list[Finding]]:
    """`shard_map` with the parent types divided over as many devices as there are and divide them,
    streamed.
    """
    number = max(n for n in range(1, len(jax.devices()) + 1) if case.layer.parents % n == 0)
    mesh = Mesh(np.array(jax.devices()[:number]), ("types",))
    everywhere, fourth, first = (
        PartitionSpec(),
        PartitionSpec(None, None, None, "types"),
        PartitionSpec("types"),
    )
    specs = (everywhere, everywhere, fourth, first, first)
    out_specs = dict.fromkeys(NAMES[:2], fourth) | {
        f"gradient of {n}": spec for n, spec in zip(NAMES, specs, strict=True)
    }

    def local(weights: Any, *shares: jax.Array) -> dict[str, jax.Array]:
        found = with_gradients(case, "streamed", parent_axis="types")(weights, *shares)
        return {
            name: jax.lax.psum(field, "types") if out_specs[name] == everywhere else field
            for name, field in found.items()
        }

    in_specs = ((fourth, fourth), *specs)
    divided = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )
    outcome = jax.device_get(divided(loss_weights(case), *case.arguments()))
    reference = on_host(case, case.arguments())
    name = f"{case}; streamed, types divided over {number}"
    yield compare("divided", name, outcome, reference, BOUNDS["float32"], "shard_map")
