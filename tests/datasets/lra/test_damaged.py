"""Files with some changed, missing or added bytes: read, or refused with a ValueError."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from elm_neuro.datasets.lra import ListOpsSettings, MadeListOps, make_listops, write_listops
from elm_neuro.datasets.lra._images import read_batch
from elm_neuro.datasets.lra._listops_file import read_expressions
from elm_neuro.datasets.lra._pathfinder_files import pathfinder_images
from elm_neuro.datasets.lra._png import read_png
from elm_neuro.datasets.lra._retrieval import read_pairs
from tests.datasets.lra.test_images import cifar

SMALL = ListOpsSettings(max_depth=4, max_args=4, min_length=5, max_length=30)
Case = tuple[Path, Callable[[], object]]


def cases(lra: Path, folder: Path) -> dict[str, Case]:
    cifar(folder / "cifar", num=2)
    made = make_listops(12, SMALL)
    made.save(folder / "made")
    write_listops(folder / "listops.tsv", made.sequences())
    shutil.copyfile(lra / "tsv_data" / "new_aan_pairs.eval.tsv", folder / "pairs.tsv")
    shutil.copyfile(lra / "pathfinder32/curv_contour_length_14/imgs/0/sample_0.png", folder / "image.png")
    metadata = folder / "pathfinder" / "metadata" / "0.npy"
    metadata.parent.mkdir(parents=True)
    (folder / "pathfinder" / "imgs").mkdir()
    shutil.copyfile(lra / "pathfinder32_metadata_binary_0.npy", metadata)
    return {
        "pickle": (folder / "cifar" / "data_batch_1", lambda: read_batch(folder / "cifar" / "data_batch_1")),
        "made": (folder / "made", lambda: MadeListOps.load(folder / "made")),
        "listops": (folder / "listops.tsv", lambda: read_expressions(folder / "listops.tsv")),
        "pairs": (folder / "pairs.tsv", lambda: read_pairs(folder / "pairs.tsv")),
        "quoted pairs": (folder / "pairs.tsv", lambda: read_pairs(folder / "pairs.tsv", quoting=True)),
        "png": (folder / "image.png", lambda: read_png(folder / "image.png", 32, "L")),
        "metadata": (metadata, lambda: pathfinder_images(folder / "pathfinder")),
    }


def damaged(raw: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed near the beginning or anywhere, a piece cut out, doubled or put in."""
    content = bytearray(raw)
    for _ in range(int(random.integers(1, 5))):
        end = min(len(content), 300) if random.random() < 0.5 else len(content)
        place, length = int(random.integers(0, max(end, 1))), int(random.integers(1, 9))
        match int(random.integers(4)):
            case 0 if content:
                content[place % len(content)] = int(random.integers(256))
            case 1:
                del content[place : place + length]
            case 2:
                content[place:place] = content[place : place + length]
            case _:
                content[place:place] = random.bytes(length)
    return bytes(content)


def check(lra: Path, folder: Path, name: str, count: int) -> None:
    path, read = cases(lra, folder)[name]
    raw, random = path.read_bytes(), np.random.default_rng(0)
    read()
    messages: list[str] = []
    for _ in range(count):
        path.write_bytes(damaged(raw, random))
        try:
            read()
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > count // 10
    assert all(str(path.parent.parent) in message for message in messages)  # it is named


NAMES = ["pickle", "made", "listops", "pairs", "quoted pairs", "png", "metadata"]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(lra: Path, tmp_path: Path, name: str) -> None:
    check(lra, tmp_path, name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_damaged_files_are_read_or_refused(lra: Path, tmp_path: Path, name: str) -> None:
    check(lra, tmp_path, name, 4000)
