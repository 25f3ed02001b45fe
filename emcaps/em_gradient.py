"""The gradient of Procedure 1 without ever storing the votes.

`em.route` is run as it stands on `StreamedVotes`, and what each `Iteration` leaves is kept. The way back takes the M-steps and
E-steps in reverse. The transpose of the one's sums is the other's scores, so that

    M-step: (mass, first, second) = moments(g)            back: d_g = scores(d_mass, d_second, d_first)
    E-step: scores(d, A) = d + sum_h A (V - mean)^2        back: d_d, d_A, d_mean from moments(d_scores)

and everything else is differentiated by JAX, in arrays that are small. Each of the 2T - 1 steps leaves one of `VoteTerms`; the
gradient for poses and transforms is one pass over all of them at the end.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.em import (
    Constants,
    Geometry,
    Parents,
    RecomputedVotes,
    compete_derivative,
    first_iteration,
    fit_gaussians,
    log_densities,
    next_iteration,
    route,
)
from emcaps.votes import Moments, VoteTerms

FIRST_ORDER_ONLY = (
    'implementation="streamed" has first derivatives in reverse mode only (jax.grad, jax.vjp); '
    'for higher derivatives or forward mode use implementation="dense"'
)


class _History(NamedTuple):
    """What the way back needs of the way forth, leading axis T.

    Attributes:
        assignments: of each iteration, `[T, N, J, M]`.
        moments: of its data.
        centres: what they are about, `[T, 4, 4, J, M]`.
        old_means: of the iteration before, likewise, and zeros at first; None without damping, which has no use for them.
    """

    assignments: jax.Array
    moments: Moments
    centres: jax.Array
    old_means: jax.Array | None


class _Gradients(NamedTuple):
    """Gradients on their way back through the iterations.

    Attributes:
        parents: for the parents of the iteration that is next to be taken back.
        old_means: for the means of the iteration before, from the damping of this one; None without damping.
        assignments: for its assignments, besides what comes through its parents.
        activations: `[N, M]`, summed over iterations.
        constants: summed over iterations.
        scores: of each E-step, `[T - 1, N, J, M]`, but one place for T = 1.
        data_forms: of each M-step the coefficients of `moments`' gradient, as `(quadratic, linear)`, each `[T, 4, 4, J, M]`.
        score_forms: of each E-step those of `scores`, `[T - 1, 4, 4, J, M]` likewise.
    """

    parents: Parents
    old_means: jax.Array | None
    assignments: jax.Array
    activations: jax.Array
    constants: Constants
    scores: jax.Array
    data_forms: tuple[jax.Array, jax.Array]
    score_forms: tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def route_streamed(
    votes: RecomputedVotes, activations: jax.Array, constants: Constants, geometry: Geometry
) -> tuple[Parents, jax.Array]:
    """`em.route`, with a gradient that streams the votes as well. First order and reverse mode only."""
    return route(votes, activations, constants, geometry)


def _forth(votes, activations, constants, geometry):
    given = votes, activations, constants, geometry

    def record(iteration, old_means):
        old_means = old_means if geometry.damping else None
        return _History(iteration.assignments, iteration.moments, iteration.centre, old_means)

    def iterate(number, state):
        previous, history = state
        current = next_iteration(*given, number, previous)
        return current, _put(history, record(current, previous.parents.means), number)

    first = first_iteration(*given)
    state = first, _stack(record(first, jnp.zeros_like(first.centre)), geometry.num_iterations)
    last, history = lax.fori_loop(1, geometry.num_iterations, iterate, state, unroll=votes.UNROLL)
    return (last.parents, last.assignments), (votes, activations, constants, history, last.parents.means)


@jax.custom_jvp
def first_order_only(tree):
    """What a pass of first order is given; TypeError if it is differentiated once more."""
    return tree


@first_order_only.defjvp
def _refuse(primals, tangents):
    raise TypeError(FIRST_ORDER_ONLY)


def _back(geometry, residuals, result_gradients):
    residuals, result_gradients = first_order_only((residuals, result_gradients))
    votes, activations, constants, history, last_means = residuals
    repeats = geometry.num_iterations

    def fit(iteration):
        """The parents of an iteration, and how their gradient goes back to the moments, the old means and the constants."""
        _, moments, centre, old_means = _take(history, iteration)
        return jax.vjp(
            lambda moments, old_means, constants: fit_gaussians(moments, centre, old_means, constants, geometry, iteration),
            moments,
            old_means,
            constants,
        )

    def m_step_back(gradients, iteration):
        """From the parents of an iteration to its assignments, and to the old means."""
        _, transpose = fit(iteration)
        (mass, first, second), old_means, constants_gradient = transpose(gradients.parents)
        centre = _take(history.centres, iteration)
        data_gradient = votes.scores(mass, second, centre, first)
        assignments = _take(history.assignments, iteration)
        return gradients._replace(
            old_means=old_means,
            assignments=gradients.assignments + data_gradient * activations[:, None],
            activations=gradients.activations + (data_gradient * assignments).sum(1),
            constants=jax.tree.map(jnp.add, gradients.constants, constants_gradient),
            data_forms=_put(gradients.data_forms, _move_centre(second, first, centre, last_means), iteration),
        )

    def e_step_back(gradients, iteration):
        """From the assignments of an iteration to the parents of the one before."""
        parents, _ = fit(iteration - 1)
        (_, quadratic), transpose = jax.vjp(log_densities, parents, constants)
        assignments = _take(history.assignments, iteration)
        direction = gradients.assignments if geometry.assignment_gradient else jnp.zeros_like(assignments)
        scores = compete_derivative(assignments, direction, geometry)
        mass, first, second = votes.moments(scores, parents.means)
        parents_gradient, constants_gradient = transpose((mass, second))
        means_gradient = parents_gradient.means - 2 * quadratic * first
        if gradients.old_means is not None:
            means_gradient += gradients.old_means
        form = _move_centre(quadratic, jnp.zeros_like(quadratic), parents.means, last_means)
        return gradients._replace(
            parents=parents_gradient._replace(means=means_gradient),
            assignments=jnp.zeros_like(gradients.assignments),
            constants=jax.tree.map(jnp.add, gradients.constants, constants_gradient),
            scores=_put(gradients.scores, scores, iteration - 1),
            score_forms=_put(gradients.score_forms, form, iteration - 1),
        )

    def iterate(step, gradients):
        iteration = repeats - 1 - step
        return e_step_back(m_step_back(gradients, iteration), iteration)

    nothing = jnp.zeros_like(last_means)
    parents_gradient, assignments_gradient = result_gradients
    gradients = _Gradients(
        parents=parents_gradient,
        old_means=nothing if geometry.damping else None,
        assignments=assignments_gradient,
        activations=jnp.zeros_like(activations),
        constants=jax.tree.map(jnp.zeros_like, constants),
        scores=_stack(jnp.zeros_like(assignments_gradient), max(repeats - 1, 1)),
        data_forms=_stack((nothing, nothing), repeats),
        score_forms=_stack((nothing, nothing), max(repeats - 1, 1)),
    )
    gradients = m_step_back(lax.fori_loop(0, repeats - 1, iterate, gradients, unroll=votes.UNROLL), 0)
    terms = [VoteTerms(history.assignments, activations, *gradients.data_forms)]
    if repeats > 1:
        terms.append(VoteTerms(gradients.scores, None, *gradients.score_forms))
    return type(votes)(*votes.gradient(terms, last_means)), gradients.activations, gradients.constants


route_streamed.defvjp(_forth, _back)


def _move_centre(quadratic: jax.Array, linear: jax.Array, centre: jax.Array, new_centre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The coefficients of the gradient `2 A (V - centre) + b` about another centre."""
    return quadratic, linear + 2 * quadratic * (new_centre - centre)


def _stack(tree, number):
    """Room for so many trees of arrays like `tree`, which is in all the places."""
    return jax.tree.map(lambda array: jnp.broadcast_to(array, (number, *array.shape)), tree)


def _put(stacked, tree, place):
    """The arrays of `tree` at `place` of the leading axis of those of `stacked`."""
    return jax.tree.map(lambda past, new: lax.dynamic_update_index_in_dim(past, new, place, 0), stacked, tree)


def _take(stacked, place):
    """The arrays at `place` of the leading axis."""
    return jax.tree.map(lambda past: lax.dynamic_index_in_dim(past, place, 0, keepdims=False), stacked)
