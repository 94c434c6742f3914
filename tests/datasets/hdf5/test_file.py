"""Our reader of HDF5 against h5py on what h5py writes, and on files that would bring libhdf5 down."""

from __future__ import annotations

import io
import zlib
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


FILLS = {"i1": -3, ">u2": 7, "<i4": -70000, "<f4": np.nan, ">f8": -0.5, "S3": b"ab"}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("dtype", FILLS)
def test_what_was_never_written_has_the_fill_value_that_h5py_gives(dtype: str, libver: str) -> None:
    image = io.BytesIO()
    with h5py.File(image, "w", libver=libver) as file:
        options = {"dtype": dtype, "fillvalue": FILLS[dtype]}
        file.create_dataset("nothing", shape=(2, 3), **options)
        if libver == "earliest":
            file.create_dataset("no chunk", shape=(5,), chunks=(2,), **options)
            for name, chunks in (("some chunks", (1,)), ("packed", (4,))):
                more = {"compression": "gzip"} if name == "packed" else {}
                data = file.create_dataset(name, shape=(11,), chunks=chunks, **options, **more)
                data[1] = data[9] = np.ones(1).astype(dtype)[0]
    with h5py.File(image) as theirs:
        for key in theirs:
            ours = dataset(File(image), key).values()
            assert ours.tobytes() == theirs[key][()].tobytes() and ours.shape == theirs[key].shape


def test_rows_that_were_never_written_have_the_fill_value_that_h5py_gives() -> None:
    options = {"shape": (3,), "dtype": h5py.string_dtype(), "fillvalue": "none"}
    flat, lengths = dataset(opened(lambda file: file.create_dataset("a", **options)), "a").rows()
    assert (flat.tobytes(), lengths.tolist()) == (b"none" * 3, [4, 4, 4])


def test_the_fill_value_of_the_oldest_format_is_read_and_one_of_another_size_refused() -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.create_dataset("a", shape=(2,), dtype="<u2", fillvalue=0x1234)
    raw, new = image.getvalue(), b"\x02\x02\x02\x01\x02\0\0\0\x34\x12"  # the content of message 5
    place = raw.index(new)
    assert raw[place - 8] == 5 and raw.count(new[4:]) == 2  # the other one is of message 4
    assert dataset(changed(raw, place - 8, b"\0"), "a").values().tolist() == [0x1234] * 2
    assert dataset(changed(raw, place + 8, b"\x35"), "a").values().tolist() == [0x1235] * 2
    with pytest.raises(ValueError, match="/a must have a fill value of 2 bytes, got 1"):
        changed(raw, place + 4, b"\1").get("a")


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


def zeros(file: h5py.File, count: int) -> None:
    """Data sets of 1 MiB that pack into 1 kB."""
    packed = zlib.compress(bytes(1 << 20))
    for i in range(count):
        data = file.create_dataset(f"{i}", (1 << 20,), "u1", chunks=(1 << 20,), compression="gzip")
        data.id.write_direct_chunk((0,), packed)


def test_many_data_sets_that_pack_well_are_read_until_they_are_too_much_for_their_file() -> None:
    file = opened(lambda file: zeros(file, 70))
    assert file.size < 1 << 20
    assert not any(dataset(file, f"{i}").values().any() for i in range(40))
    with pytest.raises(ValueError, match=f"a file of {file.size} bytes must be read within {64 << 20} bytes"):
        [dataset(file, f"{i}").values() for i in range(40, 70)]


def test_one_data_set_that_is_read_again_and_again_is_refused() -> None:
    """As by many links to it."""
    file = opened(lambda file: file.create_dataset("a", data=np.ones(1 << 20, np.uint8)))
    with pytest.raises(ValueError, match="its parts are read many times"):
        [dataset(file, "a").values() for _ in range(65)]


def test_chunks_that_lie_beyond_their_shape_are_refused_before_gigabytes_are_unpacked() -> None:
    options = {"chunks": (1, 1 << 20), "maxshape": (None, None), "compression": "gzip", "compression_opts": 1}
    file = opened(lambda file: file.create_dataset("a", data=np.ones((100, 1), np.uint8), **options))
    with pytest.raises(ValueError, match=f"must be read within {64 << 20} bytes, got more"):
        dataset(file, "a").values()


def test_attributes_that_are_searched_again_and_again_are_refused() -> None:
    file = opened(lambda file: file.attrs.update(long=np.zeros(60_000, np.uint8), number=5))
    assert all(file.attribute("number") == 5 for _ in range(1000))
    with pytest.raises(ValueError, match="its parts are read many times"):
        [file.attribute("number") for _ in range(200)]


def test_a_soft_link_that_goes_round_and_round_is_refused() -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["a/number"] = 1
        file["a/a"] = file["a"]
        file["short"], file["long"] = h5py.SoftLink("/a" * 99 + "/number"), h5py.SoftLink("/a" * 100 + "/number")
    assert dataset(File(image, follow=True), "short").values() == 1
    with pytest.raises(ValueError, match="/long must be reached by at most 100 names, got 101"):
        File(image, follow=True).get("long")


class Counted(io.BytesIO):
    """Remembers how much was read."""

    num_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        raw = super().read(size)
        self.num_bytes += len(raw)
        return raw


def test_links_of_a_group_are_read_once_however_many_are_followed() -> None:
    image = Counted()
    with h5py.File(image, "w") as writer:
        for i in range(400):
            writer[f"group/{i}/a"] = i
    file, image.num_bytes = File(image), 0
    assert all(dataset(file, f"group/{i}/a").values() == i for i in range(400))
    assert image.num_bytes < file.size


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
