"""Our reader of HDF5 against h5py on what h5py writes, and on files that would bring libhdf5 down."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from elm_neuro.datasets.hdf5._file import Dataset, File
from elm_neuro.datasets.hdf5._types import VariableLength

ROWS = [np.arange(5, dtype=np.float16), np.zeros(0, np.float16), np.arange(3, dtype=np.float16) / 4] * 7


def opened(write: Callable[[h5py.File], None], **options: Any) -> File:
    """What `write` puts into a file in memory, opened by us."""
    image = io.BytesIO()
    with h5py.File(image, "w", **options) as file:
        write(file)
    return File(image)


def dataset(file: File, key: str) -> Dataset:
    found = file.get(key)
    assert found is not None
    return found


def rows(values: list[np.ndarray]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


NUMBERS = [np.dtype(name) for name in "u1 i1 <u2 >u2 <i2 >i2 <u4 >i4 <u8 >u8 <i8 >i8 <f2 >f2 <f4 >f4 <f8 >f8".split()]
STORAGE: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"chunks": (4,)},
    "one chunk": {"chunks": (64,), "maxshape": (None,)},
    "gzip": {"chunks": (5,), "compression": "gzip"},
    "shuffled": {"chunks": (5,), "compression": "gzip", "shuffle": True},
    "many chunks": {"chunks": (1,), "shuffle": True},
}


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("storage", STORAGE)
def test_numbers_of_every_type_and_storage_are_those_of_h5py(dtype: np.dtype[Any], storage: str) -> None:
    values = (np.arange(200) % 100).astype(dtype)
    file = opened(lambda file: file.create_dataset("a/b", data=values, **STORAGE[storage]))
    found = dataset(file, "a/b")
    assert (found.shape, found.dtype) == ((200,), dtype)
    assert np.array_equal(found.values(), values) and found.values().dtype == dtype


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("base", ["<f2", "<f8", ">u2", "i1"])
def test_rows_of_every_storage_are_those_of_h5py(storage: str, base: str) -> None:
    values = [row.astype(base) for row in ROWS]
    file = opened(
        lambda file: file.create_dataset(
            "a", data=rows(values), dtype=h5py.vlen_dtype(np.dtype(base)), **STORAGE[storage]
        )
    )
    flat, lengths = dataset(file, "a").rows()
    assert lengths.tolist() == [row.size for row in values]
    assert np.array_equal(flat, np.concatenate(values)) and flat.dtype == np.dtype(base)


def test_what_was_never_written_is_zero() -> None:
    def write(file: h5py.File) -> None:
        file.create_dataset("a", shape=(10,), dtype="u2")
        file.create_dataset("b", shape=(10,), dtype="u2", chunks=(4,))
        file.create_dataset("c", shape=(10,), dtype="u2", chunks=(4,))[8:] = 7
        file.create_dataset("d", shape=(3,), dtype=h5py.vlen_dtype(np.uint16))
        file.create_dataset("e", shape=(0,), dtype="u2", chunks=(4,), maxshape=(None,))

    file = opened(write)
    assert not dataset(file, "a").values().any() and not dataset(file, "b").values().any()
    assert dataset(file, "c").values().tolist() == [0] * 8 + [7, 7]
    assert dataset(file, "d").rows()[1].tolist() == [0, 0, 0]
    assert dataset(file, "e").values().size == 0


def test_groups_of_any_size_are_searched(tmp_path: Path) -> None:
    """Hundreds of links make an index of several levels."""
    file = opened(lambda file: [file.create_dataset(f"group/number {i}", data=[i]) for i in range(700)])
    assert all(dataset(file, f"group/number {i}").values().tolist() == [i] for i in range(0, 700, 37))
    assert file.get("group/number 700") is None and file.get("nothing/there") is None
    assert file.get("group/number 1/below a data set") is None
    with pytest.raises(ValueError, match="/group must be a data set, got a Group"):
        file.get("group")


def test_attributes_are_numbers_and_texts() -> None:
    def write(file: h5py.File) -> None:
        file.attrs["text"], file.attrs["number"], file.attrs["minus"] = "größer", 12, -3
        file.attrs["bytes"], file.attrs["empty"], file.attrs["none"] = np.bytes_("fixed"), "", h5py.Empty("f4")
        file.attrs["list"], file.attrs["real"], file.attrs["one"] = [1, 2], 0.5, np.array([[7]])
        for i in range(40):  # more than the header has room for
            file.attrs[f"more {i}"] = i

    file = opened(write)
    assert [file.attribute(name) for name in ("text", "number", "minus", "bytes", "empty")] == [
        "größer", 12, -3, "fixed", "",
    ]  # fmt: skip
    assert file.attribute("real") is None is file.attribute("missing") and file.attribute("one") == 7
    for name in ("none", "list"):  # there, and not to be taken for missing
        with pytest.raises(ValueError, match=f"the attribute {name} must be one number or a text, got another"):
            file.attribute(name)
    assert file.attribute("more 39") == 39


def test_the_newest_format_is_read_or_refused_with_a_remedy() -> None:
    def write(file: h5py.File) -> None:
        file.create_dataset("a/plain", data=[1, 2, 3])
        file.create_dataset("a/rows", data=rows(ROWS), dtype=h5py.vlen_dtype(np.float16))
        file.create_dataset("chunked", data=[1, 2, 3], chunks=(2,))
        file.attrs["number"] = 5
        for i in range(20):
            file[f"many/{i}"] = i

    file = opened(write, libver="latest")
    assert dataset(file, "a/plain").values().tolist() == [1, 2, 3] and file.attribute("number") == 5
    assert np.array_equal(dataset(file, "a/rows").rows()[0], np.concatenate(ROWS))
    for key in ("chunked", "many/3"):
        with pytest.raises(ValueError, match="h5repack writes it anew"):
            file.get(key)


def test_types_that_are_not_read_have_no_name() -> None:
    def write(file: h5py.File) -> None:
        file["text"] = np.array([b"one", b"two"])
        file["fields"] = np.zeros(2, dtype=[("a", "u2"), ("b", "f4")])
        file["words"] = ["one", "two"]

    file = opened(write)
    assert (dataset(file, "text").dtype, dataset(file, "fields").dtype) == (np.dtype("S3"), np.dtype("V"))
    words = dataset(file, "words").dtype
    assert isinstance(words, VariableLength) and words.is_text
    for key in ("fields", "words"):
        with pytest.raises(ValueError, match="must hold"):
            dataset(file, key).rows() if key == "fields" else dataset(file, key).values()


def test_a_gzip_bomb_is_refused_before_it_is_unpacked() -> None:
    """A gigabyte of zeros packs into a megabyte."""
    zeros = {"compression": "gzip", "compression_opts": 1, "chunks": (1 << 26,), "shape": (1 << 26,), "dtype": "u1"}

    def write(file: h5py.File) -> None:
        file.create_dataset("a", **zeros)[:] = 0
        file.create_dataset("b", **{**zeros, "shape": (10,), "maxshape": (None,)})[:] = 1

    file = opened(write)
    assert file.size < 1 << 20
    with pytest.raises(ValueError, match=r"/a must have no more bytes than the file"):
        dataset(file, "a").values()
    with pytest.raises(ValueError, match=r"/b must have chunks smaller than the file, got 67108864 bytes"):
        dataset(file, "b").values()


def changed(image: bytes, place: int, new: bytes) -> File:
    return File(io.BytesIO(image[:place] + new + image[place + len(new) :]))


def test_rows_that_repeat_one_row_are_refused_by_what_they_claim() -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        data = file.create_dataset("a", data=rows([np.ones(4000, np.float16)] * 50), dtype=h5py.vlen_dtype(np.float16))
        file.flush()
        place = data.id.get_offset()
    raw = image.getvalue()
    same = raw[place : place + 16] * 50
    assert dataset(changed(raw, place, same), "a").rows()[0].size == 200_000
    more = (200_000).to_bytes(4, "little")
    with pytest.raises(ValueError, match=r"/a must hold no more than the file's \d+ bytes, got rows that claim 792000"):
        dataset(changed(raw, place, more), "a").rows()


@pytest.mark.parametrize(
    ("signature", "skip", "new", "message"),
    [
        (b"GCOL", 8, bytes(8), "heap|row"),
        (b"GCOL", 8, b"\xff" * 8, "no more bytes than the file"),
        (b"GCOL", 24, b"\xff" * 8, "must hold each row once"),
        (b"TREE", 32, b"\xff" * 8, "must lie within the file"),
        (b"SNOD", 6, b"\xff\xff", "must lie within the file"),
        (b"HEAP", 24, b"\xff" * 8, "must lie within the file"),
    ],
)
def test_damaged_structures_are_named(signature: bytes, skip: int, new: bytes, message: str) -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.create_dataset("a", data=rows(ROWS), dtype=h5py.vlen_dtype(np.float16))
    raw = image.getvalue()
    with pytest.raises(ValueError, match=message):
        dataset(changed(raw, raw.index(signature) + skip, new), "a").rows()


def test_an_index_that_leads_in_a_circle_ends() -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["a"] = 1
    raw = image.getvalue()
    place = raw.index(b"TREE")
    circle = b"TREE\0\1\1\0" + b"\xff" * 16 + bytes(8) + place.to_bytes(8, "little")
    with pytest.raises(ValueError, match="nodes of an index must not be used twice"):
        changed(raw, place, circle).get("a")
