"""Image files, which may come from anywhere, as a classifier takes them.

They are PNG, JPEG or BMP. Whatever else Pillow could decode is refused, and so is a file that is
too large, is damaged, or has transparent parts, which show whatever is behind them.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from experiments.runtime.errors import UsageError, first_line

FORMATS = ("PNG", "JPEG", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")  # of the files of a folder that are its images
LARGEST_FILE = 2**28  # bytes
MOST_PIXELS = 2**26  # of one image; a header may claim any number
FILTER = Image.Resampling.BILINEAR  # over all pixels that become one, where an image gets smaller


class ImageFiles(NamedTuple):
    """N images as a classifier takes them, and how they were in their files.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        sizes: `(height, width)` in pixels, of each, before they were resized.
        pairs: whether each was taken for a stereo pair, left image and right image side by side.
    """

    images: np.ndarray
    sizes: list[tuple[int, int]]
    pairs: list[bool]


def find_images(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files that are meant, and what is passed over: of a folder, in the order of their names,
    its files with one of `SUFFIXES`, and all else that it holds.

    Raises UsageError if something is not there, or a folder has no images.
    """
    found: list[Path] = []
    passed_over: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.is_file():
                raise UsageError(f"there is no file or folder {path}")
            found.append(path)
            continue
        inside = sorted(path.iterdir())
        images = [file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file()]
        if not images:
            raise UsageError(f"the folder {path} has no files {', '.join(SUFFIXES)} in it")
        found += images
        passed_over += sorted(set(inside) - set(images))
    return found, passed_over


def read_images(
    paths: Sequence[Path], shape: tuple[int, int, int], invert: bool = False
) -> ImageFiles:
    """Images in the shape that a classifier takes.

    An image is turned as its camera says, made gray where the classifier takes one channel or two,
    and resized (bilinear, of whatever proportions it is). Of two channels the first is what the
    left eye sees. An image whose proportions are those of two side by side is such a pair; any
    other is taken for both eyes.

    Args:
        paths: of files.
        shape: `(H, W, C)`.
        invert: take dark for light and light for dark.

    Raises:
        UsageError: image files have no such channels, or some files cannot be read, each of which
            is named.
    """
    if shape[-1] > 3:
        raise UsageError(
            f"the classifier takes images of {shape[-1]} channels; those of image files have 1 to 3"
        )
    images = np.empty((len(paths), *shape), np.uint8)
    sizes, pairs, wrong = [], [], []
    for place, path in enumerate(paths):
        try:
            image = open_image(path)
        except ValueError as error:
            wrong.append(f"{path} {error}")
            continue
        pairs.append(is_pair(image, shape))
        sizes.append((image.height, image.width))
        images[place] = fit(image, shape)
    if wrong:
        raise UsageError("; ".join(wrong))
    return ImageFiles(255 - images if invert else images, sizes, pairs)


def open_image(path: Path) -> Image.Image:
    """The image of a file, upright, in 8-bit RGB. Raises ValueError, saying what is wrong with the
    file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return decode(path)
    except Refused as error:
        raise ValueError(str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from error
    # What decoders raise for damaged files is of many kinds.
    except Exception as error:
        raise ValueError(f"cannot be read as an image ({first_line(error)})") from error


class Refused(ValueError):
    """A file that may be in order, but is not read."""


def decode(path: Path) -> Image.Image:
    """The image of a file; see `open_image`. Raises Refused, or whatever the decoder does."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise Refused(f"has {size} bytes, and at most {LARGEST_FILE} are read")
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise Refused(
                f"is an image of {image.width}x{image.height} pixels, and at most {MOST_PIXELS} "
                "are read"
            )
        # Some cameras put small copies behind the image of a JPEG file.
        if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise Refused("is animated; an image file has one image")
        image.load()
        if image.has_transparency_data and opacity(image) < 255:
            raise Refused("has transparent parts; save it with a background")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return ImageOps.exif_transpose(image).convert("RGB")


def opacity(image: Image.Image) -> int:
    """The least alpha of an image, 0 to 255."""
    return int(np.asarray(image.convert("RGBA"))[..., 3].min())


def is_pair(image: Image.Image, shape: tuple[int, int, int]) -> bool:
    """Whether an image is a stereo pair side by side, for a classifier of images of this shape."""
    height, width, channels = shape
    return channels == 2 and image.width * height == 2 * width * image.height


def fit(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """An image as uint8 `[H, W, C]` of this shape; see `read_images`."""
    height, width, channels = shape
    if channels == 3:
        return np.asarray(image.resize((width, height), FILTER))
    gray = image.convert("L")
    eyes = [gray] * channels
    if is_pair(image, shape):
        middle = image.width // 2
        eyes = [gray.crop((0, 0, middle, image.height))]
        eyes.append(gray.crop((image.width - middle, 0, *image.size)))
    return np.stack([np.asarray(eye.resize((width, height), FILTER)) for eye in eyes], axis=-1)
