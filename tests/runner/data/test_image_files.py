"""Image files as a classifier takes them, and files that are refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from experiments.data.image_files import find_images, read_images
from experiments.runtime.errors import UsageError

GRAY = np.random.default_rng(0).integers(0, 256, (8, 6), np.uint8)
COLOR = np.random.default_rng(1).integers(0, 256, (8, 6, 3), np.uint8)


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_an_image_of_the_right_size_is_as_it_was(tmp_path):
    gray, color = saved(tmp_path / "a.png", GRAY), saved(tmp_path / "b.bmp", COLOR)
    files = read_images([gray, color], (8, 6, 1))
    assert (files.images.dtype, files.images.shape) == (np.uint8, (2, 8, 6, 1))
    assert files.sizes == [(8, 6)] * 2 and files.pairs == [False] * 2
    np.testing.assert_array_equal(files.images[0, ..., 0], GRAY)
    luma = COLOR @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(files.images[1, ..., 0], luma, atol=1)
    np.testing.assert_array_equal(read_images([color], (8, 6, 3)).images[0], COLOR)
    np.testing.assert_array_equal(
        read_images([color], (8, 6, 3), invert=True).images[0], 255 - COLOR
    )


def test_of_16_bits_the_upper_8_are_seen(tmp_path):
    path = saved(tmp_path / "a.png", GRAY.astype(np.uint16) * 256 + 255)
    np.testing.assert_array_equal(read_images([path], (8, 6, 1)).images[0, ..., 0], GRAY)


def test_pixels_that_become_one_are_averaged(tmp_path):
    board = 255 * (np.indices((32, 32)).sum(0) % 2).astype(np.uint8)
    files = read_images([saved(tmp_path / "a.png", board)], (8, 8, 1))
    assert files.sizes == [(32, 32)]
    np.testing.assert_allclose(files.images, 127.5, atol=2)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is on the right
    path = saved(
        tmp_path / "a.jpg", np.repeat(np.arange(0, 240, 30, np.uint8), 48).reshape(8, 48), exif=exif
    )
    image = read_images([path], (48, 8, 1)).images[0, ..., 0]
    assert (np.diff(image.mean(0)) < 0).all()  # rows from above are columns from the right


def test_two_images_side_by_side_are_a_pair_and_others_are_for_both_eyes(tmp_path):
    pair = saved(tmp_path / "pair.png", np.concatenate([GRAY, 255 - GRAY], axis=1))
    files = read_images([pair, saved(tmp_path / "one.png", GRAY)], (8, 6, 2))
    assert files.pairs == [True, False] and files.sizes == [(8, 12), (8, 6)]
    np.testing.assert_array_equal(files.images[0], np.stack([GRAY, 255 - GRAY], -1))
    np.testing.assert_array_equal(files.images[1], np.stack([GRAY, GRAY], -1))
    with pytest.raises(UsageError, match="images of 4 channels; those of image files have 1 to 3"):
        read_images([pair], (8, 6, 4))


def test_a_folder_stands_for_its_images(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "notes.txt").touch()
    b, a = saved(tmp_path / "b.PNG", GRAY), saved(tmp_path / "a.jpeg", GRAY)
    found, passed_over = find_images([b, tmp_path])
    assert found == [b, a, b] and passed_over == [tmp_path / "inside", tmp_path / "notes.txt"]


def bomb(path):
    """A PNG file whose header claims 900 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)


def truncated(path):
    saved(path, GRAY)
    path.write_bytes(path.read_bytes()[:-40])


def of_text_alone(path):
    """A PNG file with a text that unpacks to 200 MB."""
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 200_000_000, zip=True)
    saved(path, GRAY, pnginfo=text)


@pytest.mark.parametrize(
    "write, said",
    [
        (lambda path: path.write_text("x"), "is no PNG, JPEG or BMP file"),
        (lambda path: saved(path, GRAY, format="GIF"), "is no PNG, JPEG or BMP file"),
        (bomb, "cannot be read as an image"),
        (lambda path: saved(path, np.zeros((1, 2**26 + 1), np.uint8)), "at most 67108864 are"),
        (truncated, "cannot be read as an image"),
        (of_text_alone, "cannot be read as an image"),
        (lambda path: saved(path, np.zeros((2, 2, 4), np.uint8)), "has transparent parts"),
        (
            lambda path: Image.fromarray(GRAY).save(
                path, save_all=True, append_images=[Image.fromarray(255 - GRAY)]
            ),
            "is animated",
        ),
    ],
)
def test_each_bad_file_is_named(write, said, tmp_path):
    good, bad = saved(tmp_path / "good.png", GRAY), tmp_path / "bad.png"
    write(bad)
    missing = tmp_path / "other.png"
    with pytest.raises(UsageError) as error:
        read_images([good, bad, missing], (8, 6, 1))
    first, second = str(error.value).split("; ", 1)
    assert first.startswith(f"{bad} ") and said in str(error.value)
    assert f"{missing} cannot be read as an image" in second and str(good) not in str(error.value)


def test_parts_that_could_be_transparent_but_are_not_do_no_harm(tmp_path):
    opaque = np.concatenate([COLOR, np.full((8, 6, 1), 255, np.uint8)], axis=-1)
    path = saved(tmp_path / "a.png", opaque)
    np.testing.assert_array_equal(read_images([path], (8, 6, 3)).images[0], COLOR)
