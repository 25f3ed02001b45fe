"""The gradient of Procedure 1 without ever storing the votes.

`em.route` is run as it stands on `StreamedVotes`, keeping of each iteration the parents and the assignments. The way back takes
the M-steps and E-steps in reverse. The transpose of the one's sums is the other's scores, so that

    M-step: (mass, first, second) = moments(g)           back: d_g = d_mass + scores(d_second, d_first)
    E-step: scores(A)             = sum_h A (V - mean)^2  back: d_A, d_mean from moments(d_scores)

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
    compete_derivative,
    e_step,
    first_centre,
    first_m_step,
    first_shares,
    fit_gaussians,
    log_densities,
    m_step,
    route,
)
from emcaps.votes import StreamedVotes, VoteTerms


class _History(NamedTuple):
    """What the way back needs of the way forth, leading axis T.

    Attributes:
        parents: after each M-step.
        assignments: of each M-step, `[T, N, J, M]`.
    """

    parents: Parents
    assignments: jax.Array


class _Gradients(NamedTuple):
    """Gradients on their way back through the iterations.

    Attributes:
        parents: for the parents after the current M-step.
        assignments: for the assignments of the current M-step, besides what comes through its parents.
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
    def iterate(iteration, state):
        (parents, _), history = state
        assignments = e_step(votes, parents, constants, geometry.field)
        data = assignments * activations[:, None]
        parents = m_step(votes, data, parents.means, constants, iteration, geometry.normalize_costs)
        return (parents, assignments), _put(history, _History(parents, assignments), iteration)

    result = first_m_step(votes, activations, constants, geometry)
    empty = jax.tree.map(lambda now: jnp.zeros((geometry.num_iterations, *now.shape), now.dtype), _History(*result))
    history = _put(empty, _History(*result), 0)
    result, history = lax.fori_loop(1, geometry.num_iterations, iterate, (result, history))
    return result, (votes, activations, constants, history)


def _back(geometry, residuals, result_gradients):
    votes, activations, constants, history = residuals
    parents_gradient, assignments_gradient = result_gradients
    num_children, num_types, _ = assignments_gradient.shape
    centre = history.parents.means[-1]
    num_terms = 2 * geometry.num_iterations - 1
    gradients = _Gradients(
        parents_gradient,
        assignments_gradient,
        jnp.zeros_like(activations),
        jax.tree.map(jnp.zeros_like, constants),
        VoteTerms(
            jnp.zeros((num_children, num_terms, *assignments_gradient.shape[1:]), centre.dtype),
            jnp.zeros((num_terms, *centre.shape), centre.dtype),
            jnp.zeros((num_terms, *centre.shape), centre.dtype),
        ),
    )

    def m_step_back(gradients, assignments, m_centre, iteration):
        """Through the M-step of `iteration`, whose sums were about `m_centre`: the gradient for its assignments added."""
        data = assignments * activations[:, None]
        _, transpose = jax.vjp(
            lambda sums, constants: fit_gaussians(*sums, m_centre, constants, iteration, geometry.normalize_costs),
            votes.moments(data, m_centre),
            constants,
        )
        (mass, first, second), constants_gradient = transpose(gradients.parents)
        data_gradient = votes.scores(second, m_centre, first) + mass[None]
        return gradients._replace(
            assignments=gradients.assignments + data_gradient * activations[:, None],
            activations=gradients.activations + (data_gradient * assignments).sum(1),
            constants=jax.tree.map(jnp.add, gradients.constants, constants_gradient),
            terms=_write_term(gradients.terms, 2 * iteration, data, second, first, m_centre, centre),
        )

    def e_step_back(gradients, assignments, parents, iteration):
        """Through the E-step before the M-step of `iteration`, to the parents that it started from."""
        scores_gradient = compete_derivative(assignments, gradients.assignments, geometry.field)
        (quadratic, _), transpose = jax.vjp(log_densities, parents, constants)
        mass, first, second = votes.moments(scores_gradient, parents.means)
        parents_gradient, constants_gradient = transpose((second, mass))
        parents_gradient = parents_gradient._replace(means=parents_gradient.means - 2 * quadratic * first)
        nothing = jnp.zeros_like(quadratic)
        return gradients._replace(
            parents=parents_gradient,
            assignments=jnp.zeros_like(gradients.assignments),
            constants=jax.tree.map(jnp.add, gradients.constants, constants_gradient),
            terms=_write_term(
                gradients.terms, 2 * iteration - 1, scores_gradient, quadratic, nothing, parents.means, centre
            ),
        )

    def iterate(step, gradients):
        iteration = geometry.num_iterations - 1 - step
        assignments = history.assignments[iteration]
        parents = jax.tree.map(lambda past: past[iteration - 1], history.parents)
        gradients = m_step_back(gradients, assignments, parents.means, iteration)
        return e_step_back(gradients, assignments, parents, iteration)

    gradients = lax.fori_loop(0, geometry.num_iterations - 1, iterate, gradients)
    shares = first_shares(activations, geometry.field, num_types)
    first_m_centre = first_centre(votes, shares * activations, constants)
    gradients = m_step_back(gradients, history.assignments[0], first_m_centre, 0)
    votes_gradient = StreamedVotes(*votes.gradient(gradients.terms, centre))
    return votes_gradient, gradients.activations, gradients.constants


def _write_term(terms, place, weights, quadratic, linear, term_centre, centre):
    """Put a term that was about `term_centre` at `place`, moved to the common `centre`."""
    linear = linear + 2 * quadratic * (centre - term_centre)
    return VoteTerms(
        lax.dynamic_update_index_in_dim(terms.weights, weights, place, 1),
        *_put((terms.quadratic, terms.linear), (quadratic, linear), place),
    )


def _put(stacked, now, place):
    """The tree of arrays `now` at `place` of the leading axis."""
    return jax.tree.map(lambda past, new: lax.dynamic_update_index_in_dim(past, new, place, 0), stacked, now)


route_streamed.defvjp(_forth, _back)
