"""Reading files that may come from anywhere: no code in them is run, and no header is believed that
claims more than there is.
"""

import gzip
import math
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from experiments.runtime.errors import first_line

# Bytes that the contents of a file may take in memory: nine times those of smallNORB.
LARGEST = 8 * 2**30
PIECE = 2**20  # bytes read at once: memory is taken for what is there, not for what a header says
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NotPlain(ValueError):
    """An array that is in NumPy's format, but of a kind that is not read."""


def check_size(size: int) -> None:
    """Raise ValueError if so many bytes are more than are read."""
    if size > LARGEST:
        raise ValueError(f"its contents take {size} bytes, and at most {LARGEST} are read")


def read_exactly(file: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """The next so many bytes of a file. Raises ValueError if there are fewer."""
    check_size(size)
    contents = bytearray()
    while piece := file.read(min(PIECE, size - len(contents))):
        contents += piece
    if len(contents) < size:
        raise ValueError(
            f"its header says that {size} bytes follow; there are only {len(contents)}"
        )
    return bytes(contents)


def check_end(file: IO[bytes] | gzip.GzipFile) -> None:
    """Raise ValueError if there is more in a file."""
    if file.read(1):
        raise ValueError("there is more in it than its header says")


def read_array(file: IO[bytes], available: int) -> np.ndarray:
    """The array in NumPy's format that starts here, of at most so many bytes.

    Raises:
        NotPlain: it holds Python objects, which could run any code, or is in a newer version of the
            format.
        ValueError: it is not in this format, or claims more bytes.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise NotPlain(f"an array is in version {version} of NumPy's format")
    try:
        shape, _, dtype = NPY_HEADERS[version](file)
    except Exception as error:  # those of Python's tokenizer and parser among them
        raise ValueError(f"the header of an array cannot be read: {first_line(error)}") from error
    if dtype.hasobject:
        raise NotPlain("an array holds Python objects")
    if (
        min(shape, default=0) < 0
        or file.tell() - start + math.prod(shape) * dtype.itemsize > available
    ):
        raise ValueError(
            f"an array says that it is {dtype} {list(shape)}, for which its {available} bytes are "
            "too few"
        )
    file.seek(start)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_npz(path: Path, needed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The plain arrays of an .npz file, by name. Arrays that are not plain play no part, nor do
    members that are no arrays.

    Args:
        path: of the file.
        needed: names of arrays that must be plain if they are there.

    Raises:
        OSError, ValueError, RuntimeError, zipfile.BadZipFile: as they come, for a file that is no
            .npz file.
        ValueError: it has more than `LARGEST` bytes in it; or an array, which is named, is damaged,
            or needed and not plain.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_size(sum(member.file_size for member in members))
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its members have the same name")
        for member in members:
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            # Others unpack without a bound.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed in a way that NumPy does not use")
            try:
                with archive.open(member) as file:
                    arrays[name] = read_array(file, member.file_size)
            except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                if name in needed or not isinstance(error, NotPlain):
                    raise ValueError(f"{name}: {error}") from error
    return arrays


def read_tar(path: Path, names: Sequence[str]) -> list[bytes]:
    """The contents of plain files in a gzipped tar archive, by their exact names. None is written
    anywhere.

    Raises:
        OSError, EOFError, zlib.error, tarfile.TarError: as they come, for a file that is no such
            archive.
        ValueError: it ends too early, has more than `LARGEST` bytes in it, lacks one of the names,
            or has something else (such as a link, which could lead anywhere) by one of them.
    """
    contents: dict[str, bytes] = {}
    unpacked = 0
    with gzip.open(path) as file:
        while len(contents) < len(names) and (member := next_member(file)) is not None:
            padded = math.ceil(member.size / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if padded < 0:
                raise ValueError(f"{member.name} says that it has {member.size} bytes")
            check_size(unpacked := unpacked + tarfile.BLOCKSIZE + padded)
            if member.name in names:
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise ValueError(f"{member.name} is not a plain file")
                contents[member.name] = read_exactly(file, member.size)
            file.seek(unpacked)
    if missing := [name for name in names if name not in contents]:
        raise ValueError(f"there is no {missing[0]} in it")
    return [contents[name] for name in names]


def next_member(file: gzip.GzipFile) -> tarfile.TarInfo | None:
    """The header of the next member of a tar archive; None at its end.

    `tarfile.open` would read what extends a header, such as a long name, to whatever length that
    claims. Here it is a member like any other, and passed over: what is looked for has none.
    """
    block = read_exactly(file, tarfile.BLOCKSIZE)
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape") if any(block) else None
