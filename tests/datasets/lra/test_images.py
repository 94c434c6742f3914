"""Image and Pathfinder files: grey values of both loaders, splits, pickles read safely, damaged files named.

Longer than most: a hostile pickle a test, each written out.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from elm_neuro.datasets.lra import (
    image_split,
    make_pathfinder,
    pathfinder_split,
    read_digits,
    read_image,
    read_pathfinder,
    to_grey,
    to_levels,
)
from elm_neuro.datasets.lra._images import CLASSES, read_batch
from elm_neuro.datasets.lra._pathfinder_files import SUBSET, pathfinder_images, write_pathfinder
from tests.full_disk import full_disk

RANDOM = np.random.default_rng(0)


def cifar(folder: Path, num: int = 20) -> np.ndarray[Any, Any]:
    """CIFAR-10's six pickles of `num` images each; the colours of the first."""
    folder.mkdir(exist_ok=True)
    first = None
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        data = RANDOM.integers(0, 256, (num, 3072), dtype=np.uint8)
        first = data if first is None else first
        content = {"batch_label": name, "labels": [k % 10 for k in range(num)], "data": data, "filenames": ["a"] * num}
        (folder / name).write_bytes(python_2_pickle(content))
    assert first is not None
    return first.reshape(num, 3, 32, 32).transpose(0, 2, 3, 1)


def python_2_pickle(content: dict[str, Any]) -> bytes:
    """As Python 2 wrote it: protocol 2, numpy's old module, bytes as strings."""
    raw = pickle.dumps(content, protocol=2)
    return raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_both_grey_conversions_are_the_frozen_ones(lra: Path) -> None:
    frozen = np.load(lra / "grey_conversion.npz")
    np.testing.assert_array_equal(to_grey(frozen["rgb"], "s4"), frozen["pil_L"])
    np.testing.assert_array_equal(to_grey(frozen["rgb"], "mega"), frozen["pil_L"])
    np.testing.assert_array_equal(to_grey(frozen["rgb"], "google"), frozen["tf_rgb_to_grayscale"])
    with pytest.raises(ValueError, match=r"colours must be uint8 of shape \(..., 3\)"):
        to_grey(frozen["rgb"][:, :2], "s4")


def test_levels_are_of_equal_width() -> None:
    values = np.arange(256)
    np.testing.assert_array_equal(to_levels(values, 16), values // 16)
    np.testing.assert_array_equal(to_levels(values, 8), values // 32)
    np.testing.assert_array_equal(to_levels(values, 256), values)
    with pytest.raises(ValueError, match="num_levels must divide 256, got 10"):
        to_levels(values, 10)


def test_splits_are_the_frozen_ones(lra: Path) -> None:
    frozen = json.loads((lra / "splits_seed42.json").read_text())
    cases = {
        "pathfinder_200000": pathfinder_split(200_000, "s4"),
        "pathfinder_40": pathfinder_split(40, "mega"),
        "cifar_50000": image_split(50_000, "s4"),
    }
    for name, parts in cases.items():
        for part, indices in parts.items():
            expected = frozen[name]["val" if part == "valid" else part]
            assert indices.size == expected["n"]
            assert indices[: len(expected["first"])].tolist() == expected["first"][: indices.size]
            digest = hashlib.sha256(",".join(map(str, indices)).encode()).hexdigest()[:16]
            assert digest == expected["sha256_16"]
    google = image_split(50_000, "google")["valid"]
    assert google.tolist() == list(range(45_000, 50_000))
    assert pathfinder_split(40, "google")["test"].tolist() == [36, 37, 38, 39]


def test_cifars_pickles_are_read_and_split(tmp_path: Path) -> None:
    colours = cifar(tmp_path)
    parts = read_image(tmp_path, "s4", num_levels=256)
    assert {name: len(part) for name, part in parts.items()} == {"train": 90, "valid": 10, "test": 20}
    split = image_split(100, "s4")
    row = int(np.flatnonzero(split["train"] == 3)[0])
    expected = np.asarray(Image.fromarray(colours[3]).convert("L")).ravel()
    np.testing.assert_array_equal(parts["train"].sequence(row), expected)
    assert parts["train"].labels[row] == 3
    assert read_image(tmp_path)["test"].num_tokens == 16


def test_folders_of_png_files_give_what_the_pickles_give(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    for names in (CLASSES, [str(k) for k in range(10)]):
        place = tmp_path / names[0]
        for part in ("train", "test"):
            for k, image in enumerate(colours):
                folder = place / part / names[k % 10]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{k:02d}.png")
        test = read_image(place, "google", num_levels=256)["test"]
        np.testing.assert_array_equal(test.sequence(1), to_grey(colours[10], "google").ravel())
        assert test.labels.tolist() == sorted([*range(10)] * 2)


def test_parquet_files_are_read_by_pyarrow_or_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(content, format="PNG")
    for part in ("train", "test"):
        (tmp_path / f"{part}-0.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="parquet files need pyarrow: pip install pyarrow"):
        read_image(tmp_path)
    table = {"img": [{"bytes": content.getvalue(), "path": None}] * 10, "label": [0] * 10}
    library = types.ModuleType("pyarrow")
    reader = types.SimpleNamespace(read_table=lambda path: types.SimpleNamespace(to_pydict=lambda: table))
    library.parquet = reader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", library)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", reader)
    assert len(read_image(tmp_path)["test"]) == 10
    for label, got in ((11, "11"), (2.5, "float"), (None, "NoneType")):
        table["label"] = [label] * 10
        with pytest.raises(ValueError, match=f"image 0 must have a label from 0 to 9, got {got}"):
            read_image(tmp_path)


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("PWNED"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: pickle.dumps({"data": Runs()}, protocol=2), "only numpy's arrays may be named"),
        (lambda: b"", "must be a batch of CIFAR-10"),
        (lambda: pickle.dumps([1, 2], protocol=2), "it must be a dict, got list"),
        (lambda: python_2_pickle({"data": np.zeros((2, 3072), np.uint8)}), "must hold data and labels"),
        (lambda: python_2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "a label for each image"),
        (
            lambda: python_2_pickle({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
            "a label from 0 to 9, got 10",
        ),
        (lambda: python_2_pickle({"data": np.zeros((1, 3072), np.uint8), "labels": ["x"]}), "a label from 0 to 9"),
        (lambda: python_2_pickle({"data": np.zeros((1, 3072), np.int32), "labels": [1]}), "arrays must be of u1"),
        (lambda: python_2_pickle({"data": np.zeros((3072,), np.uint8), "labels": [1]}), "must have the shape"),
        (lambda: b"\x80\x02}" + b"(" * 50, "nested at most"),
        (lambda: b"\x80\x02}r\xff\xff\xff\x7f.", "places in the memo"),
        (lambda: b"cos\nsystem\n(S'true'\ntR.", "must not hold the instruction|only numpy"),
    ],
)
def test_pickles_that_are_no_images_are_refused_and_nothing_in_them_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar(tmp_path / "c", num=2)
    (tmp_path / "c" / "data_batch_2").write_bytes(content())
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "c")
    assert not (tmp_path / "PWNED").exists()


def doubled(build: Callable[[int, int], bytes], times: int = 50) -> bytes:
    """Instructions that leave a container of 2**50 numbers on the stack: each one holds the one before twice."""
    return b"K\x01K\x01\x86q\x00" + b"".join(build(place, place + 1) for place in range(times))


def pair(one: int, new: int) -> bytes:
    return b"h%ch%c\x86q%c" % (one, one, new)


def pair_that_is_not_fresh(one: int, new: int) -> bytes:
    return b"h%ch%c\x86NbK\x05\x86q%c" % (one, one, new)


def list_of_two(one: int, new: int) -> bytes:
    return b"](h%ch%ceq%c" % (one, one, new)


@pytest.mark.parametrize(
    "content",
    [
        doubled(pair) + b"}h2K\x01s.",
        doubled(pair_that_is_not_fresh) + b"}h2K\x01s.",
        b"](" + doubled(pair) + b"e.",
        doubled(pair) + b"cnumpy\ndtype\nh2K\x00K\x01\x87R.",
        doubled(list_of_two) + b"cnumpy\ndtype\nh2K\x00K\x01\x87R.",
        b"}U\x06labels](" + doubled(list_of_two) + b"es.",
        b"}" + b"K\x01K\x01\x86" + b"K\x01\x86" * 50_000 + b"K\x01s.",  # deep, not wide
    ],
)
def test_pickles_that_grow_without_end_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02" + content)
    with pytest.raises(ValueError, match=r"must be nested at most 20 deep|only names and short texts"):
        read_batch(tmp_path / "data_batch_1")


def test_messages_of_strange_values_say_what_kind_they_are(tmp_path: Path) -> None:
    path, lists = tmp_path / "data_batch_1", b"]" * 5000 + b"a" * 4999  # in each other: too deep for a text of them
    for content, message in (
        (b"cnumpy\ndtype\n" + lists + b"K\x00K\x01\x87R.", "arrays must be of u1, got list"),
        (b"}K\x05" + lists + b"s.", "it must hold data and labels, got $"),
        (python_2_pickle({"data": np.zeros((1, 3072), np.uint8), "labels": [[]]}), "from 0 to 9, got list"),
    ):
        path.write_bytes(content if content.startswith(b"\x80") else b"\x80\x02" + content)
        with pytest.raises(ValueError, match=message):
            read_batch(path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_that_python_3_wrote_are_read(tmp_path: Path, protocol: int) -> None:
    data = RANDOM.integers(0, 256, (30, 3072), dtype=np.uint8)
    names = [b"one", b"one"] + [b"%d.png" % k for k in range(28)]
    content = {b"batch_label": names[0], b"labels": [k % 10 for k in range(30)], b"data": data, b"filenames": names}
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol=protocol))
    np.testing.assert_array_equal(read_batch(tmp_path / "batch").colours[3, ..., 1].ravel(), data[3, 1024:2048])


def test_halves_of_a_pickle_are_refused(tmp_path: Path) -> None:
    cifar(tmp_path, num=2)
    path = tmp_path / "data_batch_3"
    raw = path.read_bytes()
    for size in range(1, len(raw), 97):
        path.write_bytes(raw[:size])
        with pytest.raises(ValueError, match="must be a batch of CIFAR-10"):
            read_image(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.*cifar-10-python.tar.gz"):
        read_image(tmp_path)


@pytest.mark.parametrize("size", [32, 128])
def test_frozen_images_and_labels_are_read_row_by_row(lra: Path, size: int) -> None:
    frozen = np.load(lra / f"pathfinder{size}_layers.npz")
    read = read_pathfinder(lra / f"pathfinder{size}", size, num_levels=256)
    assert read.labels.tolist() == frozen["label"].tolist()
    np.testing.assert_array_equal(read.tokens.reshape(-1, size, size), frozen["image"])
    levels = read_pathfinder(lra / f"pathfinder{size}", size)
    width = 32 if size == 128 else 16
    np.testing.assert_array_equal(levels.tokens, frozen["image"].ravel() // width)
    assert levels.num_tokens == 256 // width


def test_metadata_as_the_generator_leaves_them_are_read_too(lra: Path, tmp_path: Path) -> None:
    folder = copied(lra, tmp_path)
    text = pathfinder_images(folder)
    shutil.copyfile(
        lra / "pathfinder32_metadata_binary_0.npy", folder / "curv_contour_length_14" / "metadata" / "0.npy"
    )
    assert pathfinder_images(folder) == text


def copied(lra: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pathfinder32"
    shutil.copytree(lra / "pathfinder32", folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


LINE = "imgs/0 sample_0.png 0 0 1.0 14 4 2 0.5 1 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINE.replace(" 0 0 1.0", " 0 2 1.0"), "line 1 must have a label of 0 or 1, got '2'"),
        (LINE.replace("0.5 1 1", "0.5"), "line 1 must have 11 fields .*, got 9"),
        (LINE.replace("imgs/0", "../../.."), "must name an image in"),
        (LINE.replace("imgs/0", "/etc"), "must name an image in"),
        (LINE.replace("sample_0.png", "a/b.png"), "must name an image in"),
        (LINE + LINE, "must name each image once, got 2 lines for 1"),
        ("é", "must be ASCII text"),
        ("\x93NUMPY", "must be ASCII text|must hold rows of texts"),
    ],
)
def test_metadata_that_are_damaged_are_refused(lra: Path, tmp_path: Path, text: str, message: str) -> None:
    folder = copied(lra, tmp_path)
    (folder / "curv_contour_length_14" / "metadata" / "0.npy").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_pathfinder(folder, 32)


def test_metadata_that_disagree_with_the_images_are_told(lra: Path, tmp_path: Path) -> None:
    folder = copied(lra, tmp_path)
    image = folder / "curv_contour_length_14" / "imgs" / "0" / "sample_3.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"sample_3.png must be a whole PNG file, got 200 bytes"):
        read_pathfinder(folder, 32)
    image.write_bytes(b"")
    with pytest.raises(ValueError, match=r"sample_3.png must be a whole PNG file, got 0 bytes"):
        read_pathfinder(folder, 32)
    Image.new("L", (31, 32)).save(image)
    with pytest.raises(ValueError, match="it must have 32 x 32 pixels, got 31 x 32"):
        read_pathfinder(folder, 32)
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"there must be an image .*sample_3.png"):
        read_pathfinder(folder, 32)
    shutil.rmtree(folder / "curv_contour_length_14" / "metadata")
    with pytest.raises(FileNotFoundError, match="must hold imgs and metadata"):
        read_pathfinder(folder, 32)
    with pytest.raises(FileNotFoundError, match=r"lra_release.gz"):
        read_pathfinder(folder / "no", 32)


def test_made_images_have_the_layout_of_the_release_and_go_on_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elm_neuro.datasets.lra._pathfinder_blocks.BLOCK", 4)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise Stopped

    with pytest.raises(Stopped):
        make_pathfinder(tmp_path, 10, progress=stop)
    place = tmp_path / "curv_contour_length_14"
    assert [path.name for path in (place / "metadata").iterdir()] == ["0.npy"]
    (place / "imgs" / "1").mkdir()
    (place / "imgs" / "1" / "sample_0.png").write_bytes(b"half of")  # killed in the middle of a block
    make_pathfinder(tmp_path, 10)
    read = read_pathfinder(tmp_path, 32, num_levels=256)
    assert len(read) == 10
    from elm_neuro.datasets.lra import draw_pathfinder

    for number in (0, 5, 9):
        np.testing.assert_array_equal(read.sequence(number), draw_pathfinder(number).image.ravel())
        assert read.labels[number] == draw_pathfinder(number).label
    line = (place / "metadata" / "0.npy").read_text().splitlines()[0]
    assert line.split()[4:] == ["1.0", "14", "4", "2", "0.5", "1", "1"]  # as in the release
    with pytest.raises(ValueError, match="must hold images of"):
        make_pathfinder(tmp_path, 10, seed=1)
    (tmp_path / "generated.json").unlink()
    with pytest.raises(ValueError, match="must be empty or hold images that were generated"):
        make_pathfinder(tmp_path, 10)


def test_whole_images_survive_growth_that_is_stopped_and_those_that_are_gone_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pathfinder(tmp_path, 3)
    images = tmp_path / "curv_contour_length_14" / "imgs" / "0"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in images.iterdir()}

    class Stopped(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("elm_neuro.datasets.lra._pathfinder_blocks.draw_pathfinder", stop)
        with pytest.raises(Stopped):
            make_pathfinder(tmp_path, 5)
    assert len(read_pathfinder(tmp_path, 32)) == 3
    make_pathfinder(tmp_path, 5)
    grown = read_pathfinder(tmp_path, 32, num_levels=256)
    assert {name: ((images / name).read_bytes(), (images / name).stat().st_mtime_ns) for name in before} == before
    make_pathfinder(tmp_path / "at once", 5)
    assert grown.fingerprint == read_pathfinder(tmp_path / "at once", 32, num_levels=256).fingerprint
    (images / "sample_1.png").unlink()
    make_pathfinder(tmp_path, 5)
    assert read_pathfinder(tmp_path, 32, num_levels=256).fingerprint == grown.fingerprint
    (images / "sample_4.png").write_bytes(b"")  # the power failed
    make_pathfinder(tmp_path, 5)
    assert read_pathfinder(tmp_path, 32, num_levels=256).fingerprint == grown.fingerprint
    with pytest.raises(ValueError, match="must hold no more than num_images = 3 images, got 5: another folder"):
        make_pathfinder(tmp_path, 3)
    with FileLock(tmp_path / ".lock"), pytest.raises(BlockingIOError, match="another process is writing into"):
        make_pathfinder(tmp_path, 7)


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    parts = read_digits()
    loaded = sklearn.load_digits()
    assert sum(len(part) for part in parts.values()) == 1797
    rows = {part.sequence(k).tobytes() for part in parts.values() for k in range(len(part))}
    assert rows == {row.astype(np.uint8).tobytes() for row in loaded.data}


def test_fewer_images_than_are_there_in_any_folder_need_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elm_neuro.datasets.lra._pathfinder_blocks.BLOCK", 2)
    make_pathfinder(tmp_path, 5)
    with pytest.raises(ValueError, match="must hold no more than num_images = 4 images, got 5: another folder"):
        make_pathfinder(tmp_path, 4)
    left = [tmp_path / ".generated.7-0123abcd.tmp.json", tmp_path / SUBSET / "metadata" / ".0.7-0123abcd.tmp.npy"]
    for path in left:
        path.touch()
    make_pathfinder(tmp_path, 5)
    assert not any(path.exists() for path in left)


def test_a_full_disk_is_named_with_the_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64), dtype=np.uint8)
    with full_disk(), pytest.raises(OSError, match=r"imgs/0/sample_0\.png cannot be written: File too large"):
        write_pathfinder(tmp_path, noise, [0], [(1.8, 14, 4, 5, 1.5, 2, 1)])
