"""What Procedure 1 is given, and what passes between its steps: records, in the inner layout of
`votes.py`.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax

from emcaps.receptive_field import ReceptiveField
from emcaps.votes import Moments, VoteTerms

COMPETITIONS = ("all", "types", "positions")
INITIAL_ASSIGNMENTS = ("reachable", "types")


class Procedure(NamedTuple):
    """What shapes the compiled program; static.

    Attributes:
        field: which children a parent sees.
        num_iterations: T.
        normalize_costs: see `em.fit_gaussians`.
        competition: among which parents a child divides itself, one of `COMPETITIONS`: all that it
            reaches, the types at each position, or the positions of each type.
        initial_assignments: one of `INITIAL_ASSIGNMENTS`: 1 / (parents that the child reaches), or
            1 / (parent types).
        damping: how much of the previous means stays in the means, in [0, 1).
        assignment_gradient: whether derivatives go through the assignments; otherwise they are
            constants.
        parent_axis: the mapped axis over whose devices the parent types are divided; None: all of
            them are here.
    """

    field: ReceptiveField
    num_iterations: int
    normalize_costs: bool
    competition: str
    initial_assignments: str
    damping: float
    assignment_gradient: bool
    parent_axis: str | None = None


class Constants(NamedTuple):
    """What Procedure 1 is given besides the data: the two learned vectors `[J, 1]` or `[J, M]`,
    lambda `[T]`, and scalars.
    """

    beta_u: jax.Array
    beta_a: jax.Array
    inverse_temperature: jax.Array
    min_variance: jax.Array
    mass_epsilon: jax.Array
    mass_scale: jax.Array
    assignment_temperature: jax.Array


class Votes(Protocol):
    """The two operators of `votes.py`, the weighted sum to start from, and moments taken again
    (`votes.retake_if_lost`).
    """

    def weighted_sum(self, weights: jax.Array, /) -> jax.Array: ...
    def moments(self, weights: jax.Array, center: jax.Array, scale: jax.Array, /) -> Moments: ...
    def retake(
        self,
        lost: jax.Array,
        weights: jax.Array,
        center: jax.Array,
        scale: jax.Array,
        taken: tuple[jax.Array, Moments],
        /,
    ) -> tuple[jax.Array, Moments]: ...
    def scores(
        self, constant: jax.Array, quadratic: jax.Array, center: jax.Array, /
    ) -> jax.Array: ...


class RecomputedVotes(Votes, Protocol):
    """Votes that are formed where they are used: a tree of their poses and transforms, which can
    tell the gradient for these.

    Attributes:
        UNROLL: whether, where a gradient is taken, iterations shall follow one another in the
            program, rather than be the turns of a loop.
    """

    UNROLL: bool

    def moments(
        self, weights: jax.Array, center: jax.Array, scale: jax.Array | None = None, /
    ) -> Moments: ...
    def scores(
        self,
        constant: jax.Array,
        quadratic: jax.Array,
        center: jax.Array,
        linear: jax.Array | None = None,
        /,
    ) -> jax.Array: ...
    def gradient(
        self, groups: Sequence[VoteTerms], center: jax.Array, /
    ) -> tuple[jax.Array, jax.Array]: ...


V_co = TypeVar("V_co", bound=Votes, covariant=True)


class Routing(NamedTuple, Generic[V_co]):
    """A routing that is to be done.

    Attributes:
        votes: of the children.
        activations: of the children, `[N, M]`.
        constants: see `Constants`.
        procedure: see `Procedure`.
    """

    votes: V_co
    activations: jax.Array
    constants: Constants
    procedure: Procedure


class Parents(NamedTuple):
    """The parents after an M-step.

    Attributes:
        means: `[4, 4, J, M]`.
        variances: `[4, 4, J, M]`, at least `min_variance`.
        logits: `[J, M]`; the activations are their sigmoid.
    """

    means: jax.Array
    variances: jax.Array
    logits: jax.Array


class Sums(NamedTuple):
    """What an M-step has summed over the children.

    Attributes:
        assignments: that it used, `[N, J, M]`.
        center: that the moments are about, `[4, 4, J, M]`.
        moments: of the data.
    """

    assignments: jax.Array
    center: jax.Array
    moments: Moments
