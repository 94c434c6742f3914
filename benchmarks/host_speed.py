"""What a pass of the backend `cuda` asks its host for, measured without a GPU: torch, Python and autograd's thread of
the device, on a device of which nothing runs (host_device.cpp; launches and products do nothing). A GPU's own share,
what its driver takes for a launch, an allocation or a product, is not in it.

    python benchmarks/host_speed.py [../before ...] [--rows N8 E20] [--repeats 15] [--json FILE]

Microseconds of wall time. Autograd's thread has a core of its own where there are two: on which a system puts it is
chance, and on the same one a pass takes little more than in the calling thread. With other checkouts, each in a process
of its own and all in turns, ratios are medians of those within a turn.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arguments import count, writable
from between_trees import HERE, Worker, in_turns
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rows import ROWS, SMOKE, Row, make_input, make_neuron
from torch import Tensor, nn
from torch.utils import cpp_extension

from elm_neuro import SpikeEvents

SOURCE = Path(__file__).with_name("host_device.cpp")
DEVICE = "bare"  # torch's name for it here
VARIANTS = {  # of a measurement, by name: what the table says
    "both": "forward + backward",
    "here": "the same in the calling thread",
    "alone": "forward alone",
    "bare": "a node with as many gradients",
    "bare_here": "that node in the calling thread",
}
CALLS = 40  # of each variant in a turn, of which the median counts


def built() -> Path:
    """The device, compiled for this torch where it is not there yet."""
    if (compiler := shutil.which("c++") or shutil.which("g++")) is None:
        raise SystemExit("a C++ compiler is needed, for benchmarks/host_device.cpp")
    name = hashlib.sha256(f"{torch.__version__} {SOURCE.read_text()}".encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir(), "elm_neuro_host_device")
    folder.mkdir(exist_ok=True)
    target = folder / f"{name}.so"
    if not target.exists():
        places = [f"-isystem{path}" for path in cpp_extension.include_paths()]
        places += [f"-L{path}" for path in cpp_extension.library_paths()]
        standard = "-std=c++20" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12) else "-std=c++17"
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work, "device.so")
            options = [
                "-O2",
                "-w",
                standard,
                "-fPIC",
                "-shared",
                f"-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}",
            ]
            command = [compiler, *options, *places, str(SOURCE), "-o", str(made), "-lc10", "-ltorch_cpu", "-ltorch"]
            subprocess.run(command, check=True)
            made.replace(target)
    return target


def pretend(library: Path) -> None:
    """Have torch know the device, and the backend `cuda` run on it."""
    from elm_neuro.backends.cuda import _ahead, _driver, _plans
    from elm_neuro.backends.cuda._backend import CudaBackend
    from elm_neuro.backends.parts import _twice

    torch.ops.load_library(library)
    module: Any = types.ModuleType(f"torch.{DEVICE}")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork, module._lazy_init = lambda: False, lambda: None
    module.current_device, module.device_count = lambda: 0, lambda: 1
    module.get_amp_supported_dtype, module.manual_seed_all = lambda: [torch.bfloat16], lambda seed: None
    torch.utils.rename_privateuse1_backend(DEVICE)
    torch._register_device_module(DEVICE, module)

    replaced: dict[Any, dict[str, Any]] = {
        _ahead: {"awaited": lambda program, kernel, architecture: b"code"},
        _driver: {"_current_device": lambda: 0, "_current_stream": lambda index: 0},
        _driver.Driver: {
            "device": lambda self, index: _plans.Device(132, 232448, 90),  # of an H100
            "expect": lambda self, kernels, device: None,
        },
        CudaBackend: {"device_type": DEVICE, "missing": lambda self: None},
        _twice: {"in_autocast": lambda like: torch.is_autocast_enabled("cuda")},  # as of a tensor on a GPU
    }
    for place, values in replaced.items():
        for name, value in values.items():
            setattr(place, name, value)
    load = ctypes.CDLL
    ctypes.CDLL = lambda name: load(str(library))  # type: ignore[assignment, misc, return-value]  # for libcuda
    try:
        driver = _driver.Driver()
    finally:
        ctypes.CDLL = load  # type: ignore[misc]
    _driver.launcher = lambda: driver  # type: ignore[assignment]


def keep_apart(run: Callable[[], None]) -> None:
    """Have autograd's thread, which begins with the first backward pass, on another core than this one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[1]})
        run()
        os.sched_setaffinity(0, {cores[0]})


class Bare(torch.autograd.Function):
    """Computes nothing, and has a gradient for each parameter: what no pass can do without."""

    @staticmethod
    def forward(ctx: Any, shape: torch.Size, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return parameters[0].new_empty(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[torch.empty_like(parameter) for parameter in ctx.saved_tensors]


class BareLayer(nn.Module):
    """A module around it."""

    def __init__(self, shape: torch.Size, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.shape, self.all = shape, parameters

    def forward(self, x: Any) -> tuple[Tensor]:
        return (Bare.apply(self.shape, *self.all),)


def runs_of(row: Row, *, as_events: bool) -> dict[str, Callable[[], None]]:
    """The variants, to be timed."""
    frames, neuron = make_input(row), make_neuron(row).to(DEVICE)
    neuron.backend = "cuda"
    x = SpikeEvents.from_frames(frames).to(DEVICE) if as_events else frames.to(DEVICE)
    learned = [parameter for parameter in neuron.parameters() if parameter.requires_grad]
    with torch.no_grad():
        shape = neuron(x)[0].shape
    grad, bare = torch.empty(shape).to(DEVICE), BareLayer(shape, learned)

    def both(module: nn.Module = neuron) -> None:
        module(x)[0].backward(grad)
        for parameter in learned:  # as an optimizer has it
            parameter.grad = None

    def here(module: nn.Module = neuron) -> None:
        with torch.autograd.set_multithreading_enabled(False):
            both(module)

    def alone() -> None:
        with torch.no_grad():
            neuron(x)

    return {"both": both, "here": here, "alone": alone, "bare": lambda: both(bare), "bare_here": lambda: here(bare)}


def median_us(run: Callable[[], None], calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def serve(row: Row, library: Path, calls: int, *, as_events: bool) -> None:
    """A worker: print where the package comes from, then the times of a turn for every line that arrives."""
    import elm_neuro

    torch.set_num_threads(1)
    torch.manual_seed(0)
    pretend(library)
    runs = runs_of(row, as_events=as_events)
    keep_apart(runs["bare"])
    for run in runs.values():
        median_us(run, calls)
    print(json.dumps({"from": str(Path(elm_neuro.__file__).resolve().parents[1])}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: median_us(run, calls) for name, run in runs.items()}), flush=True)


def compare(name: str, kind: str, trees: list[Path], library: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Times of one row in every tree, this one last."""
    options = ["--rows", name, f"--{kind}", "--library", str(library), *(["--smoke"] if args.smoke else [])]
    workers: list[Worker] = []
    try:
        workers.extend(Worker(tree, options, None, __file__) for tree in trees)
        turns = in_turns(workers, args.repeats)
    finally:
        for worker in workers:
            worker.close()
    return {
        "row": name,
        "kind": kind,
        "us": {v: [statistics.median(turn[i][v] for turn in turns) for i in range(len(trees))] for v in VARIANTS},
        "ratio": {
            v: [statistics.median(turn[-1][v] / turn[i][v] for turn in turns) for i in range(len(trees) - 1)]
            for v in VARIANTS
        },
        "turns": turns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="*", help="other checkouts")
    parser.add_argument("--rows", nargs="+", default=["N8", "E20"], choices=list(ROWS))
    parser.add_argument("--repeats", type=count, default=15, help="turns")
    parser.add_argument("--json", type=writable, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny row, in seconds")
    for hidden in ("--serve", "--frames", "--events"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(
            SMOKE if args.smoke else ROWS[args.rows[0]], args.library, 3 if args.smoke else CALLS, as_events=args.events
        )
        return
    others = [tree.resolve() for tree in args.trees]
    for tree in others:
        if not (tree / "elm_neuro").is_dir():
            parser.error(f"a tree must hold elm_neuro, got {tree}")
    console, library, trees = Console(), built(), [*others, HERE]
    jobs = [(name, kind) for name in (args.rows[:1] if args.smoke else args.rows) for kind in ("frames", "events")]
    found = [compare(*job, trees, library, args) for job in track(jobs, console=console, transient=True)]
    table = Table("row", *VARIANTS.values())
    for row in found:
        cells = []
        for variant in VARIANTS:
            *before, now = row["us"][variant]
            ratios = [f"{ratio:.2f} of {us:.0f}" for ratio, us in zip(row["ratio"][variant], before, strict=True)]
            cells.append(f"{now:.0f}" + (f" ({', '.join(ratios)})" if ratios else ""))
        table.add_row(f"{row['row']}, {row['kind']}", *cells)
    console.print(table)
    if args.json:
        settings = {**vars(args), "trees": [str(tree) for tree in trees], "torch": torch.__version__}
        settings |= {
            "json": str(args.json),
            "library": str(library),
            "machine": platform.processor() or platform.machine(),
        }
        args.json.write_text(json.dumps({"settings": settings, "rows": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
