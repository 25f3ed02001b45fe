"""Routing with votes that are never stored, a block of the batch after the other, and its gradient.

All blocks share one `custom_vjp`: what a block keeps for its backward pass is then a plain array
with an axis for the blocks, and each pass is traced and compiled once, as a loop over them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.em import route
from emcaps.layout import (
    OuterResult,
    inner_children,
    inner_children_transpose,
    inner_transforms,
    inner_transforms_transpose,
    outer_result,
    outer_result_transpose,
)
from emcaps.procedure import Constants, Procedure, Routing
from emcaps.streamed_gradient import backward, first_order_only, forward
from emcaps.types import POSE_ENTRIES
from emcaps.votes import largest_divisor


class Form(NamedTuple):
    """A way to recompute the votes, and how much of the batch is routed at a time.

    Attributes:
        make_votes: from poses `[N, 4, Q, M]` and transforms `[N, Q, 4, J]`.
        columns: about so many (parent position x example) in a block, or None.
        bytes: a block takes no more, by `bytes_of_example`, unless it is the smallest that there
            can be; or None. Of several such blocks each is routed again in the backward pass, so
            that what they keep does not add up.
        multiple: of which a block's columns must be.
    """

    make_votes: Callable[[jax.Array, jax.Array], Any]
    columns: int | None = None
    bytes: int | None = None
    multiple: int = 1


class Plan(NamedTuple):
    """How a routing is done; static.

    Attributes:
        procedure: of the routing.
        form: of the votes.
        remat: whether a block is routed again in the backward pass, in place of keeping what its
            iterations leave.
    """

    procedure: Procedure
    form: Form
    remat: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def route_blocks(
    plan: Plan,
    children: tuple[jax.Array, jax.Array],
    transforms: jax.Array,
    constants: Constants,
) -> OuterResult:
    """Procedure 1 on a map, block by block. First order and reverse mode only.

    Args:
        plan: see `Plan`.
        children: poses `[B, H, W, I, 4, Q]` and activations `[B, H, W, I]`.
        transforms: `[KH, KW, I, J, Q, 4]`.
        constants: see `Constants`.
    """
    return _route(plan, children, transforms, constants, lambda routing: (route(routing), None))[0]


def _route(plan, children, transforms, constants, run):
    """The result, and what `run` keeps of each block beside what `em.route` gives."""
    field, size = plan.procedure.field, block_size(plan, children, transforms)
    inner = inner_transforms(transforms)

    def route_block(children):
        poses, activations = inner_children(*children, field=field)
        outputs, kept = run(
            Routing(plan.form.make_votes(poses, inner), activations, constants, plan.procedure)
        )
        return (outer_result(*outputs, field=field), kept), ()

    (results, kept), _ = _for_blocks(route_block, _divide(children, size), ())
    return _unite(results, children[0].shape[0]), kept


def _forward(plan, children, transforms, constants):
    size = block_size(plan, children, transforms)
    if plan.remat or (plan.form.bytes is not None and size < children[0].shape[0]):
        result, kept = route_blocks(plan, children, transforms, constants), None
    else:
        result, kept = _route(plan, children, transforms, constants, forward)
    return result, (children, transforms, constants, kept)


def _backward(plan, residuals, result_gradients):
    (children, transforms, constants, kept), result_gradients = first_order_only(
        (residuals, result_gradients)
    )
    procedure, size = plan.procedure, block_size(plan, children, transforms)
    field, inner = procedure.field, inner_transforms(transforms)

    def block_backward(given):
        children, kept, result_gradients = given
        poses, activations = inner_children(*children, field=field)
        routing = Routing(plan.form.make_votes(poses, inner), activations, constants, procedure)
        history = forward(routing)[1] if kept is None else kept
        (to_poses, to_transforms), to_activations, to_constants = backward(
            routing, history, outer_result_transpose(result_gradients)
        )
        return inner_children_transpose(to_poses, to_activations, field), (
            to_transforms,
            to_constants,
        )

    to_children, (to_transforms, to_constants) = _for_blocks(
        block_backward,
        (_divide(children, size), kept, _divide(result_gradients, size)),
        jax.tree.map(jnp.zeros_like, (inner, constants)),
    )
    return (
        _unite(to_children, children[0].shape[0]),
        inner_transforms_transpose(to_transforms, field),
        to_constants,
    )


route_blocks.defvjp(_forward, _backward)


def _for_blocks(function, blocks, nothing):
    """`outputs, terms = function(block)` for each of `blocks`.

    Returns the outputs stacked, and the sum of terms like `nothing`.
    """
    if jax.tree.leaves(blocks)[0].shape[0] == 1:
        outputs, terms = function(jax.tree.map(lambda array: array[0], blocks))
        return jax.tree.map(lambda array: array[None], outputs), terms

    def step(sums, block):
        outputs, terms = function(block)
        return jax.tree.map(jnp.add, sums, terms), outputs

    sums, outputs = lax.scan(step, nothing, blocks)
    return outputs, sums


def _divide(tree, size):
    """Each array's batch in blocks, `[B, ...]` to `[blocks, size, ...]`.

    The last one is filled up with zeros: capsules that are all zero route to finite values, which
    nobody reads.
    """

    def divide(array):
        num_blocks = -(-array.shape[0] // size)
        padding = [(0, num_blocks * size - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(num_blocks, size, *array.shape[1:])

    return jax.tree.map(divide, tree)


def _unite(tree, batch):
    """Undo `_divide`."""
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:batch], tree)


def block_size(plan: Plan, children, transforms) -> Any:
    """Examples in a block: about as many as the form allows, rather a few less than leaving the
    last block partly empty.
    """
    procedure, form = plan.procedure, plan.form
    batch, positions = children[0].shape[0], math.prod(procedure.field.output_size)
    if form.columns is not None:
        most = max(1, form.columns // positions)
        if not isinstance(batch, int):  # symbolic, in what `jax.export` makes for any batch
            return most
    elif form.bytes is not None and isinstance(batch, int):
        most = max(1, form.bytes // bytes_of_example(children[0], transforms, procedure))
    else:
        return batch
    multiple = form.multiple // math.gcd(positions, form.multiple)
    most = min(batch, max(1, most // multiple) * multiple)
    divisor = largest_divisor(batch, most)
    block = divisor if 2 * divisor > most else -(-batch // -(-batch // most))
    return -(-block // multiple) * multiple


def bytes_of_example(poses, transforms, procedure) -> int:
    """About what the routing of one example takes on an accelerator, with its gradient: history,
    gradients, gathered poses.
    """
    kernel_rows, kernel_columns, child_types, num_parents = transforms.shape[:4]
    num_children = kernel_rows * kernel_columns * child_types
    of_pairs = num_children * num_parents * 2 * (procedure.num_iterations + 2)
    of_parents = 6 * procedure.num_iterations * num_parents * POSE_ENTRIES
    of_children = 3 * num_children * math.prod(poses.shape[-2:])
    return (
        poses.dtype.itemsize
        * math.prod(procedure.field.output_size)
        * (of_pairs + of_parents + of_children)
    )
