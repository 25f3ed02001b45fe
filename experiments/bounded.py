"""Reading files that may come from anywhere: no code in them is run, and no header is believed that claims more than there is."""

import gzip
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

LARGEST = 8 * 2**30  # bytes that the contents of a file may take in memory: nine times those of smallNORB
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check_size(size: int) -> None:
    """Raise ValueError if so many bytes are more than are read."""
    if size > LARGEST:
        raise ValueError(f"its contents take {size} bytes, and at most {LARGEST} are read")


def read_exactly(file: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """The rest of a file, which must be so many bytes. Raises ValueError if there are fewer or more; more are not read."""
    check_size(size)
    contents = file.read(size + 1)
    if len(contents) != size:
        there = f"only {len(contents)}" if len(contents) < size else "more"
        raise ValueError(f"its header says that {size} bytes follow; there are {there}")
    return contents


def read_array(file: IO[bytes], available: int) -> np.ndarray:
    """The array in NumPy's format that starts here, of at most so many bytes.

    Raises:
        ValueError: it is not in this format, claims more bytes, or holds Python objects, which could run any code.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise ValueError(f"an array is in version {version} of NumPy's format")
    shape, _, dtype = NPY_HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects")
    if min(shape, default=0) < 0 or file.tell() - start + math.prod(shape) * dtype.itemsize > available:
        raise ValueError(f"an array says that it is {dtype} {list(shape)}, for which its {available} bytes are too few")
    file.seek(start)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name. Other members play no part.

    Raises:
        OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error: as they come, for a file that is not one of
            plain arrays, or has more than `LARGEST` bytes in it.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_size(sum(member.file_size for member in members))
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its members have the same name")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise ValueError(f"{member.filename} is compressed in a way that NumPy does not use")
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = read_array(file, member.file_size)
    return arrays
