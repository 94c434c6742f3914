"""A recurrent layer of adaptive LIF neurons, forward and forward + backward, beside its peers, interleaved in one run.

    taskset -c 1 python benchmarks/alif_speed.py [--upstream CHECKOUT] [--rows T512-L10-B32 ...] [--grid published]
                                                 [--hosts] [--skip PEER ...] [--repeats 5] [--memory] [--json FILE]
                                                 [--smoke] [--device cuda]

Medians of processor time on one thread, in milliseconds, and how many times as long each peer takes; in its turn each
runs once forward before it is timed. 128 inputs of which 10 % spike (1000 of 1 % on the published grid), 128 neurons,
multi-Gaussian surrogate, the loss is the sum of the spikes: their gradient costs nothing. ``loop`` is the plain loop
over the equations (backend ``reference``); ``native`` takes frames, ``events`` the same spikes as SpikeEvents,
``native blocks`` frames, with the gradient of Blocks. With ``--upstream``, a checkout of the Blocks repository
(github.com/webstorms/Blocks at abaf846), ``published`` is its loop over the steps and ``blocks`` its method, with the
same weights. Each row is behind a check: spikes equal to the last one in single precision. ``--hosts`` adds, where
they are installed, norse's LSNN and snnTorch's Leaky, step by step, and spikingjelly's LIF in its multi-step mode,
written in torch: other equations, the last two without recurrence and adaptation, of which only the speed can be
compared. ``--skip`` leaves peers out: a pass of ``published`` takes minutes at 1024 steps and a batch of 128.
``--memory`` runs each variant once more in a process of its own (Linux) and reports its peak above what it was before.
The floor beside ``native`` is the time of the row's bytes (frames read and spikes written, for both twice) at this
core's bandwidth. ``--device cuda``: wall time between synchronisations, backend ``cuda`` in place of ``native``, its
bandwidth.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arguments import check_device, count, writable
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import elm_neuro
from elm_neuro import ALIF, SpikeEvents
from elm_neuro.functional import MultiGaussian


class Row(NamedTuple):
    num_steps: int
    latency: int
    batch: int
    num_input: int = 128
    density: float = 0.1
    num_neuron: int = 128


def grid(num_input: int, density: float) -> dict[str, Row]:
    return {
        f"T{t}-L{latency}-B{batch}": Row(t, latency, batch, num_input, density)
        for batch in (32, 128)
        for t in (512, 1024, 2048)
        for latency in (10, 50, 100)
    }


GRIDS = {"here": grid(128, 0.1), "published": grid(1000, 0.01)}
SMOKE = {"smoke": Row(23, 4, 3, 20, 0.2, 16)}
Run = Callable[[], Tensor]  # gives the spikes, (batch, time, neuron)
DEVICE = "cpu"  # what --device says
LAYERS = Path("src/snn/snn.py")  # of a checkout of Blocks
HOSTS = ("norse LSNN", "snnTorch Leaky", "spikingjelly LIF")
PEERS = ("events", "native blocks", "published", "blocks", *HOSTS)


def load_blocks(checkout: Path) -> Any:
    """The published layers; of the library that they import they use a Module with a function that draws weights."""

    class BBModel(nn.Module):
        @property
        def hyperparams(self) -> dict[str, Any]:
            return {}

        def init_weight(self, weight: Tensor, *_: Any, **__: Any) -> None:
            nn.init.zeros_(weight)  # ours are copied in

    models = types.ModuleType("brainbox.models")
    models.BBModel = BBModel
    package = types.ModuleType("brainbox")
    package.models = models
    sys.modules |= {"brainbox": package, "brainbox.models": models}
    sys.path.insert(0, str(checkout))
    return importlib.import_module("src.snn.snn").SNN, importlib.import_module("src.snn.block.blocks").Blocks


def kernels() -> str:
    """The backend that is measured."""
    return "native" if DEVICE == "cpu" else "cuda"


def make_layer(row: Row, gradient: str = "loop") -> ALIF:
    torch.manual_seed(0)
    latency, surrogate = float(row.latency), MultiGaussian()
    settings: Any = {"latency": latency, "recurrent": True, "surrogate": surrogate, "tau_v": 10.0}
    layer = ALIF(row.num_input, row.num_neuron, gradient=gradient, **settings)
    with torch.no_grad():  # a few per cent of spikes
        layer.cell.weight.mul_(3.0)
        layer.cell.bias.fill_(0.02)
    return layer.to(DEVICE)


def published(kind: Any, layer: ALIF, row: Row) -> nn.Module:
    twin: nn.Module = kind(row.num_input, row.num_neuron, 1, row.num_steps, row.latency, recurrent=True, surr_grad="mg")
    twin.to(DEVICE)
    names = {"_rec_weight": "w_rec", "_rf_bias": "bias", "_beta": "beta", "_p": "p", "_b": "b"}
    with torch.no_grad():
        twin._rf_weight.copy_(layer.cell.weight.view(row.num_neuron, 1, row.num_input, 1))
        for theirs, ours in names.items():
            getattr(twin, theirs).copy_(getattr(layer.cell, ours))
    return twin


def variants(row: Row, x: Tensor, blocks: Any, *, hosts: bool) -> dict[str, tuple[Run, nn.Module]]:
    layer, events = make_layer(row), SpikeEvents.from_frames(x)

    def ours(backend: str, given: Any) -> Run:
        def run() -> Tensor:
            layer.backend = backend
            return layer(given)[0]

        return run

    found = {kernels(): (ours(kernels(), x), layer), "events": (ours(kernels(), events), layer)}
    if DEVICE == "cpu":
        ramp = make_layer(row, gradient="blocks")
        found["native blocks"] = ((lambda: ramp(x)[0]), ramp)
    found["loop"] = (ours("reference", x), layer)
    if blocks is not None:
        theirs = x.transpose(1, 2).contiguous()
        for name, kind in zip(("published", "blocks"), blocks, strict=True):
            twin = published(kind, layer, row)
            # the published loop writes into its input where that is a view
            found[name] = ((lambda twin=twin: twin(theirs.clone()).transpose(1, 2)), twin)
    if hosts:
        found |= host_layers(row, x)
    return found


def host_layers(row: Row, x: Tensor) -> dict[str, tuple[Run, nn.Module]]:
    found: dict[str, tuple[Run, nn.Module]] = {}
    if importlib.util.find_spec("norse"):
        from norse.torch import LSNNRecurrent

        lsnn, first = LSNNRecurrent(row.num_input, row.num_neuron).to(DEVICE), x.transpose(0, 1).contiguous()
        found["norse LSNN"] = ((lambda: lsnn(first)[0].transpose(0, 1)), lsnn)
    if importlib.util.find_spec("snntorch"):
        import snntorch

        leaky = nn.ModuleList([nn.Linear(row.num_input, row.num_neuron), snntorch.Leaky(beta=0.9)]).to(DEVICE)

        def run() -> Tensor:
            memory, record = leaky[1].init_leaky(), []
            for x_t in leaky[0](x).unbind(1):
                spikes, memory = leaky[1](x_t, memory)
                record.append(spikes)
            return torch.stack(record, 1)

        found["snnTorch Leaky"] = (run, leaky)
    if importlib.util.find_spec("spikingjelly"):
        from spikingjelly.activation_based import functional, neuron

        linear, node = nn.Linear(row.num_input, row.num_neuron), neuron.LIFNode(tau=10.0, step_mode="m")
        lif, frames = nn.Sequential(linear, node).to(DEVICE), x.transpose(0, 1).contiguous()

        def run_lif() -> Tensor:
            functional.reset_net(lif)
            spikes: Tensor = lif(frames).transpose(0, 1)
            return spikes

        found["spikingjelly LIF"] = (run_lif, lif)
    return found


def forward(run: Run) -> None:
    with torch.no_grad():
        run()


def both(run: Run, module: nn.Module) -> None:
    module.zero_grad(set_to_none=True)
    run().sum().backward()


def milliseconds(call: Callable[[], None]) -> float:
    if DEVICE == "cpu":
        start = time.process_time()
        call()
        return 1e3 * (time.process_time() - start)
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def bandwidth() -> float:
    """Bytes a second that this core, or the GPU, reads and writes: a copy of 64 MB."""
    a, b = torch.zeros(1 << 24, device=DEVICE), torch.ones(1 << 24, device=DEVICE)
    times = [milliseconds(lambda: a.copy_(b)) for _ in range(7)]
    return 2 * a.nbytes / statistics.median(times) * 1e3


def make_input(row: Row) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(row.batch, row.num_steps, row.num_input) < row.density).float().to(DEVICE)


def measure(row: Row, blocks: Any, repeats: int, *, hosts: bool, skip: list[str], console: Console) -> dict[str, Any]:
    x = make_input(row)
    runs = {name: run for name, run in variants(row, x, blocks, hosts=hosts).items() if name not in skip}
    spikes = {name: run().detach() for name, (run, _) in runs.items() if name not in HOSTS}
    wrong = {name: int((other != spikes["loop"]).sum()) for name, other in spikes.items()}
    if any(wrong.values()):
        raise SystemExit(f"spikes differ from the loop's: {wrong}")
    rate = float(spikes["loop"].mean())
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    for repeat in range(repeats + 1):
        for name, (run, module) in runs.items():
            gc.collect()
            forward(run)  # not timed: the memory that the peer before it has left
            pair = milliseconds(lambda run=run: forward(run)), milliseconds(lambda r=run, m=module: both(r, m))
            if repeat:
                for record, value in zip(times[name], pair, strict=True):
                    record.append(value)
    medians = {name: [statistics.median(record) for record in pair] for name, pair in times.items()}
    bytes_once = 4 * row.batch * row.num_steps * (row.num_input + row.num_neuron)
    console.print(f"{row}: {rate:.1%} spikes, equal in all")
    return {"rate": rate, "ms": medians, "floor": [1e3 * bytes_once * times / bandwidth() for times in (1, 2)]}


def peak(name: str, row_name: str, options: argparse.Namespace) -> float:
    """MiB of a forward and backward pass above what was there before, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--rows", row_name, "--grid", options.grid]
    command += ["--upstream", str(options.upstream)] if options.upstream else []
    command += [flag for flag in ("--hosts", "--smoke") if getattr(options, flag[2:])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def print_peak(name: str, row: Row, blocks: Any, *, hosts: bool) -> None:
    x = make_input(row)
    run, module = variants(row, x, blocks, hosts=hosts)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    both(run, module)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="checkout of github.com/webstorms/Blocks")
    parser.add_argument("--grid", choices=GRIDS, default="here")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"of {', '.join(GRIDS['here'])}")
    parser.add_argument("--hosts", action="store_true", help="norse's, snnTorch's and spikingjelly's layers too")
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=PEERS, metavar="PEER", help=f"leave out, of {', '.join(PEERS)}"
    )
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--memory", action="store_true", help="peaks of resident memory too")
    parser.add_argument("--json", type=writable, help="write everything measured here")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--smoke", action="store_true", help="one tiny row: whether it runs")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    check_device(parser, options.device)
    if options.memory and options.device != "cpu":
        parser.error("--memory is of the CPU")
    if options.upstream and not (options.upstream / LAYERS).is_file():
        parser.error(f"--upstream must be a checkout of webstorms/Blocks, got {options.upstream} without {LAYERS}")
    global DEVICE
    DEVICE = options.device
    rows = SMOKE if options.smoke else GRIDS[options.grid]
    unknown = sorted(set(options.rows or ()) - set(rows))
    if unknown:
        parser.error(f"--rows must be of {', '.join(rows)}, got {', '.join(unknown)}")
    rows = {name: rows[name] for name in options.rows or rows}
    blocks = None if options.upstream is None else load_blocks(options.upstream)
    torch.set_num_threads(1)
    if options.peak:
        print_peak(options.peak, next(iter(rows.values())), blocks, hosts=options.hosts)
        return
    console = Console(soft_wrap=True)
    machine = platform.processor() if DEVICE == "cpu" else torch.cuda.get_device_name()
    console.print(f"elm_neuro {elm_neuro.__version__}, torch {torch.__version__}, {machine}, one thread")
    settings = {"torch": torch.__version__, "machine": machine, "repeats": options.repeats}
    results: dict[str, Any] = {}
    for name, row in rows.items():
        results[name] = measure(row, blocks, options.repeats, hosts=options.hosts, skip=options.skip, console=console)
        if options.memory:
            results[name]["MiB"] = {peer: peak(peer, name, options) for peer in results[name]["ms"]}
        show(name, results[name], console)
        if options.json:
            options.json.write_text(json.dumps({"settings": settings, "rows": results}, indent=1))


def show(name: str, result: dict[str, Any], console: Console) -> None:
    table = Table(title=name)
    memory = result.get("MiB")
    times = f"x {kernels()}"
    for column in ("", "forward ms", times, "both ms", times, *(["peak MiB"] if memory else [])):
        table.add_column(column, justify="left" if not column else "right")
    base = result["ms"][kernels()]
    for peer, (one, two) in result["ms"].items():
        cells = [peer, f"{one:.1f}", f"{one / base[0]:.1f}", f"{two:.1f}", f"{two / base[1]:.1f}"]
        table.add_row(*cells, *([f"{memory[peer]:.0f}"] if memory else []))
    share = [floor / ms for floor, ms in zip(result["floor"], base, strict=True)]
    table.caption = f"bytes alone: {share[0]:.0%} of {kernels()}'s forward, {share[1]:.0%} of both"
    console.print(table)


if __name__ == "__main__":
    main()
