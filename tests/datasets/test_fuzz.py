"""Five thousand damaged files of each format: read, or refused with a ValueError; no crash, no hang, no gigabyte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from elm_neuro import ELM
from elm_neuro.datasets import SpikeRecordings, convert_neuronio, write_shd
from tests.checkpoints.upstream_files import Upstream
from tests.datasets import fuzz_worker
from tests.datasets.neuronio.neuronio_files import made, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def shd(folder: Path) -> list[Path]:
    """As we write it, and in chunks with gzip."""
    rng = np.random.default_rng(0)
    indptr = np.array([0, 50, 50, 120, 200])
    recordings = SpikeRecordings(
        rng.integers(0, 10**6, 200), rng.integers(0, 700, 200), indptr, np.arange(4), np.arange(4)
    )
    one, two = folder / "one.h5", folder / "two.h5"
    write_shd(one, recordings)
    with h5py.File(one) as source, h5py.File(two, "w") as target:
        for key in ("spikes/times", "spikes/units", "labels", "extra/speaker"):
            options = {"chunks": (3,), "compression": "gzip", "shuffle": True, "maxshape": (None,)}
            target.create_dataset(key, data=source[key][()], dtype=source[key].dtype, **options)
    return [one, two]


def pickles(folder: Path) -> list[Path]:
    """Few instructions: most keys are plain numbers, and both kinds of synapse are one dict."""
    content = made(1, 60, rate=0.02)
    (one,) = content["Results"]["listOfSingleSimulationDicts"]
    spikes = {key: one["exInputSpikeTimes"][key] if key < 40 else [] for key in range(639)}
    one["exInputSpikeTimes"] = one["inhInputSpikeTimes"] = {
        np.int64(key) if key < 20 else key: times for key, times in spikes.items()
    }
    return [write(folder / "sim__one.p", content)]


def converted(folder: Path) -> list[Path]:
    write(folder / "in" / "sim__one.p", made(2, 60, rate=0.002))
    (name,) = convert_neuronio([folder / "in"], folder)
    return [folder / name]


def events(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    arrays = np.zeros(50, fuzz_worker.EVENT)
    arrays["t"], arrays["x"], arrays["p"] = rng.integers(0, 100_000, 50), rng.integers(0, 700, 50), 1.0
    arrays["seconds"] = rng.random(50) / 10
    (folder / "events").write_bytes(arrays.tobytes())
    return [folder / "events"]


def checkpoint(folder: Path) -> list[Path]:
    """Of the authors' format; the damaged ones get the same configuration beside them."""
    for place in (folder, folder / "damaged"):
        Upstream().write(place)
    return [folder / "neuronio_best_model_state.pt"]


def saved(folder: Path) -> list[Path]:
    neuron = ELM(4, 2, num_memory=3)
    for place in (folder, folder / "damaged"):
        neuron.save_pretrained(place)
    return [folder / "model.safetensors"]


FILES = {
    "shd": shd,
    "pickle": pickles,
    "converted": converted,
    "events": events,
    "checkpoint": checkpoint,
    "saved": saved,
}


@pytest.mark.parametrize("form", FILES)
def test_damaged_files_are_read_or_refused_within_bounds(tmp_path: Path, form: str) -> None:
    (tmp_path / "damaged").mkdir()
    command = [sys.executable, fuzz_worker.__file__, form, *FILES[form](tmp_path), tmp_path / "damaged"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr[-2000:]}"  # -14: it took longer than 5 s
    outcome = json.loads(done.stdout)
    assert sum(outcome.values()) == fuzz_worker.NUM_FILES and min(outcome.values()) > 100
