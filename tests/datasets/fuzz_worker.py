"""Reads thousands of damaged files, each within 5 s and 1 GiB.

A process of its own, because a reader that fails may take it down. Called by test_fuzz.py as
``python fuzz_worker.py FORMAT BASE... FOLDER``; prints what came of them as JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import resource
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elm_neuro import SpikeEvents
from elm_neuro.checkpoints import from_pretrained, from_upstream
from elm_neuro.datasets import ToRaster, open_simulations, read_shd, read_simulation_file
from elm_neuro.datasets.neuronio._store import check_content

NUM_FILES, SECONDS, MEMORY = 5000, 5, 1 << 30
DANGEROUS = (0, 1, 255, 2**15, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
EVENT = np.dtype([("t", "<i8"), ("x", "<i4"), ("p", "<f4"), ("seconds", "<f4")])


def read_converted(path: Path) -> None:
    simulations = open_simulations(path)
    check_content(simulations)
    simulations.rows(0), simulations.spikes(len(simulations) - 1)


def read_event_arrays(path: Path) -> None:
    raw = path.read_bytes()
    events = np.frombuffer(raw[: len(raw) // EVENT.itemsize * EVENT.itemsize], EVENT).copy()
    ToRaster(1000, 100_000, 700)(events[["t", "x", "p"]])
    sizes = {"num_steps": 100, "num_channels": 700}
    whole = SpikeEvents.from_arrays(events["t"], events["x"], events["p"], delta_t=1000, **sizes)
    parts = SpikeEvents.from_arrays(events["seconds"], events["x"], delta_t=0.001, **sizes)
    assert torch.isfinite(parts.to_dense()).all()
    SpikeEvents.collate([whole, parts]).steps(3, 50)


def read_checkpoint(path: Path) -> None:
    """Of the authors' format, with the configuration beside it."""
    from_upstream(path.parent)


def read_saved(path: Path) -> None:
    """Of our own, with the checksum that a stranger would have written."""
    config = json.loads((path.parent / "config.json").read_text())
    config["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "config.json").write_text(json.dumps(config))
    from_pretrained(path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "shd": read_shd,
    "pickle": read_simulation_file,
    "converted": read_converted,
    "events": read_event_arrays,
    "checkpoint": read_checkpoint,
    "saved": read_saved,
}


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """`whole` with one to four changes: of bytes, of numbers to what is dangerous, of pieces lost or
    doubled.
    """
    raw = bytearray(whole)
    for _ in range(int(rng.integers(1, 5))):
        at, length = int(rng.integers(len(raw))), int(rng.integers(1, 64))
        number = (*DANGEROUS, len(raw))[int(rng.integers(len(DANGEROUS) + 1))]
        other = int(rng.integers(len(raw)))
        match int(rng.integers(8)):
            case 0:
                raw[at] ^= 1 << int(rng.integers(8))
            case 1:
                raw[at] = int(rng.integers(256))
            case 2:
                raw[at : at + 8] = number.to_bytes(8, "little")[: len(raw) - at]
            case 3:
                raw[at : at + 4] = (number % 2**32).to_bytes(4, "little")[: len(raw) - at]
            case 4:
                raw[at : at + length] = raw[other : other + length]
            case 5:
                del raw[at : at + length]
            case 6:
                raw[at:at] = rng.bytes(length)
            case _ if rng.random() < 0.2:
                del raw[at:]
        raw = raw or bytearray(b"\0")
    return bytes(raw)


def damaged_inside(whole: bytes, rng: np.random.Generator) -> bytes:
    """A zip with one to three of its records damaged and the checksums right."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    names = [name for name, _ in records]
    chosen = rng.choice(names, int(rng.integers(1, 4)))
    if rng.random() < 0.5:  # the instructions are what believes numbers
        chosen = [name for name in names if name.endswith("data.pkl")]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, record in records:
            archive.writestr(name, damaged(record or b"0", rng) if name in chosen else record)
    return content.getvalue()


def main(form: str, *arguments: str) -> None:
    *bases, folder = map(Path, arguments)
    wholes = [base.read_bytes() for base in bases]
    path, outcome = Path(folder, bases[0].name), {"read": 0, "refused": 0}
    READERS[form](bases[0])  # what is loaded at first use is no file's fault
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for index in range(NUM_FILES):
        rng = np.random.default_rng((7, index))
        damage = damaged_inside if form == "checkpoint" and index % 4 else damaged
        path.write_bytes(damage(wholes[index % len(wholes)], rng))
        signal.alarm(SECONDS)  # ends the process, wherever it is
        try:
            READERS[form](path)
            outcome["read"] += 1
        except (ValueError, FileNotFoundError, TypeError) as error:
            if isinstance(error.__cause__, MemoryError) or (isinstance(error, TypeError) and form != "events"):
                raise
            outcome["refused"] += 1
        signal.alarm(0)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
