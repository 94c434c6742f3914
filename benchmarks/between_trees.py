"""This checkout against others of the project, each in a process of its own, interleaved in one run: what a change has
gained or cost.

    git worktree add ../before COMMIT && (cd ../before && python setup.py build_native --inplace)
    python benchmarks/between_trees.py ../before [--rows N8 narrow] [--frames | --events] [--backend native]
                                       [--repeats 40] [--json FILE]

Times are of processor time on one thread, pinned to one core where the system allows it, forward and backward, without
a loss: its gradient is there before. In a turn every tree is measured once, and what is told is the median of the
ratios within a turn: what else the machine does weighs on the trees of one turn alike. No time is told where outputs or
gradients of two trees differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arguments import count, writable
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rows import CALLS_OF_A_SHORT_ROW, ROWS, SMOKE, Row, make_input, make_neuron

import elm_neuro
from elm_neuro import SpikeEvents

HERE = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-3  # of gradients summed in another order, relative to the largest entry


def serve(row: Row, backend: str, *, as_events: bool) -> None:
    """A worker: print where the package comes from and what a pass gives, then a time for every line that arrives."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, neuron = make_input(row), make_neuron(row)
    neuron.backend = backend
    sequence = SpikeEvents.from_frames(x) if as_events else x
    calls = CALLS_OF_A_SHORT_ROW if row.short else 1
    grad = torch.randn(neuron(sequence)[0].shape)

    def run() -> Any:
        y = neuron(sequence)[0]
        if not row.forward_only:
            y.backward(grad)
        return y

    y = run()
    gradients = {name: p.grad for name, p in neuron.named_parameters() if p.grad is not None}
    numbers = {name: part.flatten()[:4096].tolist() for name, part in {"y": y.detach(), **gradients}.items()}
    print(json.dumps({"from": str(Path(elm_neuro.__file__).resolve().parents[1]), "numbers": numbers}), flush=True)
    for _ in sys.stdin:
        neuron.zero_grad(set_to_none=True)
        start = time.process_time()
        for _ in range(calls):
            run()
        print((time.process_time() - start) / calls, flush=True)


class Worker:
    """A process that runs one row with the package of one tree."""

    def __init__(self, tree: Path, options: list[str], core: int | None, script: str = __file__) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tree), str(HERE / "benchmarks")))}
        self.command = [sys.executable, script, str(tree), "--serve", *options]
        self.process = subprocess.Popen(
            self.command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})
        self.about: dict[str, Any] = json.loads(self.answer())
        if Path(self.about["from"]) != tree:
            raise SystemExit(f"the package of {tree} must run there, got that of {self.about['from']}")

    def answer(self) -> str:
        line = self.process.stdout.readline()  # type: ignore[union-attr]  # both are pipes
        if not line:
            raise SystemExit(f"{' '.join(self.command)} has failed")
        return line

    def measure(self) -> Any:
        """What it has measured, as it prints it in JSON."""
        self.process.stdin.write("\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(self.answer())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def in_turns(workers: list[Worker], repeats: int) -> list[list[Any]]:
    """What each measures in every turn, the order of the workers turned round from one to the next."""
    turns = []
    for turn in range(repeats):
        order = range(len(workers)) if turn % 2 else reversed(range(len(workers)))
        measured = {index: workers[index].measure() for index in order}
        turns.append([measured[index] for index in range(len(workers))])
    return turns


def check_equal(tree: Path, numbers: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for name in expected:
        exact = torch.tensor(expected[name])
        error = (torch.tensor(numbers[name]) - exact).abs().max() / exact.abs().max().clamp(min=1e-12)
        if not error <= TOLERANCE:
            raise SystemExit(f"{name} in {tree} is off this checkout's by {error:.1e}: no speed is told")


def compare(name: str, trees: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Times of one row in every tree, this one last."""
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None
    options = ["--rows", name, "--backend", args.backend, "--events" if args.events else "--frames"]
    options += ["--smoke"] if args.smoke else []
    workers: list[Worker] = []
    try:
        workers.extend(Worker(tree, options, core) for tree in trees)
        for tree, worker in zip(trees, workers, strict=True):
            check_equal(tree, worker.about["numbers"], workers[-1].about["numbers"])
        for worker in workers:
            worker.measure()
        turns = in_turns(workers, args.repeats)
    finally:
        for worker in workers:
            worker.close()
    return {
        "row": name,
        "seconds": {str(tree): [turn[index] for turn in turns] for index, tree in enumerate(trees)},
        "median_ms": [1e3 * statistics.median(turn[index] for turn in turns) for index in range(len(trees))],
        "ratio": [statistics.median(turn[-1] / turn[index] for turn in turns) for index in range(len(trees) - 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="+", help="other checkouts, the native backend built in each")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--frames", action="store_true", help="dense frames, the default")
    kind.add_argument("--events", action="store_true", help="SpikeEvents")
    parser.add_argument("--backend", default="native", choices=["native", "torch"])
    parser.add_argument("--repeats", type=count, default=40)
    parser.add_argument("--json", type=writable, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny row, in seconds")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(SMOKE if args.smoke else ROWS[args.rows[0]], args.backend, as_events=args.events)
        return
    others = [tree.resolve() for tree in args.trees]
    for tree in others:
        if not (tree / "elm_neuro").is_dir():
            parser.error(f"a tree must hold elm_neuro, got {tree}")
    trees = [*others, HERE]
    rows = args.rows[:1] if args.smoke else args.rows
    console = Console()
    found = [compare(name, trees, args) for name in track(rows, console=console, transient=True)]
    table = Table(
        "row", "this, ms", *(f"{tree.name}, ms" for tree in others), *(f"this / {tree.name}" for tree in others)
    )
    for row in found:
        *before, after = row["median_ms"]
        table.add_row(row["row"], f"{after:.3f}", *(f"{ms:.3f}" for ms in before), *(f"{r:.3f}" for r in row["ratio"]))
    console.print(table)
    if args.json:
        settings = {**vars(args), "trees": [str(tree) for tree in trees], "torch": torch.__version__}
        settings |= {"json": str(args.json), "machine": platform.processor() or platform.machine()}
        args.json.write_text(json.dumps({"settings": settings, "rows": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
