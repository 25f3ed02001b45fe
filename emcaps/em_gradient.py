"""The gradient of Procedure 1 without ever storing the votes.

`em.route` is run as it stands on `StreamedVotes`, and what each `Iteration` leaves is kept. The way back takes the M-steps and
E-steps in reverse. The transpose of the one's sums is the other's scores, so that

    M-step: (mass, first, second) = moments(g)            back: d_g = d_mass + scores(d_second, d_first)
    E-step: scores(A)             = sum_h A (V - mean)^2   back: d_A, d_mean from moments(d_scores)

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
    Iteration,
    Moments,
    Parents,
    compete_derivative,
    first_iteration,
    fit_gaussians,
    log_densities,
    next_iteration,
    route,
)
from emcaps.votes import StreamedVotes, VoteTerms


FIRST_ORDER_ONLY = (
    'implementation="streamed" has first derivatives in reverse mode only (jax.grad, jax.vjp); '
    'for higher derivatives or forward mode use implementation="dense"'
)


class _Gradients(NamedTuple):
    """Gradients on their way back through the iterations.

    Attributes:
        parents: for the parents of the iteration that is next to be taken back.
        assignments: for its assignments, besides what comes through its parents.
        activations: `[N, M]`, summed over iterations.
        constants: summed over iterations.
        terms: for the votes, one for each step.
    """

    parents: Parents
    assignments: jax.Array
    activations: jax.Array
    constants: Constants
    terms: VoteTerms


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def route_streamed(
    votes: StreamedVotes, activations: jax.Array, constants: Constants, geometry: Geometry
) -> tuple[Parents, jax.Array]:
    """`em.route`, with a gradient that streams the votes as well. First order and reverse mode only."""
    return route(votes, activations, constants, geometry)


def _forth(votes, activations, constants, geometry):
    given = votes, activations, constants, geometry

    def iterate(iteration, state):
        previous, history = state
        current = next_iteration(*given, iteration, previous)
        return current, _put(history, current, iteration)

    first = first_iteration(*given)
    history = jax.tree.map(lambda array: jnp.zeros((geometry.num_iterations, *array.shape), array.dtype), first)
    last, history = lax.fori_loop(1, geometry.num_iterations, iterate, (first, _put(history, first, 0)))
    return (last.parents, last.assignments), (votes, activations, constants, history)


@jax.custom_jvp
def _first_order_only(tree):
    return tree


@_first_order_only.defjvp
def _refuse(primals, tangents):
    raise TypeError(FIRST_ORDER_ONLY)


def _back(geometry, residuals, result_gradients):
    (votes, activations, constants, history), result_gradients = _first_order_only((residuals, result_gradients))
    centre = history.parents.means[-1]
    gradients = _Gradients(
        *result_gradients,
        jnp.zeros_like(activations),
        jax.tree.map(jnp.zeros_like, constants),
        _no_terms(2 * geometry.num_iterations - 1, history),
    )

    def iterate(step, gradients):
        iteration = geometry.num_iterations - 1 - step
        current, parents = _take(history, iteration), _take(history.parents, iteration - 1)
        gradients = m_step_back(gradients, current, iteration)
        return e_step_back(gradients, current, parents, iteration)

    def m_step_back(gradients, current, iteration):
        """From the parents of an iteration to its assignments."""

        def fit(moments, constants):
            return fit_gaussians(moments, current.centre, constants, iteration, geometry.normalize_costs)

        _, transpose = jax.vjp(fit, current.moments, constants)
        (mass, first, second), constants_gradient = transpose(gradients.parents)
        data = current.assignments * activations[:, None]
        data_gradient = votes.scores(second, current.centre, first) + mass[None]
        return gradients._replace(
            assignments=gradients.assignments + data_gradient * activations[:, None],
            activations=gradients.activations + (data_gradient * current.assignments).sum(1),
            constants=jax.tree.map(jnp.add, gradients.constants, constants_gradient),
            terms=_put_term(gradients.terms, 2 * iteration, data, second, first + 2 * second * (centre - current.centre)),
        )

    def e_step_back(gradients, current, parents, iteration):
        """From the assignments of an iteration to the parents of the one before."""
        (quadratic, _), transpose = jax.vjp(log_densities, parents, constants)
        scores = compete_derivative(current.assignments, gradients.assignments, geometry.field)
        mass, first, second = Moments(*votes.moments(scores, parents.means))
        parents_gradient, constants_gradient = transpose((second, mass))
        return gradients._replace(
            parents=parents_gradient._replace(means=parents_gradient.means - 2 * quadratic * first),
            assignments=jnp.zeros_like(gradients.assignments),
            constants=jax.tree.map(jnp.add, gradients.constants, constants_gradient),
            terms=_put_term(
                gradients.terms, 2 * iteration - 1, scores, quadratic, 2 * quadratic * (centre - parents.means)
            ),
        )

    gradients = lax.fori_loop(0, geometry.num_iterations - 1, iterate, gradients)
    gradients = m_step_back(gradients, _take(history, 0), 0)
    return StreamedVotes(*votes.gradient(gradients.terms, centre)), gradients.activations, gradients.constants


route_streamed.defvjp(_forth, _back)


def _no_terms(number: int, history: Iteration) -> VoteTerms:
    """Room for that many terms."""
    _, num_children, *rest = history.assignments.shape
    coefficients = jnp.zeros((number, *history.centre.shape[1:]), history.centre.dtype)
    return VoteTerms(jnp.zeros((num_children, number, *rest), coefficients.dtype), coefficients, coefficients)


def _put_term(terms: VoteTerms, place, weights: jax.Array, quadratic: jax.Array, linear: jax.Array) -> VoteTerms:
    return VoteTerms(
        lax.dynamic_update_index_in_dim(terms.weights, weights, place, 1),
        *_put((terms.quadratic, terms.linear), (quadratic, linear), place),
    )


def _put(stacked, tree, place):
    """The arrays of `tree` at `place` of the leading axis of those of `stacked`."""
    return jax.tree.map(lambda past, new: lax.dynamic_update_index_in_dim(past, new, place, 0), stacked, tree)


def _take(stacked, place):
    """The arrays at `place` of the leading axis."""
    return jax.tree.map(lambda past: lax.dynamic_index_in_dim(past, place, 0, keepdims=False), stacked)
