"""Small files in the format of NeuronIO, pickled as Python 2 did, and a slow reader of it that shares nothing with
ours.
"""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

NUM_SEGMENTS = 639


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]  # the one in Python, whose dispatch can be changed
    """Protocol 2 with Python 2's strings, which are bytes."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_python2_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_python2_string


def pickled(content: Any, *, module: str = "numpy.core") -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(content)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", f"c{module}.multiarray\n".encode())


def made(num_simulations: int = 3, num_steps: int = 400, seed: int = 0, rate: float = 0.004) -> dict[str, Any]:
    """What such a file holds."""
    rng = np.random.default_rng(seed)
    simulations = []
    for _ in range(num_simulations):
        spikes = rng.random((2, NUM_SEGMENTS, num_steps)) < rate
        spikes[:, 3] = False  # a segment without a spike
        lists = [
            {np.int64(i): [np.int64(t) for t in np.flatnonzero(row)] for i, row in enumerate(kind)} for kind in spikes
        ]
        voltage = (-70 + 5 * rng.standard_normal(num_steps)).astype(np.float16)
        voltage[7:8] = 31.0
        simulations.append(
            {
                "recordingTimeHighRes": np.arange(8 * num_steps, dtype=np.float32),
                "dendriticVoltagesLowRes": rng.standard_normal((9, num_steps)).astype(np.float16),
                "exInputSpikeTimes": lists[0],
                "inhInputSpikeTimes": lists[1],
                "outputSpikeTimes": np.array([0.3, 7.5, 8.4, num_steps - 0.25], dtype=np.float16)[
                    : rng.integers(0, 5) if num_steps > 8 else 1
                ],
                "somaVoltageLowRes": voltage,
            }
        )
    return {
        "Params": {"totalSimDurationInSec": num_steps / 1000, "names": ["a"] * 5},
        "Results": {"listOfSingleSimulationDicts": simulations},
    }


def write(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else pickled(content, **options))
    return path


def read_slowly(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Dense frames (time, 1278), output spikes (time,) and voltages (time,) of each simulation, one number at a
    time.
    """
    with path.open("rb") as file:
        content = pickle.load(file, encoding="latin1")
    found = []
    for simulation in content["Results"]["listOfSingleSimulationDicts"]:
        voltage = simulation["somaVoltageLowRes"]
        frames = np.zeros((len(voltage), 2 * NUM_SEGMENTS), dtype=np.int8)
        for key, first, sign in (("exInputSpikeTimes", 0, 1), ("inhInputSpikeTimes", NUM_SEGMENTS, -1)):
            for segment, times in simulation[key].items():
                for time in times:
                    frames[int(time), first + int(segment)] = sign
        spikes = np.zeros(len(voltage), dtype=bool)
        for time in simulation["outputSpikeTimes"]:
            spikes[int(float(time) - 0.5)] = True
        found.append({"frames": frames, "spikes": spikes, "soma": voltage})
    return found
