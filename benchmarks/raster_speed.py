"""ToRaster against tonic's ToFrame, and samples per second of the SHD-Adding loader, each behind a check that the
counts are equal.

    python benchmarks/raster_speed.py [--upstream CHECKOUT] [--file SHD.h5] [--repeats 15] [--json FILE] [--smoke]

Both binnings run in turn on the same samples of 8000 events; times are medians of wall time a sample on one thread.
Ends with status 1 where ToRaster is less than 10 times (1 and 2 ms) or 5 times (10 ms) as fast. With ``--upstream``, a
checkout of the authors' repository (github.com/AaronSpieler/elmneuron at 52e68a6), their SHD-Adding loader runs beside
ours, in turn, on the same pairs. Without ``--file`` the spikes are made up: uniform in time and channel, on the
millisecond grid of the files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tonic
import torch
from arguments import count, writable
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

import elm_neuro
from elm_neuro.adapters import tonic as face
from elm_neuro.datasets import SHDAdding, SpikeRecordings, ToRaster, UpstreamPairing, read_shd

BARS = {1000: 10.0, 2000: 10.0, 10_000: 5.0}  # step in microseconds: least ratio
BATCH_SIZE = 8  # the authors'


def made_up(num_samples: int, num_events: int) -> SpikeRecordings:
    rng = np.random.default_rng(0)
    seconds = rng.random((num_samples, num_events)).astype(np.float16).astype(np.float64)
    times = np.sort((seconds * 1e6).astype(np.int64), axis=1).ravel()
    indptr = np.arange(num_samples + 1) * num_events
    return SpikeRecordings(
        times, rng.integers(0, 700, times.size), indptr, np.arange(num_samples) % 20, np.arange(num_samples) % 10
    )


def tonic_events(recordings: SpikeRecordings, num_samples: int) -> list[np.ndarray]:
    dataset = face.SHD(recordings)
    samples = [dataset[i][0] for i in range(num_samples)]
    return [events[events["t"] < 1_000_000] for events in samples]


def rasters(samples: list[np.ndarray], bin_us: int, repeats: int) -> dict[str, list[float]]:
    ours = ToRaster(bin_us, axes="tpc")
    theirs = tonic.transforms.ToFrame(sensor_size=(700, 1, 1), time_window=bin_us, start_time=0, end_time=1_000_000)
    for events in samples:
        if not np.array_equal(ours(events), theirs(events)):
            raise SystemExit(f"ToRaster and ToFrame differ at {bin_us} microseconds: no speed is reported")
    times: dict[str, list[float]] = {"ToFrame": [], "ToRaster": []}
    for _ in range(repeats):
        for events in samples:
            for name, run in (("ToFrame", theirs), ("ToRaster", ours)):
                start = time.perf_counter()
                run(events)
                times[name].append(time.perf_counter() - start)
    return times


def authors_loader(checkout: Path, recordings: SpikeRecordings, num_batches: int) -> Any:
    if not (checkout / "src/shd/shd_data_loader.py").is_file():
        raise SystemExit(
            "--upstream must be a checkout of the authors' repository, found no src/shd/shd_data_loader.py in "
            f"{checkout}"
        )
    sys.path.insert(0, str(checkout))
    loader = importlib.import_module("src.shd.shd_data_loader")
    spikes = [recordings.sample(i) for i in range(len(recordings))]
    content = {"times": [times / 1e6 for times, _ in spikes], "units": [units for _, units in spikes]}
    return loader.SHDAdding(content, recordings.labels, BATCH_SIZE, 10, batches_per_epoch=num_batches, shuffle=False)


def loaders(
    recordings: SpikeRecordings, num_batches: int, upstream: Path | None
) -> dict[str, Callable[[], Iterator[Any]]]:
    options: dict[str, Any] = {
        "num_samples": num_batches * BATCH_SIZE,
        "pairing": UpstreamPairing(BATCH_SIZE, valid_fraction=0.0),
    }
    frames, events = (SHDAdding(recordings, output=output, **options) for output in ("frames", "events"))
    as_tonic = face.SHDAdding(recordings, bin_us=10_000, **options)
    runs: dict[str, Callable[[], Iterator[Any]]] = {
        "SHDAdding, events": lambda: iter(DataLoader(events, BATCH_SIZE, collate_fn=SHDAdding.collate)),
        "SHDAdding, frames": lambda: iter(DataLoader(frames, BATCH_SIZE, collate_fn=SHDAdding.collate)),
        "tonic face, rasters": lambda: iter(DataLoader(as_tonic, BATCH_SIZE)),
    }
    if upstream is not None:
        theirs = authors_loader(upstream, recordings, num_batches)
        runs = {"authors' loader": lambda: iter(theirs), **runs}
    expected = [batch[0] for batch in runs["SHDAdding, frames"]()]
    for name, run in runs.items():
        for k, batch in enumerate(run()):
            x = batch[0].to_dense() if isinstance(batch[0], elm_neuro.SpikeEvents) else batch[0]
            if not torch.equal(x, expected[k]):
                raise SystemExit(f"batch {k} of {name} differs from that of SHDAdding: no speed is reported")
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--file", type=Path, help="an SHD-format file for the loaders")
    parser.add_argument("--repeats", type=count, default=15)
    parser.add_argument("--json", type=writable, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="few small samples, in seconds; ratios are not judged")
    args = parser.parse_args()
    torch.set_num_threads(1)
    num_samples, num_events, num_batches = (4, 300, 2) if args.smoke else (20, 8000, 25)
    repeats = 2 if args.smoke else args.repeats

    console = Console()
    made = made_up(num_samples, num_events)
    samples = tonic_events(made, num_samples)
    settings = (
        f"tonic {tonic.__version__}, numpy {np.__version__}, torch {torch.__version__}, {platform.machine()}, 1 thread"
    )
    table = Table(
        "step",
        "ToFrame ms",
        "ToRaster ms",
        "ratio",
        "asked for",
        title=f"{num_events} events to (time, 700); {settings}",
    )
    results: dict[str, Any] = {}
    enough = True
    for bin_us, bar in BARS.items():
        times = rasters(samples, bin_us, repeats)
        median = {name: statistics.median(values) for name, values in times.items()}
        ratio = median["ToFrame"] / median["ToRaster"]
        enough &= ratio >= bar or args.smoke
        table.add_row(
            f"{bin_us / 1000:g} ms",
            f"{1e3 * median['ToFrame']:.3f}",
            f"{1e3 * median['ToRaster']:.3f}",
            f"{ratio:.1f}x",
            f"{bar:g}x",
        )
        results[f"raster {bin_us}"] = {"seconds": times, "ratio": ratio}
    console.print(table)

    recordings = read_shd(args.file) if args.file else made_up(max(num_samples, 40), num_events)
    runs = loaders(recordings, num_batches, args.upstream)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 if args.smoke else max(1, repeats // 3)):
        for name, run in runs.items():
            start = time.process_time()
            for _ in run():
                pass
            seconds[name].append(time.process_time() - start)
    table = Table(
        "loader",
        "pairs/s",
        title=(
            f"SHD-Adding, batches of {BATCH_SIZE}, 10 ms, {args.file or f'digits of {num_events} events'}; no workers"
        ),
    )
    for name, values in seconds.items():
        table.add_row(name, f"{num_batches * BATCH_SIZE / statistics.median(values):.0f}")
    console.print(table)
    results["loaders"] = {"seconds": seconds, "num_pairs": num_batches * BATCH_SIZE}
    if args.json:
        args.json.write_text(json.dumps({"settings": settings, **results}, indent=1))
    return 0 if enough else 1


if __name__ == "__main__":
    raise SystemExit(main())
