"""EM routing against the oracle: every number of Procedure 1, on random cases and on
ill-conditioned ones.
"""

import functools

import numpy as np
import oracle
import pytest
import routing_cases

from emcaps import class_em_routing, conv_em_routing, em_routing

each_implementation = pytest.mark.parametrize("implementation", routing_cases.IMPLEMENTATIONS)
each_other_implementation = pytest.mark.parametrize(
    "implementation", [name for name in routing_cases.IMPLEMENTATIONS if name != "streamed"]
)


def each_case(number, float64, float32):
    """So many cases in each precision, of which so many first ones are quick. Six share a
    program.
    """
    return pytest.mark.parametrize(
        ("dtype", "seed"),
        [
            pytest.param(dtype, seed, marks=[] if seed < quick else pytest.mark.slow)
            for dtype, quick in (("float64", float64), ("float32", float32))
            for seed in range(number)
        ],
        indirect=["dtype"],
    )


def assert_like_oracle(function, oracle, case, dtype):
    """Within 1e-9 (float64) or 1e-4 (float32) of a field's largest magnitude.

    One in nine of the random cases is so badly conditioned (one vote a thousand standard deviations
    from the next) that it asks too much of float32: where the oracle's own loops, run in float32,
    lose more than 1e-5, ten times what they lose is allowed. Every float64 case must be right.
    """
    arrays, keywords = routing_cases.cast(case, dtype)
    result = function(*arrays, **keywords)
    expected = oracle(*arrays, **keywords)
    tolerance = 1e-9
    if dtype == np.float32:
        rounded = oracle(*arrays, **keywords, precision=np.float32)
        lost = max(routing_cases.error(rounded, expected, name) for name in expected._fields)
        tolerance = max(1e-4, 10 * lost)
    assert all(field.dtype == dtype for field in result)
    routing_cases.assert_results_close(result, expected, tolerance)


@each_case(36, float64=18, float32=6)
def test_em_routing_is_procedure_1(seed, dtype):
    assert_like_oracle(em_routing, oracle.em_routing, routing_cases.em_case(seed), dtype)


@each_case(36, float64=18, float32=6)
def test_conv_em_routing_is_procedure_1(seed, dtype):
    assert_like_oracle(
        conv_em_routing, oracle.conv_em_routing, routing_cases.conv_case(seed), dtype
    )


@each_case(16, float64=6, float32=0)
def test_class_em_routing_is_procedure_1(seed, dtype):
    assert_like_oracle(
        class_em_routing, oracle.class_em_routing, routing_cases.class_case(seed), dtype
    )


# Votes that are held otherwise are tried on the first six, which share a program.


@each_other_implementation
@pytest.mark.parametrize(
    "seed",
    [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 36))],
)
def test_conv_em_routing_is_procedure_1_however_votes_are_held(seed, implementation, x64):
    function = functools.partial(conv_em_routing, implementation=implementation)
    case = routing_cases.conv_case(seed)
    assert_like_oracle(function, oracle.conv_em_routing, case, np.float64)


# In test_routing.py class capsules are held to a kernel as large as the map.
@pytest.mark.slow
@each_other_implementation
@pytest.mark.parametrize("seed", range(16))
def test_class_em_routing_is_procedure_1_however_votes_are_held(seed, implementation, x64):
    function = functools.partial(class_em_routing, implementation=implementation)
    case = routing_cases.class_case(seed)
    assert_like_oracle(function, oracle.class_em_routing, case, np.float64)


# Variances keep their digits: squares about 0 would lose all of them in float32.


@pytest.mark.parametrize(("num_iterations", "spread"), [(1, 1e-3), (2, 1.0)])
def test_of_votes_around_1000(num_iterations, spread):
    votes, activations = votes_around_1000(spread)
    assert_variances_keep_their_digits(
        em_routing, oracle.em_routing, (votes, activations), num_iterations
    )


@pytest.mark.parametrize(
    ("num_iterations", "spread", "implementation"),
    [
        (1, 1e-3, "streamed"),
        *((3, 1.0, name) for name in routing_cases.IMPLEMENTATIONS),
        # The first iteration is one of three.
        *(pytest.param(1, 1e-3, name, marks=pytest.mark.slow) for name in ("dense", "fused")),
    ],
)
def test_of_votes_around_1000_on_a_map(num_iterations, spread, implementation):
    votes, activations = votes_around_1000(spread)
    poses, activations = votes[:, 0].reshape(1, 2, 3, 1, 4, 4), activations.reshape(1, 2, 3, 1)
    eyes = np.tile(np.eye(4, dtype=np.float32), (2, 3, 1, 2, 1, 1))
    function = functools.partial(conv_em_routing, implementation=implementation)
    assert_variances_keep_their_digits(
        function, oracle.conv_em_routing, (poses, activations, eyes), num_iterations
    )


@each_implementation
def test_when_a_parent_changes_its_mind(implementation):
    """One of two is left with one child of six, whose vote lies far from the mean before."""
    transforms = 300 * np.random.default_rng(3).normal(size=(2, 3, 1, 2, 4, 4))
    arrays = (np.tile(np.eye(4), (1, 2, 3, 1, 1, 1)), np.full((1, 2, 3, 1), 0.5), transforms)
    arrays = routing_cases.cast(arrays, np.float32)
    function = functools.partial(conv_em_routing, implementation=implementation)
    result, expected = assert_variances_keep_their_digits(
        function, oracle.conv_em_routing, arrays, 3, min_variance=0.01, mass_epsilon=1e-7
    )
    np.testing.assert_allclose(expected.assignments.sum((1, 2, 3, 4, 5)).min(), 1, rtol=1e-3)
    np.testing.assert_allclose(result.activation_logits, expected.activation_logits, rtol=1e-4)


def votes_around_1000(spread):
    """Votes and activations in float32, of six children for two parents."""
    votes = 1000 + spread * np.random.default_rng(0).normal(size=(6, 2, 16))
    return votes.astype(np.float32), np.full(6, 0.5, np.float32)


def assert_variances_keep_their_digits(
    function, oracle, arrays, num_iterations, min_variance=1e-9, mass_epsilon=1e-9
):
    """Returns the result and that of the oracle, of two parent types with betas of 0."""
    arrays = (*arrays, *np.zeros((2, 2), np.float32))
    keywords = dict(min_variance=min_variance, mass_epsilon=mass_epsilon)
    result, expected = (
        each(*arrays, num_iterations=num_iterations, **keywords) for each in (function, oracle)
    )
    np.testing.assert_allclose(result.variances, expected.variances, rtol=1e-3)
    return result, expected
