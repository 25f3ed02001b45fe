"""Votes for NVIDIA GPUs: one hand-written kernel a pass over the votes, which live in registers
(Pallas, lowered by Triton).

The operators of `votes.py` once more. Each thread keeps what belongs to its parents (or, for the
votes' gradient, to its children), walks over all the others, and adds up by itself. Long walks are
divided among programs, so that there are enough of these to hide how long memory takes; XLA adds up
what they found. Sizes are static, and nothing is masked: the number of columns is a multiple of
`COLUMNS`.

Computed in float32, with fused multiply-adds, which XLA and Triton would not form by themselves.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from emcaps.votes import Moments, StreamedVotes, VoteTerms

COLUMNS = 32  # of a program: each thread of a warp has one
TYPES = 4  # parent types in a program of moments or scores, a warp each; all read the same poses
SCORED_CHILDREN = 8  # in a program of scores, one after the other
POSE_CHILDREN = 4  # in a program of the gradient for the poses, all in each thread
TRANSFORM_CHILDREN = 2  # the same for the transforms
# Of a pass, if it can be divided so far: several for each that a large GPU holds at a time.
WARPS = 16384

ROWS = range(4)
ENTRIES = [(row, column) for row in ROWS for column in ROWS]

Axes = str  # of an array, a letter each; see `_run`


class KernelVotes(NamedTuple):
    """As `StreamedVotes`, for NVIDIA GPUs; in float32, of a multiple of `COLUMNS` columns.

    Attributes:
        poses: `[N, 4, Q, M]`.
        transforms: `[N, Q, 4, J]`.
    """

    poses: jax.Array
    transforms: jax.Array

    UNROLL = True

    weighted_sum = StreamedVotes.weighted_sum

    def moments(
        self, weights: jax.Array, center: jax.Array, scale: jax.Array | None = None
    ) -> Moments:
        """As `DenseVotes.moments`: a program has some parent types and columns, and walks over a
        part of the children.
        """
        return self._moments(
            jnp.ones(center.shape[-1] // COLUMNS, jnp.int32), weights, center, scale
        )

    def retake(
        self,
        lost: jax.Array,
        weights: jax.Array,
        center: jax.Array,
        scale: jax.Array,
        taken: tuple[jax.Array, Moments],
    ) -> tuple[jax.Array, Moments]:
        """As `votes.retake_if_lost`, by columns: where nothing was lost, programs end as soon as
        they begin.
        """
        wanted = lost.any(0).reshape(-1, COLUMNS).any(1)
        again = center, self._moments(wanted.astype(jnp.int32), weights, center, scale)
        return jax.tree.map(functools.partial(jnp.where, jnp.repeat(wanted, COLUMNS)), again, taken)

    @jax.jit  # so that it is traced once for all of its uses, as those below are
    def _moments(
        self, wanted: jax.Array, weights: jax.Array, center: jax.Array, scale: jax.Array | None
    ) -> Moments:
        num_children, num_parents, width = self._sizes()
        types = math.gcd(num_parents, TYPES)
        children = part_size(num_children, WARPS * COLUMNS // (width * num_parents))
        inputs = [
            (wanted, "M"),
            (center, "ihjm"),
            (self.poses, "nikm"),
            (self.transforms, "nkhj"),
            (weights, "njm"),
        ]
        first, second, mass = _run(
            _moments,
            {"m": COLUMNS, "j": types, "n": children},
            inputs + ([] if scale is None else [(scale, "nm")]),
            ["Nihjm", "Nihjm", "Njm"],
            warps=types,
        )
        return Moments(mass.sum(0), first.sum(0), second.sum(0))

    @jax.jit
    def scores(
        self,
        constant: jax.Array,
        quadratic: jax.Array,
        center: jax.Array,
        linear: jax.Array | None = None,
    ) -> jax.Array:
        """As `DenseVotes.scores`: a program has some parent types and columns, and walks over a few
        children.
        """
        num_children, num_parents, _ = self._sizes()
        types = math.gcd(num_parents, TYPES)
        children = part_size(num_children, num_children / SCORED_CHILDREN)
        inputs = [
            (constant, "jm"),
            (quadratic, "ihjm"),
            (center, "ihjm"),
            (self.poses, "nikm"),
            (self.transforms, "nkhj"),
        ]
        (scores,) = _run(
            _scores,
            {"m": COLUMNS, "j": types, "n": children},
            inputs + ([] if linear is None else [(linear, "ihjm")]),
            ["njm"],
            warps=types,
        )
        return scores

    @jax.jit
    def gradient(
        self, groups: Sequence[VoteTerms], center: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `StreamedVotes.gradient`, by a kernel each for poses and transforms; a warp has one
        row of the votes.

        For the poses a program has some children and columns, and walks over the parents; for the
        transforms it has some children of one parent, and walks over a part of the columns.
        """
        num_children, num_parents, width = self._sizes()
        inputs = [(center, "ihjm"), (self.poses, "nikm"), (self.transforms, "nkhj")]
        for terms in groups:
            inputs += [(terms.weights, "fnjm"), (terms.quadratic, "fihjm"), (terms.linear, "fihjm")]
            inputs += [] if terms.scale is None else [(terms.scale, "nm")]
        have_scale = [terms.scale is not None for terms in groups]
        (to_poses,) = _run(
            functools.partial(_pose_gradient, have_scale),
            {"m": COLUMNS, "n": math.gcd(num_children, POSE_CHILDREN)},
            inputs,
            ["nikm"],
            warps=len(ROWS),
        )
        children = math.gcd(num_children, TRANSFORM_CHILDREN)
        programs = num_parents * num_children // children
        columns = COLUMNS * part_size(width // COLUMNS, WARPS / (len(ROWS) * programs))
        (to_transforms,) = _run(
            functools.partial(_transform_gradient, have_scale),
            {"n": children, "j": 1, "m": columns},
            inputs,
            ["Mnkhj"],
            warps=len(ROWS),
        )
        return to_poses, to_transforms.sum(0)

    def _sizes(self) -> tuple[int, int, int]:
        return self.poses.shape[0], self.transforms.shape[-1], self.poses.shape[-1]


def part_size(number: int, parts: float) -> int:
    """The size of equal parts of a number of things: of so many parts, or of a few more; of fewer
    where its divisors leave nothing near, since each part has a result of its own.
    """
    divisors = [count for count in range(1, number + 1) if number % count == 0]
    enough = [count for count in divisors if parts <= count <= 4 * parts]
    return number // (enough[0] if enough else max([1, *(c for c in divisors if c < parts)]))


def _run(
    kernel: Callable,
    grid: Mapping[str, int],
    inputs: Sequence[tuple[jax.Array, Axes]],
    outputs: Sequence[Axes],
    warps: int,
) -> list[jax.Array]:
    """Run a program of `kernel(multiply_add, *inputs, *outputs)` for each block of the grid;
    interpreted where there is no GPU.

    Args:
        kernel: of references to its blocks.
        grid: how much a program has of each axis, by its letter; the first letter's programs follow
            one another.
        inputs: arrays, with a letter for each axis. Axes that the grid does not name are whole, and
            so are those of size 1. A capital letter is an axis along which each program of that
            letter has one place, which its block lacks.
        outputs: the same of what is returned, in the dtype of the second input.
        warps: of a program.
    """
    sizes = {
        letter: size
        for array, axes in inputs
        for letter, size in zip(axes, array.shape, strict=True)
        if size > 1
    }
    sizes |= {letter.upper(): sizes.get(letter, 1) // block for letter, block in grid.items()}
    letters = list(grid)

    def spec(axes: Axes, shape: Sequence[int]) -> pl.BlockSpec:
        def index(*place: Any) -> tuple[Any, ...]:
            return tuple(
                place[letters.index(a.lower())] if divided(a, s) else 0
                for a, s in zip(axes, shape, strict=True)
            )

        def divided(letter: str, size: int) -> bool:
            return letter.isupper() or (letter in grid and size > 1)

        block = [
            None if a.isupper() else grid[a] if divided(a, s) else s
            for a, s in zip(axes, shape, strict=True)
        ]
        return pl.BlockSpec(block, index)

    like = jax.typeof(inputs[1][0])
    shapes = [[sizes.get(letter, 1) for letter in axes] for axes in outputs]

    def run(interpret: bool, *arrays: jax.Array) -> list[jax.Array]:
        multiply_add = _multiply_add if interpret else _fused_multiply_add
        compiler_params = (
            None if interpret else triton.CompilerParams(num_warps=warps, num_stages=1)
        )
        call = pl.pallas_call(
            functools.partial(kernel, multiply_add),
            grid=tuple(sizes[letter.upper()] for letter in letters),
            in_specs=[spec(axes, array.shape) for array, axes in inputs],
            out_specs=[spec(axes, shape) for axes, shape in zip(outputs, shapes, strict=True)],
            out_shape=[
                jax.ShapeDtypeStruct(shape, like.dtype, manual_axis_type=like.manual_axis_type)
                for shape in shapes
            ],
            interpret=interpret,
            name="em" + _name(kernel),
            compiler_params=compiler_params,
        )
        return call(*arrays)

    arrays = [array for array, _ in inputs]
    return lax.platform_dependent(
        *arrays, cuda=functools.partial(run, False), default=functools.partial(run, True)
    )


def _name(kernel: Callable) -> str:
    return getattr(kernel, "func", kernel).__name__


def _multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return a * b + c


def _fused_multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)
    (result,) = triton.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;",
        args=[jnp.broadcast_to(array, shape) for array in (a, b, c)],
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result


def _offset(
    fma: Callable,
    negative_center: jax.Array,
    pose: Sequence[jax.Array],
    transform: Sequence[jax.Array],
) -> jax.Array:
    """An entry of vote - center, from a row of the pose and a column of the transform."""
    for factors in zip(pose, transform, strict=True):
        negative_center = fma(*factors, negative_center)
    return negative_center


def _walk_children(
    fma: Callable, poses: Any, transforms: Any, center: Any, stop: Any, visit: Callable, state: Any
) -> Any:
    """`state = visit(child, offsets, state)` for each child, with its votes' offsets from the
    center, of `ENTRIES`.
    """
    start = [-center[row, column] for row, column in ENTRIES]
    inner = range(poses.shape[2])

    def body(child: jax.Array, state: Any) -> Any:
        pose = [[poses[child, row, k][None] for k in inner] for row in ROWS]
        transform = [[transforms[child, k, column][:, None] for k in inner] for column in ROWS]
        offsets = [
            _offset(fma, at, pose[row], transform[column])
            for at, (row, column) in zip(start, ENTRIES, strict=True)
        ]
        return visit(child, offsets, state)

    return lax.fori_loop(0, stop, body, state)


def _moments(fma, wanted, center, poses, transforms, weights, *rest):
    *scale, first_out, second_out, mass_out = rest

    def add_child(child, offsets, sums):
        first, second, mass = sums
        weight = weights[child]
        for factor in scale:
            weight = weight * factor[child][None]
        weighted = [weight * offset for offset in offsets]
        first = [total + term for total, term in zip(first, weighted, strict=True)]
        second = [
            fma(term, offset, total)
            for total, term, offset in zip(second, weighted, offsets, strict=True)
        ]
        return first, second, mass + weight

    zero = jnp.zeros(center.shape[2:], center.dtype)
    nothing = [zero] * len(ENTRIES), [zero] * len(ENTRIES), jnp.zeros(mass_out.shape, center.dtype)
    first, second, mass = _walk_children(
        fma, poses, transforms, center, wanted[...] * poses.shape[0], add_child, nothing
    )
    for place, (row, column) in enumerate(ENTRIES):
        first_out[row, column] = first[place]
        second_out[row, column] = second[place]
    mass_out[...] = mass


def _scores(fma, constant, quadratic, center, poses, transforms, *rest):
    *linear, out = rest
    total_of_none = constant[...]
    squares = [quadratic[row, column] for row, column in ENTRIES]
    slopes = [[coefficients[row, column] for row, column in ENTRIES] for coefficients in linear]

    def score(child, offsets, state):
        total = total_of_none
        for place, offset in enumerate(offsets):
            slope = (
                fma(squares[place], offset, slopes[0][place]) if slopes else squares[place] * offset
            )
            total = fma(slope, offset, total)
        out[child] = total
        return state

    _walk_children(fma, poses, transforms, center, poses.shape[0], score, 0)


def _vote_terms(
    have_scale: Sequence[bool], arrays: Sequence[Any]
) -> Iterator[tuple[int, VoteTerms]]:
    """Each term of the groups that the arrays are of: its place in its group, and the group."""
    arrays = list(arrays)
    for has_scale in have_scale:
        weights, quadratic, linear, *arrays = arrays
        scale = arrays.pop(0) if has_scale else None
        for place in range(weights.shape[0]):
            yield place, VoteTerms(weights, scale, quadratic, linear)


def _weights(
    terms: Sequence[tuple[int, VoteTerms]], child: int, parent: Any, columns: Any
) -> list[jax.Array]:
    """Of each term the weights of one child for one parent, scaled, `[1, columns]`."""

    def scaled(place: int, term: VoteTerms) -> jax.Array:
        weight = term.weights[place, child, parent, columns]
        return (weight if term.scale is None else weight * term.scale[child, columns])[None]

    return [scaled(*term) for term in terms]


def _column_gradients(
    fma: Callable,
    terms: Sequence[tuple[int, VoteTerms]],
    weights: Sequence[Sequence[jax.Array]],
    pose: Sequence[Sequence[jax.Array]],
    transform: Sequence[Sequence[jax.Array]],
    center: Any,
    place: tuple[Any, ...],
) -> list[jax.Array]:
    """The gradient with respect to one column of the votes, `[4, columns]`, of each child.

    Args:
        fma: `fma(a, b, c)` is a * b + c.
        terms: of the gradient.
        weights: of each child those of each term, `[1, columns]`.
        pose: of each child the columns of its pose, `[4, columns]`.
        transform: of each child one column of its transform, numbers.
        center: `[4, 4, J, M]`.
        place: the votes' column, the parent, and the columns of arrays.
    """
    rows = slice(None)
    negative_center = -center[rows, *place]
    slopes = intercepts = [jnp.zeros_like(negative_center)] * len(weights)
    for number, (term_place, term) in enumerate(terms):
        quadratic, linear = (
            form[term_place, rows, *place] for form in (term.quadratic, term.linear)
        )
        slopes = [
            fma(weight[number], quadratic, slope)
            for weight, slope in zip(weights, slopes, strict=True)
        ]
        intercepts = [
            fma(weight[number], linear, intercept)
            for weight, intercept in zip(weights, intercepts, strict=True)
        ]
    offsets = [
        _offset(fma, negative_center, *factors) for factors in zip(pose, transform, strict=True)
    ]
    return [fma(2 * slope, *rest) for slope, *rest in zip(slopes, offsets, intercepts, strict=True)]


def _pose_gradient(have_scale, fma, center, poses, transforms, *rest):
    *arrays, out = rest
    terms = list(_vote_terms(have_scale, arrays))
    children, inner, columns = range(poses.shape[0]), range(poses.shape[2]), slice(None)
    pose = [[poses[child, :, k] for k in inner] for child in children]

    def add_parent(parent, sums):
        weights = [_weights(terms, child, parent, columns) for child in children]
        for column in ROWS:
            transform = [
                [transforms[child, k, column, parent] for k in inner] for child in children
            ]
            gradients = _column_gradients(
                fma, terms, weights, pose, transform, center, (column, parent, columns)
            )
            sums = [
                [
                    fma(gradient, factor, total)
                    for factor, total in zip(factors, totals, strict=True)
                ]
                for gradient, factors, totals in zip(gradients, transform, sums, strict=True)
            ]
        return sums

    zero = jnp.zeros((len(ROWS), COLUMNS), center.dtype)
    sums = lax.fori_loop(0, transforms.shape[-1], add_parent, [[zero] * len(inner)] * len(children))
    for child in children:
        for k in inner:
            out[child, :, k] = sums[child][k]


def _transform_gradient(have_scale, fma, center, poses, transforms, *rest):
    *arrays, out = rest
    terms = list(_vote_terms(have_scale, arrays))
    children, inner = range(poses.shape[0]), range(poses.shape[2])
    transform = [
        [[transforms[child, k, column, 0] for k in inner] for child in children] for column in ROWS
    ]

    def add_columns(tile, sums):
        columns = pl.ds(tile * COLUMNS, COLUMNS)
        pose = [[poses[child, :, k, columns] for k in inner] for child in children]
        weights = [_weights(terms, child, 0, columns) for child in children]

        def add(column, of_column):
            gradients = _column_gradients(
                fma, terms, weights, pose, transform[column], center, (column, 0, columns)
            )
            return [
                [
                    fma(gradient, factor, total)
                    for factor, total in zip(factors, totals, strict=True)
                ]
                for gradient, factors, totals in zip(gradients, pose, of_column, strict=True)
            ]

        return [add(column, of_column) for column, of_column in enumerate(sums)]

    zero = jnp.zeros((len(ROWS), COLUMNS), center.dtype)
    nothing = [[[zero] * len(inner)] * len(children)] * len(ROWS)
    sums = lax.fori_loop(0, poses.shape[-1] // COLUMNS, add_columns, nothing)
    for column in ROWS:
        for child in children:
            for k in inner:
                out[child, k, column, 0] = sums[column][child][k].sum()
