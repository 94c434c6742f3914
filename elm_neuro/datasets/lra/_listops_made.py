"""ListOps made here: 100,000 sequences from a seed, on several processes, taken up again where it was stopped, in one
small file.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from elm_neuro.datasets._processes import worker_pool
from elm_neuro.datasets.lra._listops_trees import (
    FIRST_OPERATOR,
    OPERATORS,
    TOKENS,
    ListOpsSettings,
    accepted,
    answers,
    grown,
)
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.files import read_file, write_whole

FORMAT = "elm_neuro listops 1"
BLOCK = 1 << 13  # trees that are grown or refused together
CHUNK = 256  # trees whose nodes fit into a processor's cache
MAX_EMPTY = 64  # blocks one after the other that give nothing new, after which it is given up
MAX_BYTES = 1 << 28
CHECKED = 1 << 19  # tokens
Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]  # sequences that are there, of how many


@dataclass(frozen=True, eq=False)
class MadeListOps:
    """Sequences of ListOps as the numbers of the trees that they are printed from: :func:`make_listops`.

    Args:
        settings: which trees there are.
        trees: their numbers, (num_samples,), rising.
        answers: what they evaluate to, (num_samples,), uint8.
    """

    settings: ListOpsSettings
    trees: Ints
    answers: NDArray[np.uint8]

    def sequences(self, start: int = 0, stop: int | None = None) -> TokenSequences:
        """Sequences `start` to `stop` (exclusive), grown from their trees; groups are root operators, tokens those of
        `TOKENS`.
        """
        trees, labels = self.trees[start:stop], self.answers[start:stop]
        parts = [grown(self.settings, trees[i : i + CHUNK]) for i in range(0, trees.size, CHUNK)]
        tokens = np.concatenate([part for part, _ in parts] or [np.empty(0, dtype=np.uint8)])
        lengths = np.concatenate([np.diff(indptr) for _, indptr in parts] or [np.empty(0, dtype=np.int64)])
        indptr = np.concatenate(([0], np.cumsum(lengths)))
        groups = tokens[indptr[:-1]].astype(np.int64) - FIRST_OPERATOR
        return TokenSequences(
            tokens, indptr, labels.astype(np.int64), len(TOKENS), 10, np.maximum(groups, -1), OPERATORS
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as one file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        tensors: dict[str, NDArray[Any]] = {
            "trees": self.trees.astype(np.int64),
            "answers": self.answers.astype(np.uint8),
        }
        settings = json.dumps(asdict(self.settings), sort_keys=True)
        metadata = {"format": FORMAT, "settings": settings, "sha256": _checksum(settings, self.trees, self.answers)}
        write_whole({Path(path): safetensors.numpy.save(tensors, metadata)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MadeListOps:
        """Read such a file; nothing is grown yet.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or no such file.
        """
        content = read_file(Path(path), MAX_BYTES)
        try:
            tensors = safetensors.numpy.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            metadata = header.get("__metadata__") or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"format must be {FORMAT!r}, got {metadata.get('format')!r}")
            settings = ListOpsSettings(**json.loads(metadata["settings"]))
            trees, made = tensors["trees"], tensors["answers"]
            if trees.dtype != np.int64 or made.dtype != np.uint8 or trees.ndim != 1 or trees.shape != made.shape:
                raise ValueError(f"trees and answers must be as many int64 and uint8, got {trees.shape}, {made.shape}")
            if (np.diff(trees, prepend=-1) <= 0).any() or (made > 9).any() or (trees >= 2**43).any():
                raise ValueError("trees must rise from 0 below 2**43, and answers be digits")
            if "sha256" not in metadata:
                _check_first(settings, trees, made)
            elif (checksum := _checksum(metadata["settings"], trees, made)) != metadata["sha256"]:
                raise ValueError(f"content must have the SHA-256 {metadata['sha256'][:12]}..., got {checksum[:12]}...")
        except (ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path} must be a whole file of elm-neuro lra generate listops: {error}") from error
        return cls(settings, trees, made)

    def __len__(self) -> int:
        return len(self.trees)


def make_listops(
    num_samples: int = 100_000,
    settings: ListOpsSettings | None = None,
    *,
    num_workers: int = 1,
    parts: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> MadeListOps:
    """The first `num_samples` different sequences of the trees 0, 1, 2, ... that have an allowed length.

    What is made depends on `settings` and `num_samples` alone, not on the number of processes; more samples go on where
    fewer end. The published data set keeps 100,000 and cuts them, in no particular order, into 96,000 to train, 2,000
    to validate and 2,000 to test.

    Args:
        num_samples: at least 1.
        settings: None for the published ones with seed 0.
        num_workers: processes.
        parts: folder that keeps what is made, block by block: called again after it was stopped, it goes on there.
        progress: called as ``progress(done, num_samples)``.

    Raises:
        ValueError: an argument is out of range, or so few trees are accepted that the sequences would not come
            together.
        OSError: `parts` cannot be written.

    >>> made = make_listops(3, ListOpsSettings(max_depth=5, max_args=5, min_length=10, max_length=60))
    >>> made.trees, made.answers
    (array([ 2,  4, 43]), array([1, 7, 4], dtype=uint8))
    """
    settings = settings or ListOpsSettings()
    if num_samples < 1 or num_workers < 1:
        raise ValueError(f"num_samples and num_workers must be at least 1, got {num_samples} and {num_workers}")
    folder = None if parts is None else Path(parts)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    trees: list[int] = []
    made: list[int] = []
    empty = 0
    with nullcontext() if num_workers == 1 else worker_pool(num_workers) as pool:
        for block in _blocks(settings, folder, pool, 2 * num_workers):
            before = len(trees)
            for tree, answer, digest in zip(*block, strict=True):
                if digest not in seen and len(trees) < num_samples:
                    seen.add(digest)
                    trees.append(int(tree))
                    made.append(int(answer))
            empty = 0 if len(trees) > before else empty + 1
            if progress is not None:
                progress(len(trees), num_samples)
            if len(trees) == num_samples:
                break
            if empty == MAX_EMPTY:
                raise ValueError(
                    f"settings must give {num_samples} different sequences, got {len(trees)} and none in the last "
                    f"{MAX_EMPTY * BLOCK} trees of {settings}"
                )
    return MadeListOps(settings, np.array(trees, dtype=np.int64), np.array(made, dtype=np.uint8))


def _checksum(settings: str, trees: Ints, made: NDArray[np.uint8]) -> str:
    """SHA-256, in hex, of settings as they stand in the file, a zero byte, trees as int64, and answers."""
    return sha256(settings.encode() + b"\0" + trees.astype("<i8").tobytes() + made.astype("u1").tobytes()).hexdigest()


def _check_first(settings: ListOpsSettings, trees: Ints, made: NDArray[np.uint8]) -> None:
    """Grow the first trees of a file without a checksum, as of earlier versions: 262 with the usual settings."""
    first = trees[: CHECKED // settings.max_length]
    if (np.diff(grown(settings, first)[1]) <= settings.min_length).any():
        raise ValueError(f"sequences must have more than {settings.min_length} tokens, got one that has not")
    if (answers(settings, first) != made[: first.size]).any():
        raise ValueError("answers must be those of the trees, got others")


Block = tuple[Ints, NDArray[np.uint8], list[bytes]]


def _blocks(settings: ListOpsSettings, folder: Path | None, pool: Executor | None, num_ahead: int) -> Iterator[Block]:
    """What the trees of block 0, 1, 2, ... give, some of them made ahead by other processes."""
    if pool is None:
        for number in count():
            yield _block(settings, folder, number)
    else:
        pending = deque(pool.submit(_block, settings, folder, number) for number in range(num_ahead))
        for number in count(num_ahead):
            yield pending.popleft().result()
            pending.append(pool.submit(_block, settings, folder, number))


def _block(settings: ListOpsSettings, folder: Path | None, number: int) -> Block:
    """Trees of a block that are accepted, their answers, and what tells their sequences apart."""
    path = None if folder is None else folder / f"{_key(settings)}-{number:06d}.safetensors"
    if path is not None and path.exists():
        try:
            before = safetensors.numpy.load(read_file(path, MAX_BYTES))
            return before["trees"], before["answers"], [row.tobytes() for row in before["digests"]]
        except (ValueError, KeyError, safetensors.SafetensorError):
            path.unlink()  # half of a block, or none of ours: made again
    trees = accepted(settings, number * BLOCK, (number + 1) * BLOCK)
    results, digests = [], []
    for start in range(0, trees.size, CHUNK):
        chunk = trees[start : start + CHUNK]
        results.append(answers(settings, chunk))
        tokens, indptr = grown(settings, chunk)
        bounds = zip(indptr[:-1], indptr[1:], strict=True)
        digests += [blake2b(tokens[i:j].tobytes(), digest_size=16).digest() for i, j in bounds]
    made = np.concatenate(results or [np.empty(0, dtype=np.int64)]).astype(np.uint8)
    if path is not None:
        rows = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)
        tensors: dict[str, NDArray[Any]] = {"trees": trees, "answers": made, "digests": rows}
        write_whole({path: safetensors.numpy.save(tensors)})
    return trees, made, digests


def _key(settings: ListOpsSettings) -> str:
    values: dict[str, Any] = asdict(settings)
    return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
