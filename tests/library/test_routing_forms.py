"""Other forms of the routing, as other code has it: who competes, what is damped, how it starts,
and what derivatives see.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import routing_cases
from test_streamed_gradient import values_and_gradients

from emcaps import conv_em_routing, inverse_temperature_schedule

FORMS = [
    {"damping": 0.1},
    {"competition": "positions", "initial_assignments": "types", "damping": 0.1},
    {
        "competition": "types",
        "initial_assignments": "types",
        "normalize_costs": True,
        "assignment_temperature": 4.0,
    },
]
each_form = pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: " ".join(map(str, form.values()))
)


# What makes a form is the same code for all implementations and precisions.
@each_form
@pytest.mark.parametrize(
    ("implementation", "precision", "tolerance"),
    [
        ("streamed", np.float64, 1e-9),
        pytest.param("streamed", np.float32, 1e-4, marks=pytest.mark.slow),
        *(
            pytest.param(name, np.float64, 1e-9, marks=pytest.mark.slow)
            for name in ("dense", "fused")
        ),
    ],
)
def test_a_form_equals_the_oracle(x64, implementation, precision, tolerance, form):
    arrays = routing_cases.CONV_ROUTE.arrays(3, np.float64)
    keywords = routing_cases.settings(dtype=np.float64) | {"stride": 2} | form
    expected = oracle.conv_em_routing(*arrays, **keywords)
    arrays, keywords = routing_cases.cast((arrays, keywords), precision)
    result = conv_em_routing(*arrays, **keywords, implementation=implementation)
    routing_cases.assert_results_close(result, expected, tolerance)


@pytest.mark.parametrize(
    "form",
    [
        FORMS[1],
        {"assignment_gradient": False, "damping": 0.1},
        pytest.param(FORMS[2], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_streamed_gradients_equal_dense_ones(x64, form):
    arrays = tuple(map(jnp.asarray, routing_cases.CONV_ROUTE.arrays(4, np.float64)))
    keywords = routing_cases.settings(dtype=np.float64) | {"stride": 2} | form
    streamed, dense = (
        values_and_gradients(conv_em_routing, arrays, keywords, name)
        for name in ("streamed", "dense")
    )
    for ours, theirs in zip(jax.tree.leaves(streamed), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "route",
    [
        routing_cases.EM_ROUTE,
        # To the competition class capsules are such parents.
        pytest.param(routing_cases.CLASS_ROUTE, marks=pytest.mark.slow),
    ],
    ids=["em", "class"],
)
def test_parents_at_one_position_compete_by_type_or_not_at_all(route, x64):
    arrays, keywords = route.arrays(5, np.float64), routing_cases.settings(dtype=np.float64)
    routing_cases.assert_results_close(
        route.function(*arrays, **keywords, competition="types"),
        route.function(*arrays, **keywords),
        1e-12,
    )
    alone = route.function(*arrays, **keywords, competition="positions")
    np.testing.assert_allclose(alone.assignments, 1, rtol=1e-12)


@pytest.mark.parametrize(
    "implementation", ["streamed", pytest.param("dense", marks=pytest.mark.slow)]
)
def test_derivatives_can_leave_the_assignments_out(x64, implementation):
    """Then they are those of the last M-step, with the assignments that it used."""
    poses, activations, transforms, *betas = routing_cases.CONV_ROUTE.arrays(6, np.float64)
    keywords = routing_cases.settings(dtype=np.float64)
    weights = np.random.default_rng(0).normal(size=(2, 3, 3, 3, 4, 4))

    def weighted_means(poses, transforms):
        options = dict(**keywords, assignment_gradient=False, implementation=implementation)
        result = conv_em_routing(poses, activations, transforms, *betas, **options)
        return (weights * result.poses).sum(), result.assignments  # [B, OH, OW, KH, KW, I, J]

    gradient = jax.jit(jax.grad(weighted_means, argnums=(0, 1), has_aux=True))
    ours, assignments = jax.device_get(gradient(poses, transforms))

    # mean = sum of (data * pose @ transform) / mass
    windows = {(k, m): np.s_[:, k : k + 3, m : m + 3] for k, m in product(range(3), range(2))}
    data = {
        (k, m): assignments[:, :, :, k, m] * activations[window][..., None]
        for (k, m), window in windows.items()
    }
    mass = sum(shares.sum(3) for shares in data.values()) + keywords["mass_epsilon"]
    slopes = weights / mass[..., None, None]
    expected = to_poses, to_transforms = np.zeros_like(poses), np.zeros_like(transforms)
    for place, window in windows.items():
        given = data[place], slopes
        to_poses[window] += np.einsum("bhwij,bhwjad,ijcd->bhwiac", *given, transforms[place])
        to_transforms[place] = np.einsum("bhwij,bhwjad,bhwiac->ijcd", *given, poses[window])
    for mine, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


# Published code, transcribed in NumPy from its equations. One example: votes [S, N, J, P] of
# children `child_of` [S, N]. What is routed has the sizes of other laws, whose programs these are.


def patches(seed, stride):
    """A small layer, as arguments of `conv_em_routing`, and as votes of its first example."""
    poses, activations, transforms = arrays = routing_cases.CONV_ROUTE.arrays(seed, np.float64)[:3]
    (_, H, W, child_types), (KH, KW, _, J) = activations.shape, transforms.shape[:4]
    number = np.arange(H * W * child_types).reshape(H, W, child_types)
    votes, child_of = [], []
    for row, column in product(range(0, H - KH + 1, stride), range(0, W - KW + 1, stride)):
        window = np.s_[row : row + KH, column : column + KW]
        votes.append(
            np.einsum("kliac,klijcd->klijad", poses[0][window], transforms).reshape(-1, J, 16)
        )
        child_of.append(number[window].ravel())
    return arrays, np.array(votes), np.array(child_of)


def by_child(values, child_of, combine):
    """Combine `[S, N, ...]` over all the places where a child is seen, and put the result at each
    of them.
    """
    result = np.empty_like(values)
    for child in np.unique(child_of):
        result[child_of == child] = combine(values[child_of == child])
    return result


def ibm(votes, child_of, activations, beta_v, beta_a, iterations):
    """Gritzman's: costs of log standard deviations times 100 over (children per parent), everything
    competes.
    """
    N, J = votes.shape[1:3]
    seen = activations.ravel()[child_of]
    reached = by_child(np.ones(votes.shape[:2]), child_of, lambda ones: ones.sum()) * J
    routing = np.repeat((1 / reached)[:, :, None], J, 2)
    for iteration in range(iterations):
        inverse_temperature = 0.01 * (1 - 0.95 ** (iteration + 1))
        weights = routing * seen[:, :, None]
        mass = weights.sum(1)
        mean = (weights[..., None] * votes).sum(1) / (mass + 1e-9)[..., None]
        variance = (weights[..., None] * (votes - mean[:, None]) ** 2).sum(1) / (mass + 1e-9)[
            ..., None
        ] + 1e-9
        cost = (
            (beta_v[:, None] + np.log(np.sqrt(variance))) * mass[..., None] * (100 * J / N)
        ).sum(-1)
        logit = inverse_temperature * (beta_a - cost)
        density = -0.5 * np.log(2 * np.pi * variance)[:, None] - (votes - mean[:, None]) ** 2 / (
            2 * variance[:, None]
        )
        log_p = density.sum(-1) - np.log1p(np.exp(-logit))[:, None]
        if iteration < iterations - 1:
            routing = np.exp(
                by_child(
                    log_p, child_of, lambda scores: scores - np.logaddexp.reduce(scores, axis=None)
                )
            )
    return mean, logit


def released(votes, child_of, activations, sigma_bias, activation_bias, iterations):
    """Google's: damped centers, costs of log variances with offsets, types do not compete, first
    shares of 1 / J.

    Left out are the 1e-7 that it adds to the mass in the cost as well, and to the sums over which
    it divides the E-step.
    """
    J, P = votes.shape[2:]
    seen = activations.ravel()[child_of]
    posterior = np.full(votes.shape[:3], 1 / J)
    center = 0.0
    for iteration in range(iterations):
        confidence = posterior * seen[:, :, None]
        mass = confidence.sum(1)
        center = (
            0.9 * (confidence[..., None] * votes).sum(1) / (mass + 1e-7)[..., None] + 0.1 * center
        )
        noise = (votes - center[:, None]) ** 2
        variance = 5e-4 + (confidence[..., None] * noise).sum(1) / (mass + 1e-7)[..., None]
        win = mass * (-np.log(variance).sum(-1) - sigma_bias * P * (np.log(2 * np.pi) + 1))
        logit = 0.01 * (1 - 0.95 ** (iteration + 1)) * (win - 5000 * activation_bias)
        log_sigma = (P * np.log(2 * np.pi) + np.log(variance).sum(-1)) / 2
        prior = (
            -np.log1p(np.exp(-logit))[:, None]
            - log_sigma[:, None]
            - (noise / (2 * variance[:, None])).sum(-1)
        )
        posterior = np.exp(
            prior - by_child(prior, child_of, lambda scores: np.logaddexp.reduce(scores, axis=0))
        )
    return center, logit


# Dense routing of a map is held to streamed by laws and by the oracle, which also has float32; with
# one iteration there is nothing that three do not have.
each_way = pytest.mark.parametrize(
    ("iterations", "implementation", "precision", "tolerance"),
    [
        (3, "streamed", np.float64, 1e-9),
        pytest.param(3, "streamed", np.float32, 1e-4, marks=pytest.mark.slow),
        pytest.param(3, "dense", np.float64, 1e-9, marks=pytest.mark.slow),
        pytest.param(1, "streamed", np.float64, 1e-9, marks=pytest.mark.slow),
        pytest.param(1, "streamed", np.float32, 1e-4, marks=pytest.mark.slow),
        pytest.param(1, "dense", np.float64, 1e-9, marks=pytest.mark.slow),
    ],
)


@each_way
def test_ibms_code_can_be_expressed(x64, iterations, implementation, precision, tolerance):
    arrays, votes, child_of = patches(7, stride=1)
    rng = np.random.default_rng(8)
    beta_v, beta_a = rng.normal(size=3), rng.normal(-100, 50, size=3)
    expected = ibm(votes, child_of, arrays[1][0], beta_v, beta_a, iterations)
    constants = dict(
        mass_scale=100 * votes.shape[2] / votes.shape[1], mass_epsilon=1e-9, min_variance=1e-9
    )
    arrays = (*arrays, beta_v, beta_a)
    found = means_and_logits(arrays, precision, iterations, implementation, **constants)
    assert_close(found, expected, tolerance)


@each_way
def test_the_released_code_can_be_expressed(x64, iterations, implementation, precision, tolerance):
    arrays, votes, child_of = patches(9, stride=2)
    rng = np.random.default_rng(10)
    sigma_bias, activation_bias = rng.uniform(0, 1, size=3), rng.uniform(0, 0.1, size=3)
    expected = released(votes, child_of, arrays[1][0], sigma_bias, activation_bias, iterations)
    arrays = (*arrays, sigma_bias * (np.log(2 * np.pi) + 1) / 2, -5000 * activation_bias)
    options = dict(stride=2, mass_scale=2.0) | FORMS[1]
    found = means_and_logits(arrays, precision, iterations, implementation, **options)
    assert_close(found, expected, tolerance)


def means_and_logits(arrays, precision, iterations, implementation, **options):
    """Ours, in this precision, of the first example."""
    arrays, schedule = routing_cases.cast(
        (arrays, inverse_temperature_schedule(iterations)), precision
    )
    result = conv_em_routing(
        *arrays,
        **options,
        num_iterations=iterations,
        inverse_temperature=schedule,
        implementation=implementation,
    )
    return result.poses[0], result.activation_logits[0]


def assert_close(found, expected, tolerance):
    """Each array relative to its largest magnitude; ours have the positions in rows and columns."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(ours).reshape(theirs.shape), theirs, atol=tolerance * np.abs(theirs).max()
        )
