"""Where the files of Long Range Arena come from, for messages; nothing is downloaded by itself."""

from __future__ import annotations

import os
from pathlib import Path

from elm_neuro.files import listing

RELEASE = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
PLACES = {
    "ListOps": (RELEASE, "lra_release/listops-1000 with basic_train.tsv, basic_val.tsv and basic_test.tsv"),
    "Retrieval": (RELEASE, "lra_release/tsv_data with new_aan_pairs.train.tsv, .eval.tsv and .test.tsv"),
    "Pathfinder": (RELEASE, "lra_release/pathfinder32 or pathfinder128 with curv_contour_length_14/imgs and /metadata"),
    "Text": ("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", "aclImdb with train and test"),
    "Image": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "cifar-10-batches-py with data_batch_1 to data_batch_5 and test_batch",
    ),
}


def check_folder(folder: str | os.PathLike[str], task: str) -> None:
    """Say where the files of a task come from, where their folder is not there.

    Raises:
        FileNotFoundError: it does not exist.
        NotADirectoryError: it is no folder.
    """
    path = Path(folder)
    if not path.exists():
        raise FileNotFoundError(f"{task} must be in {path}, which does not exist: {_how(task, path)}")
    if not path.is_dir():
        raise NotADirectoryError(f"{task} must be in a folder, got {path}")


def check_file(file: str | os.PathLike[str], task: str) -> None:
    """Say where a file of a task comes from, where it is not there.

    Raises:
        FileNotFoundError: it does not exist.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"{task} needs {path}, got {listing(path.parent)} in {path.parent}: {_how(task, path.parent)}"
        )


def _how(task: str, place: Path) -> str:
    address, content = PLACES[task]
    return f"download {address}, unpack it, and put {content} at {place} or say where it is"
