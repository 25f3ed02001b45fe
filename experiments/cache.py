"""Decoded data sets in `~/.cache/emcaps`: decoding takes seconds, loading does not."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def cached(name: str, folder: Path, read: Callable[[], Arrays]) -> Arrays:
    """What `read` makes of the files in a folder, from the cache if it has been read before.

    The name of the cached file tells apart data sets, and files that have changed since.
    """
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emcaps"
    path = cache / f"{name}-{digest}.npz"
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile):
        arrays = read()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            np.savez(Path(scratch, path.name), **arrays)  # pyright: ignore[reportArgumentType]
            os.replace(Path(scratch, path.name), path)
    except OSError:
        pass  # nowhere to write: the next run decodes again
    return arrays
