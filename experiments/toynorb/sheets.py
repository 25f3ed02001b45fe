"""Contact sheets of toynorb: `python -m experiments.toynorb.sheets --output FOLDER [--real
PAIRS.npz]`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.data.npz_files import read_arrays
from experiments.runtime.command_line import entry_point
from experiments.runtime.records import check_folder
from experiments.toynorb.scene import AZIMUTHS, ELEVATIONS, LIGHTINGS, photograph
from experiments.toynorb.shapes import CATEGORIES, INSTANCES, toy


@dataclass(frozen=True)
class Sheets:
    """Write contact sheets of toynorb as PNG files."""

    output: Path
    """Folder for them."""
    real: Path | None = None
    """An .npz file of real smallNORB pairs, to be put beside ours: `image` uint8 [N, 2, 96, 96],
    `category` [N] and `instance_elevation_azimuth_lighting` [N, 4], with azimuths in tens of
    degrees.
    """
    size: int = 48
    """Height and width of the images."""


def run(command: Sheets, _: str) -> None:
    """Write all sheets. Raises UsageError: there can be no such folder."""
    check_folder(command.output)
    command.output.mkdir(parents=True, exist_ok=True)
    sheets = {
        "instances": instances(command.size),
        "views": views(command.size),
        "lightings": lightings(command.size),
        "stereo": stereo_pairs(command.size),
    }
    if command.real is not None:
        real = read_arrays(command.real)
        sheets["real"] = beside_real(
            real["image"], real["category"], real["instance_elevation_azimuth_lighting"]
        )
    for name, figure in sheets.items():
        path = command.output / f"toynorb_{name}.png"
        figure.savefig(path, dpi=120)
        print(path)


def picture(category: int, instance: int, elevation: int, azimuth: int, size: int) -> np.ndarray:
    """A toy in all lightings; uint8 `[6, 2, size, size]`. The angles are in degrees."""
    angles = (jnp.array([angle], jnp.float32) for angle in (elevation, azimuth))
    return np.asarray(photograph(toy(category, instance), *angles, size=size))[0]


def instances(size: int) -> Figure:
    """All fifty toys, from above their left front."""
    rows = [
        [picture(category, instance, 35, 40, size)[0, 0] for instance in range(INSTANCES)]
        for category in range(len(CATEGORIES))
    ]
    return sheet(
        "All instances, at elevation 35 and azimuth 40 degrees",
        rows,
        CATEGORIES,
        [str(i) for i in range(INSTANCES)],
    )


def views(size: int) -> Figure:
    """One toy a category from all around, low and high."""
    angles = [
        (elevation, azimuth)
        for elevation in (ELEVATIONS[0], ELEVATIONS[-1])
        for azimuth in AZIMUTHS[::3]
    ]
    rows = [
        [picture(category, 0, *angle, size)[0, 0] for angle in angles]
        for category in range(len(CATEGORIES))
    ]
    return sheet(
        "Instance 0, by elevation and azimuth in degrees",
        rows,
        CATEGORIES,
        [f"{e}, {a}" for e, a in angles],
    )


def lightings(size: int) -> Figure:
    """One toy a category in all lightings."""
    rows = [list(picture(category, 6, 40, 60, size)[:, 0]) for category in range(len(CATEGORIES))]
    return sheet(
        "Instance 6, by lighting", rows, CATEGORIES, [str(i) for i in range(len(LIGHTINGS))]
    )


def stereo_pairs(size: int) -> Figure:
    """Both images of some toys, and how they differ."""
    rows = []
    for category in range(len(CATEGORIES)):
        row = []
        for instance in (1, 8):
            left, right = picture(category, instance, 40, 120, size)[0]
            row += [left, right, np.clip(128 + left.astype(int) - right, 0, 255).astype(np.uint8)]
        rows.append(row)
    return sheet(
        "Stereo pairs of instances 1 and 8", rows, CATEGORIES, ["left", "right", "left - right"] * 2
    )


def beside_real(images: np.ndarray, categories: np.ndarray, factors: np.ndarray) -> Figure:
    """Real pairs, and under each a toy of ours with the same labels, in the same size.

    Args:
        images: uint8 `[N, 2, size, size]`.
        categories: `[N]`.
        factors: `[N, 4]`: instance, elevation (a label), azimuth (in tens of degrees), lighting.
    """
    size, columns = images.shape[-1], 4
    pairs = [np.concatenate(list(pair), 1) for pair in images]
    ours = []
    for category, (instance, elevation, azimuth, lighting) in zip(
        categories.tolist(), factors.tolist(), strict=True
    ):
        pair = picture(category, instance, ELEVATIONS[elevation], 10 * azimuth, size)[lighting]
        ours.append(np.concatenate(list(pair), 1))
    rows, names = [], []
    for start in range(0, len(pairs), columns):
        rows += [pairs[start : start + columns], ours[start : start + columns]]
        names += ["smallNORB", "toynorb"]
    return sheet("Real stereo pairs, and ours with the same labels", rows, names, [""] * columns)


def sheet(
    title: str,
    rows: Sequence[Sequence[np.ndarray]],
    row_names: Sequence[str],
    column_names: Sequence[str],
) -> Figure:
    """Rows of gray images, uint8 `[height, width]`, all of one size."""
    height, width = rows[0][0].shape
    figure = Figure(
        figsize=(1.3 * len(column_names) * width / height + 1, 1.35 * len(rows) + 0.6),
        layout="constrained",
    )
    figure.suptitle(title)
    grid = figure.subplots(len(rows), len(column_names), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, images in enumerate(rows):
        grid[row, 0].set_ylabel(row_names[row], fontsize=8)
        for axes, image in zip(grid[row], images, strict=False):  # the last row may be shorter
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    for axes, name in zip(grid[0], column_names, strict=True):
        axes.set_title(name, fontsize=8)
    return figure


main = entry_point("experiments.toynorb.sheets", Sheets, run)

if __name__ == "__main__":
    sys.exit(main())
