"""Which children a parent sees: gather children to the parents that see them, scatter back to the
children.

A parent at position (y, x) sees the children at rows `y * stride + (0 .. KH-1)` and columns
`x * stride + (0 .. KW-1)`; there is no padding. Rows and columns are independent, so both
directions do one axis after the other: `KH + KW` slices, not `KH * KW`, which is what makes a
kernel as large as the whole map (the class capsules) affordable.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emcaps.checks import check_floating, check_positive_int, check_shapes, check_sizes


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The static geometry between one map of children and one map of parents.

    Attributes:
        map_size: `(H, W)`, the children's map.
        kernel_size: `(KH, KW)`.
        stride: in rows and in columns.

    Raises:
        TypeError: a size is not a tuple or list of ints, or the stride not an int.
        ValueError: a size is not a pair; one of them is less than 1, or the kernel is larger than
            the map.
    """

    map_size: Sequence[int]
    kernel_size: Sequence[int]
    stride: int = 1

    def __post_init__(self):
        check_sizes("map_size", self.map_size, 2)
        check_sizes("kernel_size", self.kernel_size, 2)
        check_positive_int("stride", self.stride)
        if any(kernel > size for size, kernel in zip(self.map_size, self.kernel_size, strict=True)):
            raise ValueError(
                f"kernel_size must not be larger than the map of {_times(self.map_size)} children; "
                f"got {_times(self.kernel_size)}"
            )

    @property
    def output_size(self) -> tuple[int, int]:
        """`(OH, OW)`, the parents' map."""
        height, width = (
            (size - kernel) // self.stride + 1
            for size, kernel in zip(self.map_size, self.kernel_size, strict=True)
        )
        return height, width

    def gather(self, children: jax.Array) -> jax.Array:
        """What each parent sees: `[..., H, W, B]`, floating, to `[KH, KW, ..., OH, OW, B]`.

        Raises:
            TypeError, ValueError: children are not floating point, or their map is not `map_size`.
        """
        check_shapes({"children": (children, "... {} {} B".format(*self.map_size))})
        (kernel_rows, kernel_columns), (rows, columns) = self.kernel_size, self.output_size
        children = _windows(children, -2, kernel_columns, columns, self.stride)
        return _windows(children, -3, kernel_rows, rows, self.stride)

    def scatter_sum(self, seen: jax.Array) -> jax.Array:
        """For each child the sum over the parents that see it: `[KH, KW, ..., OH, OW, B]`,
        floating, to `[..., H, W, B]`.

        The transpose of `gather`. A child that no parent sees gets 0.

        Raises:
            TypeError, ValueError: `seen` is not floating point, or not of this geometry.
        """
        return self._scatter(seen, jnp.add, 0.0)

    def scatter_max(self, seen: jax.Array) -> jax.Array:
        """Like `scatter_sum`, with the maximum; a child that no parent sees gets minus infinity."""
        return self._scatter(seen, jnp.maximum, -np.inf)

    def _scatter(self, seen: jax.Array, combine: Callable, identity: float) -> jax.Array:
        check_floating("seen", seen)
        expected = (*self.kernel_size, *self.output_size)
        if seen.ndim < 5 or (*seen.shape[:2], *seen.shape[-3:-1]) != expected or 0 in seen.shape:
            axes = "[{}, {}, ..., {}, {}, B]".format(*expected)
            raise ValueError(
                f"seen must have shape {axes}, no axis empty; got shape {list(seen.shape)}"
            )
        height, width = self.map_size
        seen = _overlay(seen, -3, height, self.stride, combine, identity)
        return _overlay(seen, -2, width, self.stride, combine, identity)

    def num_parent_positions(self) -> np.ndarray:
        """For each child position the number of parent positions that see it, `[H, W]`; 0 where
        none does.
        """
        rows, columns = (
            np.bincount(
                (np.arange(output)[:, None] * self.stride + np.arange(kernel)).ravel(),
                minlength=size,
            )
            for size, kernel, output in zip(
                self.map_size, self.kernel_size, self.output_size, strict=True
            )
        )
        return rows[:, None] * columns[None, :]


def _windows(array: jax.Array, axis: int, kernel: int, output: int, stride: int) -> jax.Array:
    """Strided slices along `axis` (negative), one for each kernel offset, stacked on a new leading
    axis.
    """
    axis += array.ndim
    span = stride * (output - 1) + 1
    return jnp.stack([lax.slice_in_dim(array, k, k + span, stride, axis) for k in range(kernel)])


def _overlay(
    windows: jax.Array, axis: int, size: int, stride: int, combine: Callable, identity: float
) -> jax.Array:
    """Undo `_windows`: lay each offset's slice back where it came from and combine what lands on
    the same place.
    """
    kernel, axis = windows.shape[0], axis + windows.ndim
    span = stride * (windows.shape[axis] - 1) + 1
    padding = [(0, 0, 0)] * windows.ndim
    padding[axis] = (kernel - 1, size - span, stride - 1)
    placed = lax.pad(windows, jnp.asarray(identity, windows.dtype), padding)
    shifted = (
        lax.slice_in_dim(placed[k], kernel - 1 - k, kernel - 1 - k + size, axis=axis - 1)
        for k in range(kernel)
    )
    return functools.reduce(combine, shifted)


def receptive_field_centers(image_size: int, layers: Sequence[tuple[int, int]]) -> np.ndarray:
    """Where the centers of the receptive fields lie in the image, along one axis, scaled to [0, 1].

    Args:
        image_size: pixels along the axis.
        layers: `(kernel, stride)` of each layer from the image up; no padding.

    Returns:
        One coordinate for each position of the last layer's map, float64: the middle of the first
        pixel is `0.5 / image_size`.

    Raises:
        TypeError: a size is not an int, or a layer not a tuple or list.
        ValueError: a layer is not a pair; a size is less than 1, or a kernel larger than the map
            that it slides over.
    """
    check_positive_int("image_size", image_size)
    start, spacing, size = 0.5, 1, image_size
    for layer in layers:
        check_sizes("layers: each entry", layer, 2)
        kernel, stride = layer
        if kernel > size:
            raise ValueError(
                f"layers must have no kernel larger than the map below it, here {size}; got "
                f"{kernel}"
            )
        start += spacing * (kernel - 1) / 2
        spacing *= stride
        size = (size - kernel) // stride + 1
    return (start + spacing * np.arange(size)) / image_size


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
