"""Latency of the exported neuron in onnxruntime beside the authors' TorchScript neuron and our backends, interleaved in
one run.

    taskset -c 1 python benchmarks/onnx_latency.py [--upstream CHECKOUT] [--steps 1 100 500] [--batches 1 32] [--repeats
    15] [--json FILE] [--smoke]

Branch-ELM 1278 -> 45 x 100 -> 20 memory units, float32, one thread, spikes with density 0.01; medians of wall time a
call, ratios to the authors' neuron (``--upstream``, a checkout of github.com/AaronSpieler/elmneuron at 52e68a6),
without it to our torch backend. Every row stands behind a check of equal outputs. The form "step" is called once a
step, its states fed back. ``--device cuda`` runs onnxruntime's CUDA provider, and torch on the GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from arguments import check_device, count, writable
from peers import load_upstream, upstream_twin
from rich.console import Console
from rich.table import Table
from torch import Tensor

import elm_neuro
from elm_neuro import BranchELM, backends
from elm_neuro.export import to_onnx

TOLERANCE = 2e-5  # of outputs, relative to the largest


class Model:
    """One exported form in onnxruntime, with what it took to load it."""

    def __init__(self, neuron: BranchELM, form: str, num_steps: int, folder: Path, device: str) -> None:
        path = folder / f"{form}_{num_steps}.onnx"
        to_onnx(neuron, path, form=form, num_steps=num_steps if form == "unrolled" else None, verify=False)
        self.size = path.stat().st_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
        if providers[0] not in onnxruntime.get_available_providers():
            raise SystemExit(f"onnxruntime has no {providers[0]} here: pip install onnxruntime-gpu")
        start = time.perf_counter()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self.loading = time.perf_counter() - start
        if self.session.get_providers()[0] != providers[0]:
            raise SystemExit(f"onnxruntime could not start {providers[0]}, got {self.session.get_providers()}")
        self.form = form
        config = neuron.config
        self.states = {"b": config.branches, "m": config.num_memory}

    def run(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        states = {name: np.zeros((len(x), size), np.float32) for name, size in self.states.items()}
        if self.form != "step":
            found: np.ndarray[Any, Any] = self.session.run(["y"], {"x": x, **states})[0]
            return found
        outputs = []
        for t in range(x.shape[1]):
            y, b, m = self.session.run(["y", "b_next", "m_next"], {"x": x[:, t], **states})
            states = {"b": b, "m": m}
            outputs.append(y)
        return np.stack(outputs, axis=1)


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if repeat >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=count, nargs="+", default=[1, 100, 500])
    parser.add_argument("--batches", type=count, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=count, default=15)
    parser.add_argument("--json", type=writable, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="a few steps, in seconds")
    args = parser.parse_args()
    check_device(parser, args.device)
    if args.smoke:
        args.steps, args.batches, args.repeats = [1, 7], [2], 1
    torch.set_num_threads(1)
    torch.manual_seed(0)
    neuron = BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100, learn_tau_m=False).eval()
    twin = None if args.upstream is None else upstream_twin(load_upstream(args.upstream), neuron).eval().to(args.device)
    ours = BranchELM.from_config(neuron.config, routing=neuron.cell.input_to_synapse_indices).eval().to(args.device)
    ours.load_state_dict(neuron.state_dict())
    here = {"cpu": ("native", "torch"), "cuda": ("cuda", "torch")}[args.device]
    chosen = [name for name in here if not backends.available()[name].startswith("cannot run")]
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    settings = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {device}, 1 thread"
    table = Table("T", "batch", "run", "ms", "ratio", "load ms", "kB", title=f"Branch-ELM 1278 -> 20; {settings}")
    results = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for num_steps in args.steps:
            models = {
                form: Model(neuron, form, num_steps, Path(folder), args.device)
                for form in ("step", "sequence", "unrolled")
            }
            for batch in args.batches:
                x = (torch.rand(batch, num_steps, 1278) < 0.01).float()
                frames, given = x.numpy(), x.to(args.device)

                def call(name: str, given: Tensor = given) -> Tensor:
                    with backends.use(name):
                        return ours(given)[0]

                runs: dict[str, Callable[[], Any]] = (
                    {} if twin is None else {"authors' TorchScript": lambda given=given: twin(given)}
                )
                runs |= {f"elm_neuro, {name}": partial(call, name) for name in chosen}
                runs |= {
                    f"onnxruntime, {form}": lambda model=model, frames=frames: model.run(frames)
                    for form, model in models.items()
                }
                expected = np.asarray(runs["elm_neuro, torch"]().cpu())
                for name, run in runs.items():
                    found = run()
                    found = found.cpu().numpy() if isinstance(found, Tensor) else found
                    error = float(np.abs(found - expected).max() / np.abs(expected).max())
                    if not error <= TOLERANCE:
                        raise SystemExit(f"{name} is off by {error:.1e} at T {num_steps}: no speed is reported")
                times = measure(runs, args.repeats)
                base = statistics.median(next(iter(times.values())))
                for name, values in times.items():
                    middle, model = statistics.median(values), models.get(name.rpartition(", ")[2])
                    extra = ("", "") if model is None else (f"{1e3 * model.loading:.0f}", f"{model.size / 1e3:.0f}")
                    table.add_row(
                        str(num_steps), str(batch), name, f"{1e3 * middle:.2f}", f"{base / middle:.1f}x", *extra
                    )
                    results.append(
                        {"num_steps": num_steps, "batch": batch, "run": name, "seconds": values, "ratio": base / middle}
                    )
                    if model is not None:
                        results[-1] |= {"load_seconds": model.loading, "bytes": model.size}
    Console().print(table)
    if args.json:
        args.json.write_text(
            json.dumps({"settings": settings, "elm_neuro": elm_neuro.__version__, "rows": results}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
