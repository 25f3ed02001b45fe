"""How much of the batch is routed at a time, and what is kept of it for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcaps.blocks import Form, Plan, block_size, bytes_of_example, route_blocks
from emcaps.procedure import Constants, Procedure
from emcaps.receptive_field import ReceptiveField
from emcaps.votes import StreamedVotes

PROCEDURE = Procedure(
    ReceptiveField((4, 4), (3, 3), 1),  # 4 positions of parents
    num_iterations=2,
    normalize_costs=True,
    competition="all",
    initial_assignments="reachable",
    damping=0.0,
    assignment_gradient=True,
)
TRANSFORMS = np.zeros((3, 3, 2, 3, 4, 4), np.float32)


def children(batch):
    return np.zeros((batch, 4, 4, 2, 4, 4), np.float32), np.zeros((batch, 4, 4, 2), np.float32)


def plan(examples=None, multiple=1, columns=None, remat=False):
    """Of blocks that may take the bytes of so many examples."""
    memory = None
    if examples is not None:
        memory = examples * bytes_of_example(children(1)[0], TRANSFORMS, PROCEDURE)
    return Plan(PROCEDURE, Form(StreamedVotes, columns, memory, multiple), remat)


@pytest.mark.parametrize(
    "of_plan, batch, size",
    [
        ({}, 7, 7),
        ({"columns": 12}, 7, 3),  # 3, 3 and 1: a divisor would be less than half of what is allowed
        ({"columns": 12}, 8, 2),
        ({"columns": 3}, 7, 1),  # of less than an example's positions
        ({"examples": 5}, 20, 5),
        ({"examples": 6}, 20, 5),
        ({"examples": 100}, 20, 20),
        # 8 examples have 32 columns.
        ({"examples": 100, "multiple": 32}, 16, 16),
        ({"examples": 100, "multiple": 32}, 20, 24),  # filled up
        ({"examples": 12, "multiple": 32}, 33, 8),  # 11 would be filled up to 16, which take more
        ({"examples": 5, "multiple": 32}, 64, 8),  # the smallest that there can be
    ],
)
def test_blocks_are_as_large_as_they_may_be(of_plan, batch, size):
    assert block_size(plan(**of_plan), children(batch), TRANSFORMS) == size


@pytest.mark.parametrize(
    "of_plan, batch, keeps",
    [
        ({"examples": 100}, 20, True),
        ({"examples": 100, "multiple": 32}, 20, True),  # one block, filled up
        ({"examples": 5}, 20, False),  # several, whose intermediates would add up
        ({"columns": 12}, 7, True),  # several of a CPU, which do
        ({"columns": 12, "remat": True}, 7, False),
    ],
)
def test_what_iterations_leave_is_kept_unless_blocks_are_routed_again(of_plan, batch, keeps):
    scalars = [jnp.float32(value) for value in (0.1, 1e-6, 0.1, 4.0)]
    constants = Constants(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.ones(2), *scalars)
    given = children(batch), TRANSFORMS, constants

    def backward_pass(*given):
        return jax.vjp(lambda *given: route_blocks(plan(**of_plan), *given), *given)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward_pass, *given))
    assert (len(residuals) > len(jax.tree.leaves(given))) is keeps
