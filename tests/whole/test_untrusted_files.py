"""Data files from anywhere: what is wrong with one is said, nothing in it is run, and memory stays
bounded.
"""

import ast
import functools
import gzip
import io
import re
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments import report
from experiments.claims import experiment
from experiments.data import bounded_reading, decoded_cache, loading, npz_files, tfds_builders
from experiments.runs import directory, divergence
from experiments.runtime.errors import RunnerError

TOP = Path(__file__).parents[2]
HUGE = 2**30
MOST = 64 * 2**20  # bytes of memory that a refusal may take


def npy(array):
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def npy_header(shape, dtype="|u1"):
    """An array's header without its data."""
    np.lib.format.write_array_header_1_0(
        file := io.BytesIO(), {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def archive_of(*members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return file.getvalue()


def bomb():
    """An archive of a megabyte that holds an array of zeros of a gigabyte, and says so."""
    with (
        zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("image.npy", "w") as member,
    ):
        member.write(npy_header((HUGE,)))
        for _ in range(HUGE // 2**22):
            member.write(bytes(2**22))
    return file.getvalue()


def forged(contents, size):
    """An archive whose directory says that its member has so many bytes."""
    place = contents.rindex(b"PK\x01\x02")
    return contents[: place + 24] + struct.pack("<I", size) + contents[place + 28 :]


def encrypted(contents):
    """An archive whose members are said to be encrypted."""
    contents = bytearray(contents)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        contents[contents.index(magic) + offset] |= 1
    return bytes(contents)


class Canary:
    """What would write a file, if it were unpickled."""

    def __reduce__(self):
        return (open, ("canary", "w"))


def pickled():
    np.save(file := io.BytesIO(), np.array([Canary()], object), allow_pickle=True)
    return file.getvalue()


def twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return archive_of(
            ("image.npy", npy(np.zeros(3, np.uint8))), ("image.npy", npy(np.ones(3, np.uint8)))
        )


ARCHIVES = {
    "pickled": (lambda: archive_of(("image.npy", pickled())), "holds Python objects"),
    "claims more than there is": (
        lambda: archive_of(("image.npy", npy_header((10**12,)))),
        "bytes are too few",
    ),
    "negative shape": (lambda: archive_of(("image.npy", npy_header((-1, 4)))), "bytes are too few"),
    "no array": (lambda: archive_of(("image.npy", b"no array")), "magic string"),
    "newest format": (
        lambda: archive_of(("image.npy", b"\x93NUMPY\x03\x00" + npy_header((1,))[8:])),
        "version",
    ),
    "encrypted": (lambda: encrypted(archive_of(("image.npy", npy(np.zeros(3))))), "encrypted"),
    "bzip2": (
        lambda: archive_of(("image.npy", npy(np.zeros(3))), compression=zipfile.ZIP_BZIP2),
        "compressed in a way",
    ),
    "two of a name": (twice, "the same name"),
    "directory claims less": (
        lambda: forged(archive_of(("image.npy", npy(np.zeros(999)))), 200),
        "CRC",
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is also the working directory; nothing but `given` may be in it
    afterwards.
    """
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def refused(read, error, message):
    """Raises `error` with that message, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=message):
            read()
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_bad_archive_is_refused(kind, folder):
    make, message = ARCHIVES[kind]
    (folder / "given").write_bytes(make())
    refused(
        lambda: npz_files.read_arrays(folder / "given"),
        RunnerError,
        rf"given cannot be read as an \.npz file.*{message}",
    )


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(folder, monkeypatch):
    monkeypatch.setattr(bounded_reading, "LARGEST", HUGE // 2)
    (folder / "given").write_bytes(bomb())
    assert (folder / "given").stat().st_size < 2**21
    refused(
        lambda: npz_files.read_arrays(folder / "given"),
        RunnerError,
        "given cannot be read.*contents take 1073741952 bytes",
    )


def test_a_path_in_an_archive_is_only_a_name(folder):
    (folder / "given").write_bytes(
        archive_of(("../../image.npy", npy(np.arange(3))), ("/label.npy", npy(np.arange(4))))
    )
    assert npz_files.read_arrays(folder / "given").keys() == {"../../image", "/label"}


IDX = struct.pack(">HBBI", 0, 8, 1, 5) + b"abcde"
packed = functools.partial(gzip.compress, mtime=0)
NORB = struct.pack("<5I", 0x1E3D4C55, 1, 5, 1, 1) + b"abcde"


@pytest.mark.parametrize(
    ("read", "contents", "message"),
    [
        (tfds_builders.read_idx, packed(IDX)[:-9], "given: "),
        (tfds_builders.read_idx, packed(IDX[:3]), "given: "),
        (tfds_builders.read_idx, IDX, "given: Not a gzipped file"),
        (tfds_builders.read_idx, packed(b"\1" + IDX), "given: it is not an IDX file"),
        (
            tfds_builders.read_idx,
            packed(IDX + b"f"),
            "given: there is more in it than its header says",
        ),
        (
            tfds_builders.read_idx,
            packed(struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3)),
            "given: its contents take",
        ),
        (
            tfds_builders.read_norb,
            packed(NORB[:-1]),
            "given: its header says that 5 bytes follow; there are only 4",
        ),
        (
            tfds_builders.read_norb,
            packed(struct.pack("<2I", 0x1E3D4C54, 2**32 - 1)),
            "given: it is not a NORB matrix",
        ),
        (
            tfds_builders.read_norb,
            packed(struct.pack("<5I", 0x1E3D4C54, 3, *[2**32 - 1] * 3)),
            "given: its contents take",
        ),
    ],
)
def test_a_bad_matrix_is_refused(read, contents, message, folder):
    (folder / "given").write_bytes(contents)
    refused(lambda: read(folder / "given"), ValueError, message)


@pytest.mark.parametrize(
    ("read", "header"), [(tfds_builders.read_idx, IDX), (tfds_builders.read_norb, NORB)]
)
def test_what_follows_a_matrix_is_not_unpacked(read, header, folder):
    packer = zlib.compressobj(wbits=31)
    parts = [
        packer.compress(header),
        *(packer.compress(bytes(2**22)) for _ in range(HUGE // 2**22)),
        packer.flush(),
    ]
    (folder / "given").write_bytes(b"".join(parts))
    refused(lambda: read(folder / "given"), ValueError, "there is more in it")


def tar_of(kind, name="data", contents=b"abc"):
    """A tar archive with a member of some kind."""
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    if kind == "link":
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/hostname", 0
    if kind == "hard link":
        member.type, member.linkname, member.size = tarfile.LNKTYPE, "../other", 0
    if kind == "device":
        member.type, member.size = tarfile.CHRTYPE, 0
    if kind == "huge":
        member.size = 2**40
    if kind == "long":
        member.size = HUGE
    if kind == "long name":
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**40
    if kind == "negative":
        member.size = -(10**6)
    header = member.tobuf(tarfile.GNU_FORMAT)  # TarFile would refuse most of these
    return packed(
        header + contents + bytes(-len(contents) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("link", "data is not a plain file"),
        ("hard link", "data is not a plain file"),
        ("device", "data is not a plain file"),
        ("huge", "its contents take"),
        ("long", f"says that {HUGE} bytes follow; there are only 1536"),
        ("long name", "its contents take"),
        ("negative", "data says that it has -1000000 bytes"),
    ],
)
def test_only_plain_files_are_read_from_an_archive(kind, message, folder):
    (folder / "given").write_bytes(tar_of(kind))
    refused(
        lambda: tfds_builders.read_members(folder / "given", ["data"]),
        ValueError,
        f"given: .*{message}",
    )


def test_members_of_an_archive_are_found_by_their_exact_names(folder):
    (folder / "given").write_bytes(tar_of("plain", "../data"))
    refused(
        lambda: tfds_builders.read_members(folder / "given", ["data"]),
        ValueError,
        "given: there is no data in it",
    )
    assert tfds_builders.read_members(folder / "given", ["../data"]) == [b"abc"]


def test_what_extends_a_header_is_passed_over(folder):
    with tarfile.open(folder / "given", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, contents in (("long" * 99, b"first"), ("data", b"second"), ("other", bytes(999))):
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    assert tfds_builders.read_members(folder / "given", ["other", "data"]) == [
        bytes(999),
        b"second",
    ]


@pytest.mark.parametrize(
    "contents",
    [pickled(), npy(np.array(["a"])) + npy_header((10**12,)), npy(np.array(["a"])) + pickled()],
)
def test_a_bad_cache_counts_as_none(contents, folder):
    (folder / "given").write_bytes(contents)
    refused(lambda: decoded_cache.read_arrays(folder / "given"), ValueError, "array")


def png(size, mode="L", kind="PNG"):
    Image.new(mode, size).save(file := io.BytesIO(), kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (png((4, 5)), "a picture has 4x5 pixels, not 5x4"),
        (png((5, 4), "RGB"), "reshape"),
        (png((5, 4))[:40], "a picture cannot be decoded"),
        (b"no picture", "a picture cannot be decoded"),
        (png((5, 4), kind="BMP"), "a picture cannot be decoded"),
        # The header of a picture of 2**31 - 1 pixels squared.
        (
            png((5, 4))[:16] + struct.pack(">2I", 2**31 - 1, 2**31 - 1) + png((5, 4))[24:],
            "a picture cannot be decoded",
        ),
    ],
)
def test_a_bad_picture_is_refused(picture, message):
    refused(lambda: loading.decoded(picture, (4, 5, 1)), ValueError, message)


def test_nested_json_is_no_record(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(RunnerError, match=r"config\.json is not the config of a run"):
        directory.read_config(tmp_path)
    with pytest.raises(RunnerError, match=r"config\.json is damaged"):
        report.read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "contents",
    [b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000],
    ids=["cut", "list", "number", "no text", "nested"],
)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("result.json", directory.read_result),
        ("metrics.jsonl", directory.read_records),
        ("report.json", divergence.read_report),
        ("seed-0.json", lambda folder: experiment.is_measured(folder / "seed-0.json", {"seed": 0})),
    ],
)
def test_a_damaged_record_is_named(name, read, contents, tmp_path):
    (tmp_path / name).write_bytes(contents + b"\n")
    with pytest.raises(RunnerError, match=f"{re.escape(name)} is damaged: "):
        read(tmp_path)


READERS = {
    "npz": (
        npz_files.read_arrays,
        archive_of(("image.npy", npy(np.arange(6))), ("label.npy", npy(np.array(["a", "b"])))),
    ),
    "idx": (tfds_builders.read_idx, packed(IDX)),
    "norb": (tfds_builders.read_norb, packed(NORB)),
    "tar": (lambda path: tfds_builders.read_members(path, ["data"]), tar_of("plain")),
}


@pytest.mark.parametrize("kind", READERS)
@settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_changed_file_is_read_or_refused_by_name(kind, data, tmp_path):
    read, contents = READERS[kind]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(contents) - 1, 0)))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        added = data.draw(st.binary(min_size=1, max_size=4)) if change != "cut" else b""
        contents = (
            contents[:place]
            + added
            + (contents[place:] if change == "insert" else contents[place + max(len(added), 1) :])
        )
    path = tmp_path / "given"
    path.write_bytes(contents)
    try:
        read(path)
    except (RunnerError, ValueError) as error:
        assert "given" in str(error)


def test_nothing_unpickles():
    sources = [
        path for package in ("emcaps", "experiments") for path in (TOP / package).rglob("*.py")
    ]
    for path in sources:
        text = path.read_text()
        names = {
            name.name
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import)
            for name in node.names
        }
        assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path
        assert not re.search(r"allow_pickle=True|from pickle|\beval\(|\bexec\(", text), path
    assert len(sources) > 50
