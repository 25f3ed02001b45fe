"""How the votes are held, and which way is for which platform: the jitted implementation of
`routing.py`.

Each function is compiled once for each `Procedure` and set of shapes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.blocks import Form, Plan, route_blocks
from emcaps.em import route
from emcaps.fused import FusedVotes
from emcaps.layout import OuterResult, inner_children, inner_transforms, outer_result
from emcaps.precision import cast, common_dtype, compute_dtype, outer_dtypes
from emcaps.procedure import Constants, Routing
from emcaps.types import POSE_ENTRIES, POSE_SIZE, RoutingResult
from emcaps.votes import DenseVotes, StreamedVotes, dense_votes

IMPLEMENTATIONS = ("streamed", "dense", "fused", "kernels")

CHUNKED_COLUMNS = 144  # arrays of so many fit in a CPU's cache
# Half the memory of the smallest accelerators that people train on, a tenth of a large one's.
ACCELERATOR_BYTES = 8_000_000_000

CHUNKED = Form(StreamedVotes, columns=CHUNKED_COLUMNS)
FUSED = Form(FusedVotes, bytes=ACCELERATOR_BYTES)


def kernel_form() -> Form:
    """NVIDIA's, in float32.

    What it is written in is imported only for those who ask: JAX may take it away.
    """
    from emcaps.kernels import COLUMNS, KernelVotes

    return Form(KernelVotes, bytes=ACCELERATOR_BYTES, multiple=COLUMNS)


@functools.partial(jax.jit, static_argnames=("procedure",))
def route_votes(votes, activations, constants, *, procedure):
    """`em_routing` of checked arguments: one patch of children, one parent position."""
    dtype = common_dtype(votes, activations)
    votes, activations, constants = cast(
        (votes, activations, constants), compute_dtype(votes, activations)
    )
    *batch, num_children, num_parents, _ = votes.shape
    votes = votes.reshape(-1, num_children, num_parents, POSE_SIZE, POSE_SIZE)
    # Of each example its own, so that devices sum their gradient once, not in every iteration.
    betas = (jnp.broadcast_to(beta, (num_parents, votes.shape[0])) for beta in constants[:2])
    constants = Constants(*betas, *constants[2:])
    inner_votes = DenseVotes(votes.transpose(1, 3, 4, 2, 0))
    parents, assignments = route(
        Routing(inner_votes, activations.reshape(-1, num_children).T, constants, procedure)
    )

    def outer_poses(array):  # [4, 4, J, M] to [..., J, P]
        return array.transpose(3, 2, 0, 1).reshape(*batch, num_parents, POSE_ENTRIES)

    def outer_activations(array):  # [J, M] to [..., J]
        return array.T.reshape(*batch, num_parents)

    result = RoutingResult(
        poses=outer_poses(parents.means),
        activations=outer_activations(jax.nn.sigmoid(parents.logits)),
        activation_logits=outer_activations(parents.logits),
        variances=outer_poses(parents.variances),
        assignments=assignments.transpose(2, 0, 1).reshape(*batch, num_children, num_parents),
    )
    return outer_dtypes(result, dtype)


@functools.partial(jax.jit, static_argnames=("procedure", "implementation", "remat"))
def route_capsules(poses, activations, transforms, constants, *, procedure, implementation, remat):
    """`conv_em_routing` of checked arguments.

    Poses may be `[..., 4, Q]` with transforms `[..., Q, 4]`.
    """
    dtype = common_dtype(poses, activations, transforms)
    poses, activations, transforms, constants = cast(
        (poses, activations, transforms, constants), compute_dtype(poses, activations, transforms)
    )
    given = (poses, activations), transforms, constants

    def route_in(form):
        return functools.partial(route_blocks, Plan(procedure, form, remat))

    if implementation == "dense":
        route_stored = functools.partial(_route_stored, procedure=procedure)
        result = (jax.checkpoint(route_stored) if remat else route_stored)(*given)
    elif implementation == "fused":
        result = route_in(FUSED)(*given)
    else:
        with_kernels = implementation == "kernels" and poses.dtype == jnp.float32
        nvidia = {"cuda": route_in(kernel_form())} if with_kernels else {}
        result = lax.platform_dependent(
            *given, cpu=route_in(CHUNKED), default=route_in(FUSED), **nvidia
        )
    return outer_dtypes(result.with_activations(), dtype)


def _route_stored(children, transforms, constants, procedure) -> OuterResult:
    """Procedure 1 on a map with all votes in memory."""
    poses, activations = inner_children(*children, field=procedure.field)
    votes = dense_votes(poses, inner_transforms(transforms))
    return outer_result(
        *route(Routing(votes, activations, constants, procedure)), field=procedure.field
    )
