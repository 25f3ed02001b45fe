"""The gradient of Procedure 1 without ever storing the votes.

The forward pass is `em.route` that keeps a `Record` of each iteration. The backward pass takes the
M-steps and E-steps in reverse. The transpose of the one's sums is the other's scores, so that

    M-step   forward:   (mass, first, second) = moments(g)
             backward:  d_g = scores(d_mass, d_second, d_first)
    E-step   forward:   scores(d, A) = d + sum_h A (V - mean)^2
             backward:  d_d, d_A, d_mean from moments(d_scores)

and everything else is differentiated by JAX, in arrays that are small. Each of the 2T - 1 steps
leaves one of `VoteTerms`; the gradient for poses and transforms is one pass over all of them at the
end.

What the iterations leave is kept in one of two ways: in arrays with a leading axis for them, where
they are the turns of a loop, and in a list, where they follow one another in the program
(`RecomputedVotes.UNROLL`), so that a GPU need not copy it together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.competition import compete_derivative
from emcaps.em import fit_gaussians, iterate, log_densities, previous_means, start, unless_first
from emcaps.procedure import Constants, Parents, RecomputedVotes, Routing, Sums
from emcaps.votes import Moments, VoteTerms

FIRST_ORDER_ONLY = (
    "votes that are not stored have first derivatives in reverse mode only (jax.grad, jax.vjp); "
    'for higher derivatives or forward mode use implementation="dense"'
)


class Record(NamedTuple):
    """What the backward pass needs of an iteration of the forward pass. Few arrays: to keep one
    more takes a CPU's compiler longer.

    Attributes:
        assignments: of the iteration, `[N, J, M]`.
        mass: of its data, `[J, M]`.
        forms: the first and second moments of its data, what these are about, and with damping the
            means of the iteration before, `[3 or 4, 4, 4, J, M]`.
    """

    assignments: jax.Array
    mass: jax.Array
    forms: jax.Array

    @classmethod
    def write(cls, sums: Sums, old_means: jax.Array | None) -> Self:
        """Of an iteration's sums and the means before it."""
        (mass, first, second), old = sums.moments, () if old_means is None else (old_means,)
        return cls(sums.assignments, mass, jnp.stack((first, second, sums.center, *old)))

    def read(self) -> tuple[Sums, jax.Array | None]:
        """The sums and the old means that `write` was given."""
        first, second, center, *old = self.forms
        sums = Sums(self.assignments, center, Moments(self.mass, first, second))
        return sums, old[0] if old else None


# A tree of each iteration: in a list, or one tree of arrays with a leading axis for iterations.
Kept: TypeAlias = Any


class _Gradients(NamedTuple):
    """Gradients on their way back through the iterations.

    Attributes:
        parents: for the parents of the iteration that is next to be taken back.
        assignments: for its assignments, besides what comes through its parents.
        activations: `[N, M]`, summed over iterations.
        constants: summed over iterations.
        data_forms: kept of each M-step: the coefficients of `moments`' gradient, `(quadratic,
            linear)`, each `[4, 4, J, M]`.
        scores: kept of each E-step: for its scores, `[N, J, M]`, and the coefficients of their
            gradient likewise. There is one place for T = 1, too.
    """

    parents: Parents
    assignments: jax.Array
    activations: jax.Array
    constants: Constants
    data_forms: Kept
    scores: Kept

    @classmethod
    def to_begin_with(
        cls,
        routing: Routing[RecomputedVotes],
        result_gradients: tuple[Parents, jax.Array],
        center: jax.Array,
    ) -> Self:
        """Those for the results of a routing, and zeros."""
        repeats, unroll = routing.procedure.num_iterations, routing.votes.UNROLL
        to_parents, to_assignments = result_gradients
        no_constants, no_form = jax.tree.map(jnp.zeros_like, (routing.constants, (center, center)))
        return cls(
            parents=to_parents,
            assignments=to_assignments,
            activations=jnp.zeros_like(routing.activations),
            constants=no_constants,
            data_forms=_keep(no_form, repeats, unroll),
            scores=_keep((jnp.zeros_like(to_assignments), no_form), max(repeats - 1, 1), unroll),
        )


def forward(routing: Routing[RecomputedVotes]) -> tuple[tuple[Parents, jax.Array], Kept]:
    """`em.route`, and the `Record` kept of each iteration, for `backward`."""
    procedure, unroll = routing.procedure, routing.votes.UNROLL
    shares, parents = start(routing)

    def step(iteration, state):
        parents, history = state
        old_means = previous_means(parents, procedure, iteration)
        parents, sums = iterate(routing, shares, parents, iteration)
        return parents, _put(history, Record.write(sums, old_means), iteration)

    repeats = procedure.num_iterations
    nothing = Record(
        assignments=jnp.zeros_like(shares, shape=(shares.shape[0], *parents.logits.shape)),
        mass=jnp.zeros_like(parents.logits),
        forms=jnp.zeros_like(
            parents.means, shape=(4 if procedure.damping else 3, *parents.means.shape)
        ),
    )
    parents, history = _repeat(repeats, step, (parents, _keep(nothing, repeats, unroll)), unroll)
    return (parents, _take(history, repeats - 1).assignments), history


@jax.custom_jvp
def first_order_only(tree):
    """What a pass of first order is given; TypeError if it is differentiated once more."""
    return tree


@first_order_only.defjvp
def _refuse(primals, tangents):
    raise TypeError(FIRST_ORDER_ONLY)


def backward(
    routing: Routing[RecomputedVotes], history: Kept, result_gradients: tuple[Parents, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], jax.Array, Constants]:
    """The gradient of `em.route`, from that for its results.

    Args:
        routing: that was done.
        history: of the forward pass.
        result_gradients: for the last parents and assignments.

    Returns:
        Gradients for the poses and transforms of the votes, for the activations, and for the
        constants.
    """
    procedure, unroll = routing.procedure, routing.votes.UNROLL
    repeats = procedure.num_iterations
    (_, common_center, _), _ = _take(history, repeats - 1).read()

    def step(turn, gradients):
        iteration = repeats - 1 - turn
        to_old_means, gradients = _m_step_backward(
            routing, history, gradients, iteration, common_center
        )
        return unless_first(
            iteration,
            lambda: _e_step_backward(
                routing, history, gradients, to_old_means, iteration, common_center
            ),
            instead=lambda: gradients,
        )

    gradients = _Gradients.to_begin_with(routing, result_gradients, common_center)
    taken_back = repeats if procedure.assignment_gradient or procedure.damping else 1
    gradients = _repeat(taken_back, step, gradients, unroll)
    terms = [
        VoteTerms(record.assignments, routing.activations, *form)
        for record, form in zip(
            _stacks(_last(history, taken_back)),
            _stacks(_last(gradients.data_forms, taken_back)),
            strict=True,
        )
    ]
    if repeats > 1 and procedure.assignment_gradient:
        terms += [VoteTerms(scores, None, *form) for scores, form in _stacks(gradients.scores)]
    return routing.votes.gradient(terms, common_center), gradients.activations, gradients.constants


def _m_step_backward(
    routing: Routing[RecomputedVotes],
    history: Kept,
    gradients: _Gradients,
    iteration: jax.Array | int,
    common_center: jax.Array,
) -> tuple[jax.Array | None, _Gradients]:
    """From the parents of an iteration to its assignments.

    Returns the gradient for the old means as well.
    """
    sums, old_means = _take(history, iteration).read()
    _, transpose = _fit_vjp(routing, sums, old_means, iteration)
    (mass, first, second), to_old_means, to_constants = transpose(gradients.parents)
    data_gradient = routing.votes.scores(mass, second, sums.center, first)
    return to_old_means, gradients._replace(
        assignments=gradients.assignments + data_gradient * routing.activations[:, None],
        activations=gradients.activations + (data_gradient * sums.assignments).sum(1),
        constants=jax.tree.map(jnp.add, gradients.constants, to_constants),
        data_forms=_put(
            gradients.data_forms, _about(common_center, second, first, sums.center), iteration
        ),
    )


def _e_step_backward(
    routing: Routing[RecomputedVotes],
    history: Kept,
    gradients: _Gradients,
    to_old_means: jax.Array | None,
    iteration: jax.Array | int,
    common_center: jax.Array,
) -> _Gradients:
    """From the assignments of an iteration to the parents of the one before: to their means alone,
    by way of damping, where assignments are constants.
    """
    if not routing.procedure.assignment_gradient:
        nothing = jax.tree.map(jnp.zeros_like, gradients.parents)
        means = nothing.means if to_old_means is None else to_old_means
        return gradients._replace(parents=nothing._replace(means=means))
    earlier, old_means = _take(history, iteration - 1).read()
    parents, _ = _fit_vjp(routing, earlier, old_means, iteration - 1)
    (_, quadratic), transpose = jax.vjp(log_densities, parents, routing.constants)
    assignments = _take(history, iteration).assignments
    scores = compete_derivative(assignments, gradients.assignments, routing.procedure)
    mass, first, second = routing.votes.moments(scores, parents.means)
    to_parents, to_constants = transpose((mass, second))
    to_means = to_parents.means - 2 * quadratic * first
    if to_old_means is not None:
        to_means += to_old_means
    form = _about(common_center, quadratic, jnp.zeros_like(quadratic), parents.means)
    return gradients._replace(
        parents=to_parents._replace(means=to_means),
        assignments=jnp.zeros_like(gradients.assignments),
        constants=jax.tree.map(jnp.add, gradients.constants, to_constants),
        scores=_put(gradients.scores, (scores, form), iteration - 1),
    )


def _fit_vjp(
    routing: Routing[RecomputedVotes],
    sums: Sums,
    old_means: jax.Array | None,
    iteration: jax.Array | int,
) -> tuple[Parents, Callable]:
    """The parents of an iteration, and how their gradient goes back to the moments, the old means
    and the constants.
    """

    def fit(moments, old_means, constants):
        return fit_gaussians(
            moments, sums.center, old_means, constants, routing.procedure, iteration
        )

    return jax.vjp(fit, sums.moments, old_means, routing.constants)


def _about(
    new_center: jax.Array, quadratic: jax.Array, linear: jax.Array, center: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The coefficients of the gradient `2 A (V - center) + b` about another center."""
    return quadratic, linear + 2 * quadratic * (new_center - center)


def _repeat(number: int, step: Callable[[Any, Any], Any], state: Any, unroll: bool) -> Any:
    """`state = step(turn, state)` so many times."""
    if not unroll:
        return lax.fori_loop(0, number, step, state)
    for turn in range(number):
        state = step(turn, state)
    return state


def _keep(tree: Any, number: int, unroll: bool) -> Kept:
    """Room for so many trees of arrays like `tree`, which is in all the places."""
    if unroll:
        return [tree] * number
    return jax.tree.map(lambda array: jnp.broadcast_to(array, (number, *array.shape)), tree)


def _put(kept: Kept, tree: Any, place: Any) -> Kept:
    """`kept`, with `tree` at a place."""
    if isinstance(kept, list):
        return [*kept[:place], tree, *kept[place + 1 :]]
    return jax.tree.map(
        lambda past, new: lax.dynamic_update_index_in_dim(past, new, place, 0), kept, tree
    )


def _take(kept: Kept, place: Any) -> Any:
    """The tree at a place."""
    if isinstance(kept, list):
        return kept[place]
    return jax.tree.map(lambda past: lax.dynamic_index_in_dim(past, place, 0, keepdims=False), kept)


def _last(kept: Kept, number: int) -> Kept:
    """The last so many places."""
    if isinstance(kept, list):
        return kept[-number:]
    return jax.tree.map(lambda past: past[-number:], kept)


def _stacks(kept: Kept) -> list[Any]:
    """The same in trees of arrays with a leading axis: of all places, or a tree of each."""
    if isinstance(kept, list):
        return [jax.tree.map(lambda array: array[None], tree) for tree in kept]
    return [kept]
