"""NeuronIO beside the authors' loader on a file of full size: reading it, windows per second, training; interleaved,
after a check.

    taskset -c 1 python benchmarks/neuronio_speed.py --file SIM.p [--upstream CHECKOUT] [--repeats 3] [--json FILE]
    [--smoke]

A file of 128 simulations of 6 s is made of a smaller real one by repeating its simulations, with the places in the
pickle's memo numbered on, as in a real one. Reading: our conversion to HDF5, checksums included, and the authors'
``parse_sim_experiment_file``, each in a process of its own, wall time and peak memory of that process. Windows: our
batches of 8 as events and as int8 frames, and the authors' ``generate_batch``, in one process, after both gave the same
windows. Training: steps of a Branch-ELM with 20 memory units on batches of 8 from the same weights, loading included;
the share of loading is how much a training step waits where nothing loads beside it. The authors' side (``--upstream``)
is a checkout of github.com/AaronSpieler/elmneuron at 52e68a6; their arrays take 5 to 7 GB. ``--smoke`` makes up a small
file, and measures nothing of use.
"""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import pickletools
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import count, writable
from peers import load_upstream, upstream_twin
from rich.console import Console
from rich.table import Table

from elm_neuro import BranchELM
from elm_neuro.datasets import NeuronIODataset, convert_neuronio, open_simulations
from elm_neuro.datasets.neuronio._convert import convert_file
from elm_neuro.files import write_whole
from elm_neuro.training import neuronio_loss

BATCH_SIZE = 8


def full_size(small: Path, large: Path, num_simulations: int) -> None:
    """Write a pickle with the simulations of another, over and over."""
    raw = small.read_bytes()
    ops = [(op.name, arg, pos) for op, arg, pos in pickletools.genops(raw)]
    first = next(i for i, (_, arg, _) in enumerate(ops) if arg == "listOfSingleSimulationDicts")
    starts, depth, spans = [], 0, []
    for i in range(first, len(ops)):
        name, _, pos = ops[i]
        if name == "EMPTY_DICT" and depth == 1:
            starts.append((i, pos))
        depth += name == "MARK"
        depth -= name in ("SETITEMS", "APPENDS", "TUPLE")
        if name == "SETITEMS" and depth == 1:
            spans.append((*starts[-1], i + 1, ops[i + 1][2]))
        if depth == 0 and name == "APPENDS":
            break
    head, tail = spans[0][1], spans[-1][3]
    last_place = max(arg for name, arg, _ in ops if name in ("BINPUT", "LONG_BINPUT"))
    copies = []
    for begin_op, begin, end_op, end in spans[1:]:  # the first one puts names into the memo that all others read
        inside = [(name, arg, pos - begin) for name, arg, pos in ops[begin_op:end_op]]
        own = {arg for name, arg, _ in inside if name == "LONG_BINPUT"}
        at = np.array(
            [pos + 1 for name, arg, pos in inside if name == "LONG_BINPUT" or (name == "LONG_BINGET" and arg in own)]
        )
        copies.append((np.frombuffer(raw[begin:end], np.uint8), at[:, None] + np.arange(4), own))
    with large.open("wb") as file:
        file.write(raw[:head] + raw[spans[0][1] : spans[0][3]])
        shift = 0
        for i in range(num_simulations - 1):
            data, at, _ = copies[i % len(copies)]
            own = data.copy()
            own[at] = (own[at].copy().view("<u4") + np.uint32(shift)).view(np.uint8)
            file.write(own.tobytes())
            if i % len(copies) == len(copies) - 1:
                shift += last_place
        file.write(raw[tail:])


def made_up(path: Path) -> None:
    """A small file, for --smoke: pickled by Python 3, which the authors' loader reads too."""
    rng, steps = np.random.default_rng(0), 6000
    spikes = [{i: [int(t) for t in np.flatnonzero(rng.random(steps) < 0.001)] for i in range(639)} for _ in range(2)]
    one = {
        "exInputSpikeTimes": spikes[0],
        "inhInputSpikeTimes": spikes[1],
        "outputSpikeTimes": np.array([700.0, 900.0], np.float16),
    }
    one["somaVoltageLowRes"] = rng.normal(-70, 3, steps).astype(np.float16)
    params = {"totalSimDurationInSec": 6, "allSegmentsType": ["basal"] * 639}
    simulations = [copy.deepcopy(one) for _ in range(BATCH_SIZE)]  # each holds its own voltages, as in a real file
    whole = {"Params": params, "Results": {"listOfSingleSimulationDicts": simulations}}
    path.write_bytes(pickle.dumps(whole, protocol=4))


def child(what: str, source: str, target: str) -> None:
    """What a process of its own does: read the file once, and say how long it took and how much memory was used."""
    start, cpu = time.perf_counter(), time.process_time()
    if what == "ours":
        convert_file(source, target)
    else:
        from src.neuronio.neuronio_data_utils import parse_sim_experiment_file

        start, cpu = time.perf_counter(), time.process_time()
        parse_sim_experiment_file(source)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu, "gib": peak}))


def rate(run: Callable[[int], Any], seconds: float) -> float:
    """Calls per second of `run`, which is given the number of the call."""
    run(0)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += 1
        run(count)
    return count / (time.perf_counter() - start)


class Theirs:
    """The authors' arrays of one file, and their batches."""

    def __init__(self, file: Path) -> None:
        from src.neuronio import neuronio_data_loader as loader
        from src.neuronio.neuronio_data_utils import create_neuronio_input_type, parse_sim_experiment_file

        self.loader, self.types = loader, torch.tensor(create_neuronio_input_type())
        self.arrays = loader.preprocess_data(*parse_sim_experiment_file(str(file)))
        self.rng = np.random.default_rng(0)

    def batch(self, _: int) -> Any:
        num = self.arrays[0].shape[0]
        return self.loader.generate_batch(
            *self.arrays, self.types, self.rng, BATCH_SIZE, 500, 500, neuronio_sim_per_file=num
        )

    def check(self, dataset: NeuronIODataset) -> None:
        """Our windows are slices of their arrays."""
        x, spikes, soma = dataset.batch(np.arange(16))
        for i, (_, simulation, start) in enumerate(dataset.places(np.arange(16)).tolist()):
            span = slice(start, start + 500)
            same = torch.equal(x.to_dense()[i], self.arrays[0][simulation, span] * self.types)
            same = same and torch.equal(spikes[i], self.arrays[1][simulation, span, 0])
            if not (same and torch.allclose(soma[i], self.arrays[2][simulation, span, 0], rtol=0, atol=1e-6)):
                raise SystemExit(f"window {i} differs from the authors': no speed is reported")


def step(neuron: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    x, spikes, soma = batch
    optimizer.zero_grad()
    y = neuron(x)
    neuronio_loss(y if isinstance(y, torch.Tensor) else y[0], spikes, soma, burn_in=0).loss.backward()
    optimizer.step()


def main() -> None:
    if len(sys.argv) == 6 and sys.argv[1] == "child":
        if sys.argv[5]:
            load_upstream(Path(sys.argv[5]))
        child(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a NeuronIO simulation file")
    parser.add_argument("--upstream", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--simulations", type=count, default=128)
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--json", type=writable, help="write all measurements to this file")
    parser.add_argument("--smoke", action="store_true", help="a made-up file and short runs")
    args = parser.parse_args()
    if args.file is None and not args.smoke:
        parser.error("--file must name a NeuronIO simulation file, or give --smoke")
    torch.set_num_threads(args.threads)
    repeats, seconds = (1, 0.1) if args.smoke else (args.repeats, 2.0)
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "full" / "sim__full_size.p"
        file.parent.mkdir()
        if args.file is None:
            made_up(file)
        else:
            full_size(args.file, file, args.simulations)
        size = file.stat().st_size / 1e6
        sides = ["ours", *(["theirs"] if args.upstream else [])]
        for _ in range(repeats):
            for side in sides:
                command = [
                    sys.executable,
                    __file__,
                    "child",
                    side,
                    str(file),
                    f"{folder}/out.h5",
                    str(args.upstream or ""),
                ]
                result = json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                )
                for key, value in result.items():
                    measured.setdefault(f"{side}: read, {key}", []).append(value)
        (name,) = convert_neuronio([file], f"{folder}/converted")
        path = Path(folder) / "converted" / name
        events, int8 = (NeuronIODataset([path], num_windows=1 << 20, output=output) for output in ("events", "int8"))
        neuron = BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100)
        runs: dict[str, Callable[[int], Any]] = {}

        def windows(dataset: NeuronIODataset, i: int) -> Any:
            return dataset.batch(np.arange(BATCH_SIZE * i, BATCH_SIZE * i + BATCH_SIZE) % len(dataset))

        runs["ours: windows/s, events"] = lambda i: windows(events, i)
        runs["ours: windows/s, int8"] = lambda i: windows(int8, i)
        optimizer = torch.optim.Adam(neuron.parameters(), lr=1e-9)
        runs["ours: trained windows/s"] = lambda i: step(neuron, optimizer, windows(events, i))
        if args.upstream is not None:
            twin = upstream_twin(load_upstream(args.upstream), neuron)
            theirs = Theirs(file)
            theirs.check(events)
            twin_optimizer = torch.optim.Adam(twin.parameters(), lr=1e-9)

            def train_theirs(i: int) -> None:
                x, (spikes, soma) = theirs.batch(i)
                step(twin, twin_optimizer, (x, spikes, soma))

            runs["theirs: windows/s"], runs["theirs: trained windows/s"] = theirs.batch, train_theirs
        for _ in range(repeats):
            for what, run in runs.items():
                measured.setdefault(what, []).append(
                    BATCH_SIZE * rate(run, seconds if "trained" not in what else 2 * seconds)
                )
        simulations = open_simulations(path)
    share = statistics.median(measured["ours: trained windows/s"]) / statistics.median(
        measured["ours: windows/s, events"]
    )
    settings = (
        f"{simulations}, pickle of {size:.0f} MB; torch {torch.__version__}, {platform.machine()}, {args.threads} "
        "thread(s)"
    )
    table = Table("what", "median", "range", title=settings)
    for what, values in measured.items():
        table.add_row(what, f"{statistics.median(values):.4g}", f"{min(values):.4g} to {max(values):.4g}")
    table.add_row("ours: share of loading in a training step", f"{share:.1%}", "")
    Console().print(table)
    if args.json:
        words = {"settings": settings, "measured": measured, "share": share}
        write_whole({args.json: json.dumps(words, indent=1).encode() + b"\n"})


if __name__ == "__main__":
    main()
