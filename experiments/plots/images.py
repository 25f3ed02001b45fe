"""Images in the panels of a figure."""

import numpy as np
from matplotlib.axes import Axes


def draw_pixels(axes: Axes, image: np.ndarray) -> None:
    """An image `[H, W, C]` in [0, 1]."""
    draw_image(axes, np.round(255 * image).astype(np.uint8))


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """One image `[H, W, C]`, uint8; see `shown_image`."""
    axes.imshow(shown_image(image), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")


def shown_image(image: np.ndarray) -> np.ndarray:
    """What is drawn of an image `[H, W, C]`: a stereo pair side by side, three channels as colors,
    of others the first.
    """
    channels = image.shape[-1]
    if channels == 2:
        return np.concatenate([image[..., 0], image[..., 1]], axis=1)
    return image if channels == 3 else image[..., 0]
