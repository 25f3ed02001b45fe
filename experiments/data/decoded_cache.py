"""Decoded data sets in `~/.cache/emcaps`: decoding takes seconds, loading does not."""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.data.bounded_reading import read_array
from experiments.runtime.records import checksum

Arrays = dict[str, np.ndarray]


def cached(name: str, layout: object, folder: Path, read: Callable[[], Arrays]) -> Arrays:
    """What `read` makes of the files in a folder, from the cache if it has been read before.

    The name of the cached file tells apart data sets, what `read` makes of them (the repr of
    `layout` changes with that), and files that have changed since.
    """
    stamps = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.iterdir())
    ]
    digest = hashlib.sha256(repr((layout, stamps)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emcaps"
    path = cache / f"{name}-{digest}.arrays"
    try:
        return read_arrays(path)
    except (OSError, ValueError):
        arrays = read()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            write_arrays(Path(scratch, path.name), arrays)
            os.replace(Path(scratch, path.name), path)
    except OSError:
        pass  # nowhere to write: the next run decodes again
    return arrays


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write the names of the arrays, their checksum and then the arrays, in NumPy's own format one
    after the other.

    An .npz file would hold the same, but a zip archive is read ten times as slowly: seconds for
    smallNORB's 900 MB.
    """
    with open(path, "wb") as file:
        for array in (np.array(list(arrays)), np.array(checksum_of(arrays)), *arrays.values()):
            np.lib.format.write_array(file, array, allow_pickle=False)


def read_arrays(path: Path) -> Arrays:
    """What `write_arrays` has written.

    Raises OSError or ValueError if the file is not there, not whole, or not as it was written.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        names, written = read_array(file, size), read_array(file, size - file.tell())
        arrays = {str(name): read_array(file, size - file.tell()) for name in names}
    if written != checksum_of(arrays):
        raise ValueError(f"{path} is damaged")
    return arrays


def checksum_of(arrays: Arrays) -> int:
    """A number that changes with the names of arrays, and with what they are and hold."""
    described = (
        (f"{name} {array.dtype} {array.shape}".encode(), array) for name, array in arrays.items()
    )
    return checksum(*itertools.chain.from_iterable(described))
