"""The kernels for NVIDIA GPUs, interpreted; and which form of the votes a program has, by the
platform that it is lowered for.
"""

import contextlib
import functools
import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import routing_cases
from jax import export

from emcaps import conv_em_routing
from emcaps.blocks import Form, Plan, route_blocks
from emcaps.kernels import COLUMNS, KernelVotes, part_size
from emcaps.procedure import Constants, Procedure
from emcaps.receptive_field import ReceptiveField
from emcaps.votes import Moments, StreamedVotes, VoteTerms

# N, J, M, Q: what tiles divide, and what they do not.
SHAPES = [(6, 3, COLUMNS, 5), (8, 4, 2 * COLUMNS, 4)]


def random_arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def assert_close(ours, theirs, bound):
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=bound * np.abs(their).max())


class ExactVotes(NamedTuple):
    """The operators as votes.py writes them down, of all votes, in NumPy and float64."""

    poses: np.ndarray
    transforms: np.ndarray

    def offsets(self, center):
        return np.einsum("nikm,nkhj->nihjm", self.poses, self.transforms) - center

    def moments(self, weights, center, scale=None):
        offsets, weights = (
            self.offsets(center),
            weights if scale is None else weights * scale[:, None],
        )
        first = weights[:, None, None] * offsets
        return Moments(weights.sum(0), first.sum(0), (first * offsets).sum(0))

    def scores(self, constant, quadratic, center, linear=0.0):
        offsets = self.offsets(center)
        return constant + ((quadratic * offsets + linear) * offsets).sum((1, 2))

    def gradient(self, groups, center):
        offsets = self.offsets(center)
        to_votes = 0.0
        for weights, scale, quadratics, linears in groups:
            scale = 1.0 if scale is None else scale[:, None]
            for weight, quadratic, linear in zip(weights, quadratics, linears, strict=True):
                slopes = 2 * quadratic * offsets + linear
                to_votes = to_votes + (weight * scale)[:, None, None] * slopes
        return (
            np.einsum("nihjm,nkhj->nikm", to_votes, self.transforms),
            np.einsum("nihjm,nikm->nkhj", to_votes, self.poses),
        )


def of_kernels(shape, operation, *given):
    """`operation(votes, *given)`."""
    program = jax.jit(lambda held, *given: operation(KernelVotes(*held), *given))
    return jax.device_get(program(held(shape), *given))


def exactly(shape, operation, *given):
    poses_and_transforms, given = jax.tree.map(np.float64, (held(shape), given))
    return operation(ExactVotes(*poses_and_transforms), *given)


def held(shape):
    """Poses and transforms."""
    num_children, num_parents, width, inner = shape
    return random_arrays(0, (num_children, 4, inner, width), (num_children, inner, 4, num_parents))


def assert_exact(shape, operation, *given, bound):
    ours, expected = (of(shape, operation, *given) for of in (of_kernels, exactly))
    assert_close(ours, expected, bound)


@pytest.mark.parametrize(
    ("shape", "types"),
    [
        (SHAPES[0], "a weight for each"),
        (SHAPES[1], "one weight for all types"),
        pytest.param(SHAPES[0], "one weight for all types", marks=pytest.mark.slow),
        pytest.param(SHAPES[1], "a weight for each", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_moments_and_scores(shape, types):
    num_children, num_parents, width, _ = shape
    parents, weighted = (4, 4, num_parents, width), num_parents if types.endswith("each") else 1
    weights, scale, center, quadratic, linear, constant = random_arrays(
        1, (num_children, weighted, width), (num_children, width), *[parents] * 3, parents[2:]
    )

    def moments(votes, *given):
        moments = votes.moments(*given)
        # Where all types have the same, some have it once.
        return moments._replace(mass=moments.mass + np.zeros(parents[2:], np.float32))

    all_types = weighted == 1
    assert_exact(shape, moments, weights, center, *([] if all_types else [scale]), bound=1e-6)
    assert_exact(
        shape,
        lambda votes, *given: votes.scores(*given),
        *(constant, quadratic, center),
        *([] if all_types else [linear]),
        bound=1e-6,
    )


# Several tiles of columns are in the moments and scores above.
@pytest.mark.parametrize(
    "shape", [SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.slow)], ids=str
)
def test_gradient(shape):
    num_children, num_parents, width, _ = shape

    def terms(seed, number, scaled):
        parents = (number, 4, 4, num_parents, width)
        weights, scale, *forms = random_arrays(
            seed,
            (number, num_children, num_parents, width),
            (num_children, width),
            parents,
            parents,
        )
        return VoteTerms(weights, scale if scaled else None, *forms)

    (center,) = random_arrays(2, (4, 4, num_parents, width))
    groups = terms(3, 2, True), terms(4, 1, False)
    assert_exact(shape, lambda votes, *given: votes.gradient(*given), groups, center, bound=2e-6)


def test_moments_are_taken_again_only_where_they_lost_digits():
    shape = num_children, num_parents, width, _ = SHAPES[1]
    weights, scale, old, new = random_arrays(
        1,
        (num_children, num_parents, width),
        (num_children, width),
        *[(4, 4, num_parents, width)] * 2,
    )
    lost = np.zeros((num_parents, width), bool)
    lost[1, COLUMNS + 3] = True

    def retake(votes, weights, scale, old, new):
        return votes.retake(lost, weights, new, scale, (old, votes.moments(weights, old, scale)))

    center, moments = of_kernels(shape, retake, weights, scale, old, new)
    np.testing.assert_array_equal(center, np.where(np.arange(width) < COLUMNS, old, new))
    expected = exactly(shape, lambda votes, *given: votes.moments(*given), weights, center, scale)
    assert_close(moments, expected, 1e-6)


@pytest.mark.parametrize(
    "number, parts, size",
    [
        (72, 0.3, 72),
        (72, 5, 12),  # 6 parts
        (7, 3, 1),
        (1018, 3, 509),  # 2 parts, rather than 509
        (509, 3, 509),
        (6, 100, 1),
    ],
)
def test_parts_are_about_as_many_as_are_asked_for(number, parts, size):
    assert part_size(number, parts) == size


@pytest.mark.slow
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_routing_and_its_gradient(damping):
    """Of two maps of 4x4 parents, all iterations."""
    shapes = (2, 6, 6, 2, 4, 4), (3, 3, 2, 4, 4, 4), (2, 6, 6, 2), (4,), (4,)
    arrays = map(jnp.asarray, random_arrays(5, *shapes))
    poses, transforms, activations, beta_u, beta_a = arrays
    scalars = [jnp.float32(value) for value in (0.1, 1e-6, 0.1, 4.0)]
    constants = Constants(beta_u[:, None], beta_a[:, None], jnp.ones(3), *scalars)
    procedure = Procedure(
        ReceptiveField((6, 6), (3, 3), 1),
        3,
        True,
        "all",
        "reachable",
        damping,
        assignment_gradient=True,
    )

    def loss(form, *given):
        return sum(
            (leaf**2).sum()
            for leaf in route_blocks(Plan(procedure, Form(form), remat=False), *given)
        )

    given = (poses, jax.nn.sigmoid(activations)), transforms, constants
    losses = (functools.partial(loss, form) for form in (KernelVotes, StreamedVotes))
    assert_close(
        *(jax.jit(jax.value_and_grad(of_form, argnums=(0, 1, 2)))(*given) for of_form in losses),
        1e-4,
    )


# By platform, without its devices.


def lowered(platform, implementation):
    """The StableHLO of a routing in one iteration with its gradient, lowered for a platform."""
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in routing_cases.CONV_ROUTE.shapes.values()
    ]

    def loss(*arrays):
        options = dict(implementation=implementation, num_iterations=1)
        return conv_em_routing(*arrays, **options).poses.sum()

    gpu = contextlib.nullcontext()
    described = inspect.signature(jax.sharding.AbstractDevice).parameters
    if "platform" in described and platform == "cuda":  # newer JAX asks for which GPU kernels are
        device = jax.sharding.AbstractDevice(
            device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu"
        )
        gpu = jax.sharding.use_abstract_mesh(
            jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
        )
    unchecked = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    with gpu:
        return export.export(gradient, platforms=[platform], disabled_checks=unchecked)(
            *arrays
        ).mlir_module()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_form_of_the_votes_is_that_of_the_platform(platform):
    """Chunks have their pairs of sums as complex numbers, fused votes as a reduction with two
    results.
    """
    text = lowered(platform, "streamed")
    assert ("complex<" in text) == (platform == "cpu")
    two_results = re.search(r"stablehlo\.reduce\(.* init: .*\), \(.* init: ", text)
    assert bool(two_results) == (platform != "cpu")


@pytest.mark.filterwarnings("ignore:.*[Tt]riton")
def test_kernels_are_for_nvidia():
    text = lowered("cuda", "kernels")
    for name in ("em_moments", "em_scores", "em_pose_gradient", "em_transform_gradient"):
        assert name in text
    assert "em_moments" not in lowered("tpu", "kernels")
