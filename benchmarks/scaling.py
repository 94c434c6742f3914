"""How time and memory of a forward and backward pass grow with time steps, batch and memory units: JSON, a table and a
figure.

    taskset -c 1 python benchmarks/scaling.py [--out scaling] [--repeats 5] [--json FILE] [--smoke]

ELM 128 -> 100 memory units, spikes of density 0.02 as dense frames, float32, one thread; one size at a time is varied,
the others stay at T 512, batch 8 and 100 units (over T: batch 2). Medians of processor time, the variants interleaved,
beside ``torch.nn.LSTM`` of the same width; before, our outputs and gradients are compared with the float64 reference.
Peaks are those of resident memory above what it was before the pass, each measured in a process of its own (Linux
only). ``--out`` names the figure, written as PNG and PDF.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import torch
from arguments import count, writable
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from neuron_speed import check, in_a_process, measure, peak_above_start
from rich.console import Console
from rich.table import Table
from rows import Row, make_input, make_neuron
from torch import Tensor, nn

import elm_neuro
from elm_neuro import ELM, backends, plotting

RECOMPUTED = 512
BASE = Row(128, 100, 8, 512, 0.02)
STEPS = BASE._replace(batch=2)
SWEEPS: dict[str, list[Row]] = {
    "num_steps": [STEPS._replace(num_steps=num) for num in (64, 256, 1024, 4096, 16384)],
    "batch": [BASE._replace(batch=num) for num in (1, 2, 4, 8, 16, 32, 64, 128)],
    "num_memory": [BASE._replace(num_memory=num) for num in (10, 20, 50, 100, 200, 400)],
}
SMOKE = {
    name: [Row(40, 4, 2, 30, 0.05)._replace(**{name: num}) for num in ((10,) if name == "num_steps" else (5, 10))]
    for name in SWEEPS
}
LABELS = {"num_steps": "time steps", "batch": "batch", "num_memory": "memory units"}
COLOURS = {
    "nn.LSTM": plotting.PALE,
    "torch": plotting.ORANGE,
    "native": plotting.BLUE,
    "native, recomputed": plotting.VERMILION,
}
MARKS = {"nn.LSTM": "s", "torch": "^", "native": "o", "native, recomputed": "D"}


def names(what: str) -> list[str]:
    """The variants of a sweep; `native` where it runs."""
    native = [] if backends.available()["native"].startswith("cannot run") else ["native"]
    return ["nn.LSTM", "torch", *native, *(["native, recomputed"] if native and what == "num_steps" else [])]


def variants(
    row: Row, wanted: list[str], every: int
) -> tuple[ELM, Tensor, dict[str, Callable[[], Tensor]], list[nn.Module]]:
    torch.manual_seed(0)
    x, neuron, lstm = make_input(row), make_neuron(row), nn.LSTM(row.input_size, row.num_memory, batch_first=True)

    def run(name: str) -> Tensor:
        if name == "nn.LSTM":
            y: Tensor = lstm(x)[0]
            return y
        neuron.backend, neuron.recompute_every = (
            name.removesuffix(", recomputed"),
            every if name.endswith("recomputed") else None,
        )
        return neuron(x)[0]

    return neuron, x, {name: partial(run, name) for name in wanted}, [neuron, lstm]


def print_peak(row: Row, name: str, every: int) -> None:
    """After a short pass, which loads what it needs."""
    peak = 0.0
    for given, steps in ((row._replace(num_steps=min(row.num_steps, 20)), 3), (row, every)):
        _, _, runs, _ = variants(given, [name], steps)
        peak = peak_above_start(lambda run=runs[name]: run().square().sum().backward())
    print(peak)


def swept(what: str, rows: list[Row], every: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for index, row in enumerate(rows):
        neuron, x, runs, models = variants(row, names(what), every)
        ours = {name: run for name, run in runs.items() if name != "nn.LSTM"}
        check(neuron, x, ours, [name for name in ours if name in backends.available()])
        times = measure(runs, models, repeats=args.repeats)
        result: dict[str, Any] = {
            **row._asdict(),
            "seconds": times,
            "median_ms": {name: 1e3 * statistics.median(s) for name, s in times.items()},
        }
        if what == "num_steps":
            small = ["--smoke"] if args.smoke else []
            result["peak_mib"] = {
                name: in_a_process(__file__, [*small, "--peak-of", name, "--index", str(index)]) for name in runs
            }
        found.append(result)
    return found


def draw(sweeps: dict[str, list[dict[str, Any]]], every: int) -> Figure:
    with matplotlib.rc_context(plotting.STYLE):
        figure = Figure(figsize=(6.8, 5.6))
        axes = figure.subplots(2, 2).flatten()
        fixed = {
            what: ", ".join(f"{LABELS[name]} {rows[0][name]}" for name in LABELS if name != what)
            for what, rows in sweeps.items()
        }
        for axis, letter, (what, rows) in zip(axes, "abc", sweeps.items(), strict=False):
            _curves(axis, rows, what, "median_ms")
            _titled(axis, letter, fixed[what], "forward + backward (ms)")
        _curves(axes[3], sweeps["num_steps"], "num_steps", "peak_mib")
        _titled(axes[3], "d", fixed["num_steps"], "peak memory (MiB)")
        handles, labels = axes[0].get_legend_handles_labels()
        labels = [f"native, recompute_every={every}" if label == "native, recomputed" else label for label in labels]
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figure.align_ylabels(axes[::2])
        figure.align_ylabels(axes[1::2])
    return figure


def _curves(axis: Axes, rows: list[dict[str, Any]], what: str, kind: str) -> None:
    sizes = [row[what] for row in rows]
    for name in rows[0][kind]:
        values = [max(row[kind][name], 1e-2) for row in rows]
        axis.plot(sizes, values, color=COLOURS[name], marker=MARKS[name], markersize=3.5, label=name)
    axis.set(xscale="log", yscale="log", xlabel=LABELS[what])
    axis.set_xticks(sizes if len(sizes) <= 6 else sizes[::2])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _titled(axis: Axes, letter: str, title: str, unit: str) -> None:
    axis.set_title(rf"$\mathbf{{{letter}}}$  {title}")
    axis.set_ylabel(unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=writable, help="name of the figure, written with .png and .pdf")
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--json", type=writable, help="write all times and peaks to this file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument(
        "--peak-of", choices=list(COLOURS), help="print the peak of resident memory of this variant and stop"
    )
    parser.add_argument("--index", type=int, default=0, help="with --peak-of: which of the numbers of time steps")
    args = parser.parse_args()
    sweeps, every = (SMOKE, 4) if args.smoke else (SWEEPS, RECOMPUTED)
    torch.set_num_threads(1)
    if args.peak_of:
        return print_peak(sweeps["num_steps"][args.index], args.peak_of, every)
    if not sys.platform.startswith("linux"):
        raise SystemExit(f"peaks of memory are read from /proc: they need Linux, got {sys.platform}")

    console = Console(width=None if sys.stdout.isatty() else 120)
    settings = f"torch {torch.__version__}, {platform.machine()}, 1 thread"
    results: dict[str, list[dict[str, Any]]] = {}
    for what, rows in sweeps.items():
        results[what] = swept(what, rows, every, args)
        table = Table(
            LABELS[what],
            *names(what),
            title=f"forward + backward over {LABELS[what]}, float32, {settings}; median ms (peak MiB)",
        )
        for row in results[what]:
            peaks = row.get("peak_mib", {})
            table.add_row(
                f"{row[what]:,}",
                *(f"{ms:.1f}" + (f" ({peaks[name]:.1f})" if peaks else "") for name, ms in row["median_ms"].items()),
            )
        console.print(table)
    if args.json:
        words = {"settings": settings, "elm_neuro": elm_neuro.__version__, "recompute_every": every, "sweeps": results}
        args.json.write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")
    if args.out:
        console.print("figure:", *map(str, plotting.save(draw(results, every), args.out)))


if __name__ == "__main__":
    main()
