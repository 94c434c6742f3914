"""Forward and backward pass of the neuron against its peers, interleaved in one run, each row behind a correctness
check.

    python benchmarks/neuron_speed.py [--upstream CHECKOUT] [--device cuda] [--rows N8 E20] [--repeats 7] [--json FILE]
                                      [--markdown FILE] [--backends torch native] [--prototype FOLDER] [--hosts]
                                      [--threads 1 2] [--memory]

Times are medians of processor time on one thread, of wall time on a GPU or where ``--threads`` names more than one:
then each variant is measured with each number of threads, interleaved, and the process must not be pinned to one core.
With ``--upstream``, a checkout of the authors' repository (github.com/AaronSpieler/elmneuron at 52e68a6), one column is
their TorchScript neuron with the same weights and ratios refer to it; without, to ``torch.nn.LSTM`` of the same width.
``--prototype`` names a folder with the scratch kernel ``elm_core.cpp`` and its wrapper ``fast.py``: they are built in a
temporary folder with g++ and run on the weights of the authors' neuron, hence need ``--upstream``. ``--hosts`` adds
recurrent layers of the same width from norse (``LSNNRecurrent``) and snnTorch (``SLSTM``): other neurons than ours, of
which, as of the LSTM, nothing but the speed can be compared. ``--memory`` runs each variant once more in a process of
its own, on Linux only, and reports its peak of resident memory above what it was before the pass, input and weights not
counted. A population is compared with the authors' neurons one after the other and with layers as wide as all its
memory units. Beside the times stands the share of the floor that native reaches with events: the time of the row's
multiply-adds, if they were independent ones in the widest registers that its kernels use, on the same core.

Longer than most: every peer stands beside the check that holds it to the same numbers.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arguments import check_device, count, writable
from fma import fma_speed
from peers import hosts, load_prototype, load_upstream, upstream_twin
from rich.console import Console
from rich.table import Table
from rows import CALLS_OF_A_SHORT_ROW, ROWS, SMOKE, Row, make_input, make_neuron
from torch import Tensor

import elm_neuro
from elm_neuro import ELM, SpikeEvents, backends
from elm_neuro.backends.native._library import instruction_set

Result = dict[str, Any]

FASTEST = "native, events"
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 2e-3  # float32 against float64 reference, relative to the largest entry


def resident(kind: str) -> float:
    """Resident memory of this process in MiB: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def peak_above_start(run: Callable[[], object]) -> float:
    """Peak of resident memory while `run` runs, in MiB, above what it is before."""
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("peaks of memory are read from /proc: they need Linux")
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: what a pass before has freed would be taken again
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here
    start = resident("VmRSS")
    run()
    return resident("VmHWM") - start


def in_a_process(script: str, arguments: list[str]) -> float:
    """The number that the last line of a script's output is, run in a process of its own."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{Path(script).name} {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def check(neuron: ELM, x: Tensor, others: dict[str, Callable[[], Tensor]], backend_names: list[str]) -> None:
    """Every implementation gives the float64 reference's output; ours also its gradients. Raises otherwise."""
    few = min(x.shape[1], 100)
    double = (
        ELM.from_config(neuron.config, routing=neuron.cell.input_to_synapse_indices, backend="reference")
        .double()
        .to(x.device)
    )
    double.load_state_dict(neuron.state_dict())
    expected, _ = double(x[:, :few].double())
    for name, run in others.items():
        error = float((run()[:, :few].double() - expected).detach().abs().max() / expected.detach().abs().max())
        if not error <= OUTPUT_TOLERANCE:
            raise SystemExit(f"{name} is off the float64 reference by {error:.1e}: no speed is reported")
    for backend in backend_names:
        neuron.backend = backend
        for sequence in (x[:, :few], SpikeEvents.from_frames(x[:, :few])):
            neuron.zero_grad()
            neuron(sequence)[0].square().sum().backward()
            double.zero_grad()
            double(x[:, :few].double())[0].square().sum().backward()
            for (name, p), (_, q) in zip(neuron.named_parameters(), double.named_parameters(), strict=True):
                error = float((p.grad.double() - q.grad).abs().max() / q.grad.abs().max().clamp(min=1e-12))
                if not error <= GRADIENT_TOLERANCE:
                    raise SystemExit(
                        f"{backend}: the gradient of {name} is off the float64 reference by {error:.1e}: no speed is "
                        "reported"
                    )


def measure(
    runs: dict[str, Callable[[], Tensor]],
    models: list[torch.nn.Module],
    *,
    repeats: int,
    device: str = "cpu",
    threads: Sequence[int] = (1,),
    forward_only: bool = False,
    calls: int = 1,
) -> dict[str, list[float]]:
    """Seconds of a call of each variant, forward and backward, the mean of so many calls, for each repeat."""
    clock = time.process_time if device == "cpu" and max(threads) == 1 else time.perf_counter
    cases = {
        name if len(threads) == 1 else f"{name}, {num} thread(s)": (num, run)
        for name, run in runs.items()
        for num in threads
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 2):
        for name, (num, run) in cases.items():
            torch.set_num_threads(num)
            for model in models:
                model.zero_grad(set_to_none=True)
            start = clock()
            for _ in range(calls):
                y = run()
                if not forward_only:
                    y.square().sum().backward()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat >= 2:  # TorchScript specialises in its first two calls
                times[name].append((clock() - start) / calls)
    return times


def flops(row: Row) -> float:
    """What a forward and backward pass has to compute: the recurrence, the readout, and for every event its hidden
    units; two a multiply-add.
    """
    events = row.batch * row.num_steps * (row.density * row.input_size or 1.0)
    hidden = 2 * row.num_memory
    step = (1 if row.forward_only else 3) * (
        2 * hidden * row.num_memory + row.output_size * row.num_memory
    )  # forward, backward, and the weights' gradients
    return (
        2.0
        * (row.num_neuron or 1)
        * (row.batch * row.num_steps * step + (1 if row.forward_only else 2) * events * hidden)
    )


class Variants(NamedTuple):
    """What is measured in one row."""

    neuron: ELM
    x: Tensor
    ours: dict[str, Callable[[], Tensor]]  # with the weights of `neuron`, so that outputs can be compared
    others: dict[str, Callable[[], Tensor]]
    models: list[torch.nn.Module]


def variants(
    row: Row, upstream: type[torch.nn.Module] | None, prototype: types.ModuleType | None, args: argparse.Namespace
) -> Variants:
    torch.manual_seed(0)
    x = make_input(row)
    neuron = make_neuron(row)
    lstm = torch.nn.LSTM(row.input_size, row.width, batch_first=True)
    models: list[torch.nn.Module] = [neuron, lstm]
    runs: dict[str, Callable[[], Tensor]] = {}
    if upstream is not None:
        twins = [
            upstream_twin(upstream, neuron, index)
            for index in ([None] if row.num_neuron is None else range(row.num_neuron))
        ]
        models += twins
        runs["upstream"] = lambda: (
            twins[0](x) if row.num_neuron is None else torch.stack([twin(x) for twin in twins], dim=2)
        )
    for model in models:
        model.to(args.device)
    x, events = x.to(args.device), SpikeEvents.from_frames(x).to(args.device)

    def run(backend: str, sequence: Tensor | SpikeEvents) -> Tensor:
        neuron.backend = backend
        return neuron(sequence)[0]

    for backend in args.backends:
        runs[backend] = partial(run, backend, x)
        runs[f"{backend}, events"] = partial(run, backend, events)
    if prototype is not None and row.num_neuron is None:
        twin = twins[0]
        dense, sparse = (
            prototype.FusedELM(twin, "dense" if row.density == 0 else "scan"),
            prototype.FusedELM(twin, "events"),
        )
        csr = prototype.csr(x)
        runs |= {"prototype": lambda: dense(x), "prototype, events": lambda: sparse(x, csr)}
    others: dict[str, Callable[[], Tensor]] = {"nn.LSTM": lambda: lstm(x)[0]}
    if args.hosts:
        layers = hosts(row.input_size, row.width)
        models += [layer.to(args.device) for layer in layers.values()]
        norse, snntorch = layers.values()
        others |= dict(zip(layers, (lambda: norse(x.transpose(0, 1))[0], lambda: snntorch(x)), strict=True))
    return Variants(neuron, x, runs, others, models)


def print_peak(
    row: Row, upstream: type[torch.nn.Module] | None, prototype: types.ModuleType | None, args: argparse.Namespace
) -> None:
    """Of the one variant that is named, after a short pass that loads what it needs."""
    for warm in (True, False):
        measured = variants(row._replace(num_steps=min(row.num_steps, 20)) if warm else row, upstream, prototype, args)
        run = (measured.others | measured.ours)[args.peak_of]
        peak = peak_above_start(lambda run=run: run().square().sum().backward())
    print(peak)


def benchmark(
    name: str,
    row: Row,
    upstream: type[torch.nn.Module] | None,
    prototype: types.ModuleType | None,
    args: argparse.Namespace,
) -> Result:
    measured = variants(row, upstream, prototype, args)
    check(measured.neuron, measured.x, measured.ours, args.backends)
    runs = measured.others | measured.ours
    times = measure(
        runs,
        measured.models,
        repeats=args.repeats,
        device=args.device,
        threads=args.threads,
        forward_only=row.forward_only,
        calls=CALLS_OF_A_SHORT_ROW if row.short else 1,
    )
    peer = "upstream" if upstream is not None else "nn.LSTM"
    peer = next(key for key in times if key.startswith(peer))
    median = {key: statistics.median(values) for key, values in times.items()}
    peaks = {}
    if args.memory:
        passed_on = [argument for argument in sys.argv[1:] if argument != "--memory"]
        peaks = {
            key: in_a_process(__file__, [*passed_on, "--rows", args.rows[0] if args.smoke else name, "--peak-of", key])
            for key in runs
        }
    return {
        "row": name,
        **row._asdict(),
        "seconds": times,
        "median_ms": {key: 1e3 * value for key, value in median.items()},
        "ratio_to": peer,
        "ratio": {key: median[peer] / value for key, value in median.items()},
        "spread": {key: (min(values), max(values)) for key, values in times.items()},
        "flops": flops(row),
        "of_the_floor": flops(row) / args.floor / median[FASTEST] if args.floor and FASTEST in median else None,
        "peak_mib": peaks,
    }


def described(row: Row) -> str:
    """What a row of the tables in the documentation stands for."""
    neurons = f"{row.num_neuron} × " if row.num_neuron else ""
    kind = "Branch-ELM" if row.branched else "ELM"
    inputs = f"{row.input_size} one-hot" if row.density == 0 else f"{row.input_size}, density {row.density:g}"
    return f"{kind} {inputs} → {neurons}{row.num_memory}, T {row.num_steps:,}, batch {row.batch}"


def columns(results: list[Result], kind: str) -> list[str]:
    """The variants that any row has."""
    return list(dict.fromkeys(key for result in results for key in result[kind]))


def markdown(results: list[Result], rows: dict[str, Row]) -> str:
    """The tables for the documentation: milliseconds, ratios and share of the floor, then peaks of memory in MiB where
    they were measured.
    """
    lines = []
    for kind in ("median_ms", "peak_mib"):
        keys, last = columns(results, kind), ["of the floor"] if kind == "median_ms" else []
        if not keys:
            continue
        lines += [f"| {' | '.join([kind, *keys, *last])} |", f"| --- | {' | '.join('---:' for _ in [*keys, *last])} |"]
        for result in results:
            cells = [f"{result[kind][key]:{'.2f' if last else '.1f'}}" if key in result[kind] else "" for key in keys]
            if last:
                cells = [
                    f"{cell} ({result['ratio'][key]:.1f}x)" if cell else ""
                    for key, cell in zip(keys, cells, strict=True)
                ]
                cells.append("" if result["of_the_floor"] is None else f"{result['of_the_floor']:.0%}")
            lines.append(f"| {result['row']}: {described(rows[result['row']])} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--prototype", type=Path, help="folder of the scratch prototype")
    parser.add_argument(
        "--backends", nargs="+", choices=["torch", "native"], help="of elm_neuro; by default those that run"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--repeats", type=count, default=7)
    parser.add_argument("--threads", type=count, nargs="+", default=[1], help="each variant with each of these numbers")
    parser.add_argument("--hosts", action="store_true", help="also recurrent layers of norse and snnTorch")
    parser.add_argument(
        "--memory", action="store_true", help="also peaks of resident memory, each in a process of its own"
    )
    parser.add_argument(
        "--peak-of",
        metavar="VARIANT",
        help="print the peak of resident memory of this variant in the first row and stop",
    )
    parser.add_argument("--json", type=writable, help="write all times to this file")
    parser.add_argument("--markdown", type=writable, help="write the tables for the documentation to this file")
    parser.add_argument("--smoke", action="store_true", help="one tiny row, in seconds")
    args = parser.parse_args()
    check_device(parser, args.device)
    if args.prototype and not args.upstream:
        raise SystemExit("--prototype needs --upstream: it runs on the weights of the authors' neuron")
    if args.backends is None:
        native = args.device == "cpu" and not backends.available()["native"].startswith("cannot run")
        args.backends = ["torch", "native"] if native else ["torch"]
    torch.set_num_threads(args.threads[0])
    prototype = load_prototype(args.prototype) if args.prototype else None
    upstream = load_upstream(args.upstream) if args.upstream else None
    rows = {"smoke": SMOKE} if args.smoke else {name: ROWS[name] for name in args.rows}

    alone = args.device == "cpu" and args.threads == [1] and "native" in args.backends
    args.floor = fma_speed(instruction_set()) if alone else None
    if args.peak_of:
        return print_peak(next(iter(rows.values())), upstream, prototype, args)
    console = Console(width=None if sys.stdout.isatty() else 170)
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    threads, clock = (
        " and ".join(map(str, args.threads)),
        "wall time" if args.device == "cuda" or max(args.threads) > 1 else "processor time",
    )
    results = []
    for name, row in rows.items():
        result = benchmark(name, row, upstream, prototype, args)
        results.append(result)
        console.print(f"{name}: outputs and gradients agree with the float64 reference; measured")
    keys = columns(results, "median_ms")
    table = Table(
        "row",
        *keys,
        "of the floor",
        title=(
            f"forward + backward, float32, {clock} on {threads} thread(s), torch {torch.__version__}, {device}; "
            "median ms (ratio)"
        ),
    )
    for result in results:
        share, ms = result["of_the_floor"], result["median_ms"]
        cells = [f"{ms[key]:.2f} ({result['ratio'][key]:.1f}x)" if key in ms else "" for key in keys]
        table.add_row(result["row"], *cells, "" if share is None else f"{share:.0%}")
    console.print(table)
    if args.floor:
        console.print(f"floor: {args.floor / 1e9:.0f} GFLOP/s of multiply-adds in registers, {instruction_set()}")
    if args.memory:
        keys = columns(results, "peak_mib")
        table = Table("row", *keys, title="peak of resident memory above the start, MiB")
        for result in results:
            peaks = result["peak_mib"]
            table.add_row(result["row"], *(f"{peaks[key]:.1f}" if key in peaks else "" for key in keys))
        console.print(table)
    if args.markdown:
        args.markdown.write_text(markdown(results, rows), encoding="utf-8")
    if args.json:
        settings = {
            "torch": torch.__version__,
            "elm_neuro": elm_neuro.__version__,
            "device": device,
            "backends": backends.available(),
        }
        settings["flops_of_a_product"] = args.floor
        results_of_all = {"settings": settings, "threads": args.threads, "clock": clock, "rows": results}
        args.json.write_text(json.dumps(results_of_all, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
