"""What processes share: copies have numbers of their own that their workers see move, files are mapped anew, workers
end with the process that started them.
"""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from elm_neuro.datasets import NeuronIODataset, SHDAdding, Simulations, SpikeRecordings, TextStreams, read_enwik8
from elm_neuro.datasets._processes import SharedNumber, with_maps, without_maps, worker_pool
from elm_neuro.datasets.lra import TokenDataset, TokenSequences, cached, content_key

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda dataset: pickle.loads(pickle.dumps(dataset)),
}


def pairs() -> SHDAdding:
    recordings = SpikeRecordings(np.arange(20) * 1000, np.arange(20), np.arange(21), np.arange(20), np.arange(20) // 4)
    return SHDAdding(recordings, num_samples=6)


def windows() -> NeuronIODataset:
    rng = np.random.default_rng(0)
    simulation = Simulations(
        np.arange(401), rng.integers(0, 1278, 400).astype(np.uint16), np.zeros((1, 400)), np.array([0, 0]), np.arange(0)
    )
    return NeuronIODataset([simulation], num_windows=6, window_ms=10, skip_ms=4)


def items(batches: Any) -> list[bytes]:
    return [batch[0].channel.numpy().tobytes() for batch in batches]


DATASETS: dict[str, Callable[[], Any]] = {"SHD-Adding": pairs, "NeuronIO": windows}


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("way", COPIES)
def test_a_new_epoch_of_a_copy_reaches_its_workers_and_leaves_the_original(kind: str, way: str) -> None:
    original = DATASETS[kind]()
    dataset, expected = COPIES[way](original), DATASETS[kind]()
    loader = DataLoader(dataset, batch_size=3, num_workers=1, persistent_workers=True, collate_fn=dataset.collate)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        expected.set_epoch(epoch)
        assert items(loader) == items(DataLoader(expected, batch_size=3, collate_fn=dataset.collate))
    assert (original.epoch, dataset.epoch) == (0, 5)


@pytest.mark.slow
@pytest.mark.parametrize("way", [None, *COPIES])
def test_a_spawned_worker_sees_the_epoch_of_its_parent_move(way: str | None) -> None:
    dataset = pairs() if way is None else COPIES[way](pairs())
    options: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "spawn"}
    loader = DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=dataset.collate, **options)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        assert items(loader) == items(DataLoader(dataset, batch_size=3, collate_fn=dataset.collate))


def test_a_copy_of_a_number_is_another() -> None:
    number = SharedNumber()
    number.set(3)
    for way in COPIES.values():
        other = way(number)
        other.set(4)
        assert (int(number), int(other)) == (3, 4)


@pytest.fixture
def sequences(tmp_path: Path) -> TokenSequences:
    """Of 200 kB, mapped from a cache."""
    rows = np.arange(200_000, dtype=np.int64).reshape(20, 10_000) % 7
    made = TokenSequences.of(list(rows), labels=np.arange(20) % 2, num_tokens=7, num_classes=2)
    return cached("t", content_key([], {}), lambda: {"train": made}, tmp_path / "cache")["train"]


@pytest.fixture
def streams(tmp_path: Path) -> TextStreams:
    """The last tenth of a text of 200 kB, mapped."""
    (tmp_path / "text").write_bytes(np.arange(200_000, dtype=np.uint32).astype(np.uint8).tobytes())
    text = read_enwik8(tmp_path / "text", num_bytes=None)
    return TextStreams(text[180_001:], np.arange(256, dtype=np.uint8), batch_size=4, num_steps=50)


@pytest.fixture
def mapped(request: pytest.FixtureRequest) -> Dataset[Any]:
    made = request.getfixturevalue(request.param)
    return TokenDataset(made) if request.param == "sequences" else made


@pytest.mark.parametrize("mapped", ["sequences", "streams"], indirect=True)
def test_a_mapped_data_set_is_pickled_without_its_file(mapped: Any) -> None:
    assert len(pickle.dumps(mapped)) < 10_000
    for way in (*COPIES.values(), copy.copy):
        again = way(way(mapped))
        assert all((ours == theirs).all() for ours, theirs in zip(again[2], mapped[2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mapped", ["sequences", "streams"], indirect=True)
def test_a_spawned_worker_maps_the_file_itself(mapped: Any) -> None:
    found = list(DataLoader(mapped, batch_size=None, num_workers=1, multiprocessing_context="spawn"))
    for i, item in enumerate(found):
        assert all((ours == theirs).all() for ours, theirs in zip(item, mapped[i], strict=True))


def test_what_is_not_one_stretch_of_a_file_is_pickled_whole(tmp_path: Path, sequences: TokenSequences) -> None:
    np.save(tmp_path / "a.npy", np.arange(1000))
    writable, copied = np.load(tmp_path / "a.npy", mmap_mode="r+"), np.load(tmp_path / "a.npy", mmap_mode="c")
    readable = np.load(tmp_path / "a.npy", mmap_mode="r")
    for array in (writable, copied, readable[::2], readable[:0], readable + 1, np.arange(3)):
        assert without_maps({"a": array}) == {"a": array}
    np.testing.assert_array_equal(with_maps(without_maps({"a": readable[10:20][5:]}))["a"], np.arange(15, 20))
    before = sequences.fingerprint
    for path in (tmp_path / "cache").rglob("*.npy"):
        path.unlink()  # by somebody who clears caches
    assert pickle.loads(pickle.dumps(sequences)).fingerprint == before


def test_workers_end_at_once_where_the_block_fails() -> None:
    start, waiting = time.monotonic(), []

    def interrupted() -> None:
        with worker_pool(1) as pool:
            waiting.extend(pool.submit(time.sleep, 60) for _ in range(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 20
    assert all(future.done() for future in waiting)


SCRIPT = """
import signal, sys, time
from elm_neuro.datasets._processes import worker_pool
from elm_neuro.datasets.lra import ListOpsSettings, _pathfinder_blocks, make_listops, make_pathfinder

def report(done, total):
    if done:
        print(done, flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests in the background has it ignored
    if sys.argv[1] == "pathfinder":
        _pathfinder_blocks.BLOCK = 2
        make_pathfinder(sys.argv[2], 2000, num_workers=2, progress=report)
    elif sys.argv[1] == "listops":
        make_listops(10_000_000, ListOpsSettings(5, 5, 10, 60), num_workers=2, parts=sys.argv[2], progress=report)
    else:
        with worker_pool(2) as pool:
            waiting = [pool.submit(time.sleep, seconds) for seconds in (0, 600, 600, 600)]
            print(waiting[0].result(), flush=True)
            waiting[1].result()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("sleep", signal.SIGINT),
        *((kind, signal.SIGKILL) for kind in ("sleep", "pathfinder", "listops")),
    ],
)
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, kind: str, how: signal.Signals) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    arguments = [sys.executable, str(tmp_path / "script.py"), kind, str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the workers are at work
        process.send_signal(how)  # to this process alone, as Ctrl-C in a terminal is not
        try:
            process.communicate(timeout=30)  # until nobody has its output open any more
        finally:
            process.kill()
    assert process.returncode in (-how, 1)
