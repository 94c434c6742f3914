"""Exported models in every runtime that is installed, beside torch: which form loads, whether its numbers are torch's,
how long it takes.

    python benchmarks/onnx_runtimes.py [--checkpoint FOLDER] [--node FOLDER] [--runtimes NAMES] [--json FILE] [--smoke]

Two networks: the authors' Branch-ELM 1278 -> 45 x 100 -> 20 (``--checkpoint``, their folder num_memory_20; random
weights of the same size without) in float32 and float16, and a mixed one, Linear -> LIF -> spiking population -> LIF ->
Linear, in float32. Each in the forms step, sequence and unrolled, in the export's default opset with free sizes; where
that fails with the sizes fixed in the file, and where that fails in opset 17 too. Every case runs in a process of its
own, so that a runtime may crash; hence one long file, which that process runs again. ``--node`` is a folder with the
npm packages onnxruntime-web and onnxruntime-node.

Milliseconds are medians of wall time for a sequence of 500 steps (100 for the mixed network) at batch 1 on one thread;
the form "step" is called once a step. Errors are relative to the largest value of each output; one above the tolerance
is a failure. tract gets its models with all sizes fixed.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, "np.ndarray[Any, Any]"]
Run = Callable[[Arrays], Arrays]

TOLERANCES = {"float32": 2e-5, "float16": 2e-2}  # of a sequence, relative to the largest value
OLD_OPSET = 17
PYTHON_RUNTIMES = {
    "onnxruntime": "onnxruntime",
    "onnx reference": "onnx",
    "OpenVINO": "openvino",
    "tract": "tract",
    "OpenCV": "cv2",
}
NODE_RUNTIMES = ("onnxruntime-web", "onnxruntime-node")
PACKAGES = {"OpenCV": "opencv-python-headless", "onnx reference": "onnx"}


class Case(NamedTuple):
    """One model, what it reads, and what torch makes of it."""

    network: str
    form: str
    opset: int
    precision: str
    path: Path
    inputs: Arrays
    expected: Arrays
    sizes: str = "free"


def onnxruntime_run(path: str, outputs: list[str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda fed: dict(zip(outputs, session.run(outputs, fed), strict=True))


def reference_run(path: str, outputs: list[str]) -> Run:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(path)
    return lambda fed: dict(zip(outputs, evaluator.run(outputs, fed), strict=True))


def openvino_run(path: str, outputs: list[str]) -> Run:
    import openvino

    # its default precision may be lower than the model's
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", settings)

    def run(fed: Arrays) -> Arrays:
        found = model(fed)
        return {name: np.array(found[model.output(name)]) for name in outputs}

    return run


def tract_run(path: str, outputs: list[str]) -> Run:
    import tract

    model = tract.onnx().load(path)
    names = [model.input_name(i) for i in range(model.input_count())]
    runnable = model.into_model().into_runnable()  # its outputs are in the model's order, under other names
    return lambda fed: {
        name: value.to_numpy()
        for name, value in zip(outputs, runnable.run([np.ascontiguousarray(fed[name]) for name in names]), strict=True)
    }


def opencv_run(path: str, outputs: list[str]) -> Run:
    import cv2

    cv2.setNumThreads(1)
    net = cv2.dnn.readNetFromONNX(path)

    def run(fed: Arrays) -> Arrays:
        for name, value in fed.items():
            net.setInput(np.ascontiguousarray(value), name)
        return {name: value.copy() for name, value in zip(outputs, net.forward(outputs), strict=True)}

    return run


RUNS: dict[str, Callable[[str, list[str]], Run]] = {
    "onnxruntime": onnxruntime_run,
    "onnx reference": reference_run,
    "OpenVINO": openvino_run,
    "tract": tract_run,
    "OpenCV": opencv_run,
}


def packed(arrays: Arrays) -> dict[str, Any]:
    return {
        name: {"dims": array.shape, "data": base64.b64encode(array.astype("<f4").tobytes()).decode()}
        for name, array in arrays.items()
    }


def unpacked(entries: dict[str, Any]) -> Arrays:
    return {
        name: np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["dims"])
        for name, entry in entries.items()
    }


def child(runtime: str, model: str, task: Path, result: Path) -> None:
    """Run one case in this process; the parent reads what is in `result`."""
    given = json.loads(task.read_text(encoding="utf-8"))
    inputs, names = unpacked(given["inputs"]), given["outputs"]
    start = time.perf_counter()
    run = RUNS[runtime](model, names)
    load = time.perf_counter() - start

    def whole() -> Arrays:
        if not given["step"]:
            return run(inputs)
        states, records, found = {name: value for name, value in inputs.items() if name != "x"}, [], {}
        for x_t in inputs["x"].swapaxes(0, 1):
            found = run({"x": x_t, **states})
            states = {name: found[f"{name}_next"] for name in states}
            records.append(found["y"])
        return found | {"y": np.stack(records, axis=1)}

    times, outputs = [], whole()
    for _ in range(given["repeats"]):
        start = time.perf_counter()
        outputs = whole()
        times.append(1e3 * (time.perf_counter() - start))
    written = {"load": 1e3 * load, "times": times, "outputs": packed(outputs)}
    result.write_text(json.dumps(written), encoding="utf-8")


def fixed(case: Case) -> Case:
    """The same model with its sizes in the file."""
    import onnx

    model, sizes = onnx.load(case.path), {"batch": 1, "time": case.inputs["x"].shape[1]}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = sizes[axis.dim_param]
    path = case.path.with_suffix(".fixed.onnx")
    onnx.save(model, path)
    return case._replace(path=path, sizes="fixed")


def attempt(
    runtime: str, case: Case, folder: Path, *, node: Path | None, repeats: int, seconds: float
) -> dict[str, Any]:
    """What a runtime makes of a case: times to load and to run, error; or the reason it failed."""
    task, result = folder / "task.json", folder / "result.json"
    result.unlink(missing_ok=True)
    outputs = list(case.expected)
    given = {"step": case.form == "step", "repeats": repeats, "inputs": packed(case.inputs), "outputs": outputs}
    task.write_text(json.dumps(given), encoding="utf-8")
    arguments = [str(case.path), str(task), str(result)]
    if runtime in NODE_RUNTIMES:
        command = ["node", str(Path(__file__).with_name("onnx_web.mjs")), str(node), runtime, *arguments]
    else:
        command = [sys.executable, "-W", "ignore", __file__, "--child", runtime, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds:.0f} s"}
    if done.returncode or not result.exists():
        return {"failed": reason(done.stderr)}
    found = json.loads(result.read_text(encoding="utf-8"))
    arrays, off = unpacked(found["outputs"]), []
    for name, want in case.expected.items():
        if arrays[name].shape != want.shape:
            return {"failed": f"{name} has shape {arrays[name].shape}, not {want.shape}"}
        off.append(np.abs(arrays[name] - want).max() / max(1.0, float(np.nan_to_num(np.abs(want)).max())))
    error = float(np.max(off))  # a NaN stays
    found = {"load_ms": found["load"], "ms": statistics.median(found["times"]), "error": error}
    return found if error <= TOLERANCES[case.precision] else found | {"failed": f"off by {error:.1e}"}


def version_of(runtime: str, node: Path | None) -> str:
    if runtime in NODE_RUNTIMES and node is not None:
        return str(
            json.loads((node / "node_modules" / runtime / "package.json").read_text(encoding="utf-8"))["version"]
        )
    return importlib.metadata.version(PACKAGES.get(runtime, runtime.lower()))


def reason(stderr: str) -> str:
    """The words of an error that say what happened, without places in source files."""
    panic = re.search(r" panicked at .*\n(.*)", stderr)
    words = (
        panic[1] if panic else stderr.rpartition("Traceback (most recent call last)")[2].partition("Stack backtrace")[0]
    )
    words = words.rpartition("    raise ")[2].partition("\n")[2] if "    raise " in words else words
    words = re.sub(r"(Exception from )?\S*/\S+:\d+:?", "", words)
    return " ".join(words.split())[-160:] or "it ended without a word"


def cases(folder: Path, checkpoint: Path | None, opset: int | None, *, num_steps: int) -> Iterator[Case]:
    """Every form of both networks, with torch's outputs."""
    import torch  # here, as the children need none of it
    from torch import nn

    from elm_neuro import LIF, BranchELM, SpikingELM
    from elm_neuro.checkpoints import from_upstream
    from elm_neuro.export import to_onnx
    from elm_neuro.export.onnx import OPSET

    torch.manual_seed(0)
    torch.set_num_threads(1)
    neuron = (
        BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100)
        if checkpoint is None
        else from_upstream(checkpoint)
    )
    population = SpikingELM(
        BranchELM(24, 1, 6, num_branch=4, num_synapse_per_branch=8, num_neuron=16, flatten_output=True), threshold=0.3
    )
    mixed = nn.Sequential(nn.Linear(40, 20), LIF(20, 24), population, LIF(16, 12), nn.Linear(12, 5))

    def forward(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for layer in network if isinstance(network, nn.Sequential) else [network]:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x

    for name, network, steps, precisions in (
        ("Branch-ELM", neuron, num_steps, ("float32", "float16")),
        ("mixed", mixed, 100, ("float32",)),
    ):
        network.eval()
        steps = min(steps, num_steps)
        width = 1278 if network is neuron else 40
        with torch.no_grad():
            while True:  # spikes that no rounding decides: the same with a disturbed input
                x = (torch.rand(1, steps, width) < (0.01 if network is neuron else 0.3)).float() * (
                    1.0 if network is neuron else 2.0
                )
                y, disturbed = forward(network, x), forward(network, x * (1.0 + 1e-5 * torch.randn_like(x)))
                if y.std(1).max() > 0 and float((y - disturbed).abs().max()) < 1e-3 * max(1.0, float(y.abs().max())):
                    break
        for precision in precisions:
            for form in ("step", "sequence", "unrolled"):
                path = folder / f"{name}_{precision}_{form}_{opset}.onnx"
                number = steps if form == "unrolled" else None
                options: dict[str, Any] = {
                    "form": form,
                    "num_steps": number,
                    "precision": precision,
                    "opset": opset or OPSET,
                }
                to_onnx(network, path, **options, verify=precision == "float32" and form != "unrolled")
                yield Case(name, form, opset or OPSET, precision, path, *feed(path, x.numpy(), y.numpy()))


def feed(path: Path, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[Arrays, Arrays]:
    """What the model reads, and what it should give: y of torch, and the states of onnxruntime, which the export
    compares with torch.
    """
    from elm_neuro.export.onnx_neuron import OnnxNeuron

    neuron = OnnxNeuron(path, num_threads=1)
    _, after = neuron.run(x)
    names = [value.name for value in neuron.session.get_outputs()]
    states = {f"{name}_next": value for name, value in after.items()}
    return {"x": x, **neuron.initial_state(1)}, {
        name: y if name == "y" else states[name] for name in names if name == "y" or name in states
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the authors' num_memory_20")
    parser.add_argument(
        "--node", type=Path, help="folder whose node_modules holds onnxruntime-web and onnxruntime-node"
    )
    parser.add_argument("--runtimes", nargs="+", help="those to run; all that are installed by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="after which a case is given up")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument(
        "--smoke", action="store_true", help="onnxruntime and onnx's reference evaluator over a few steps, in seconds"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        runtime, model, task, result = args.child
        child(runtime, model, Path(task), Path(result))
        return
    from rich.console import Console
    from rich.table import Table

    num_steps = 500
    there = [name for name, module in PYTHON_RUNTIMES.items() if importlib.util.find_spec(module) is not None]
    if args.node is not None and shutil.which("node") is not None:
        there += [name for name in NODE_RUNTIMES if (args.node / "node_modules" / name).is_dir()]
    if args.smoke:
        args.runtimes, args.repeats, num_steps = ["onnxruntime", "onnx reference"], 1, 6
    unknown = sorted(set(args.runtimes or ()) - set(there))
    if unknown:
        raise SystemExit(f"--runtimes must be of those installed, {there}, got {unknown}")
    runtimes = args.runtimes or there
    table = Table(
        "runtime",
        "network",
        "precision",
        "form",
        "opset",
        "sizes",
        "result",
        "ms",
        "load ms",
        title=f"{num_steps} steps, batch 1, one thread",
    )
    results, failed = [], False
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        newest = list(cases(folder, args.checkpoint, None, num_steps=num_steps))
        older: dict[tuple[str, ...], Case] = {}
        for runtime in runtimes:
            version = version_of(runtime, args.node)
            with console.status(runtime):
                for case in newest:
                    options: dict[str, Any] = {"node": args.node, "repeats": args.repeats, "seconds": args.seconds}
                    found = attempt(runtime, case, folder, **options)
                    tried = [(case, found)]
                    if "failed" in found:
                        tried.append((fixed(case), attempt(runtime, fixed(case), folder, **options)))
                    if "failed" in tried[-1][1]:
                        older = older or {
                            old[:2] + old[3:4]: old
                            for old in cases(folder, args.checkpoint, OLD_OPSET, num_steps=num_steps)
                        }
                        case = fixed(older[case[:2] + case[3:4]])
                        tried.append((case, attempt(runtime, case, folder, **options)))
                    for one, found in tried:
                        failed |= "failed" in found and runtime == "onnxruntime"
                        result = found.get("failed") or f"error {found['error']:.0e}"
                        figures = [f"{found[key]:.1f}" if key in found else "" for key in ("ms", "load_ms")]
                        table.add_row(
                            f"{runtime} {version}",
                            one.network,
                            one.precision,
                            one.form,
                            str(one.opset),
                            one.sizes,
                            result,
                            *figures,
                        )
                        what = {
                            "runtime": runtime,
                            "version": version,
                            "network": one.network,
                            "precision": one.precision,
                        }
                        results.append({**what, "form": one.form, "opset": one.opset, "sizes": one.sizes, **found})
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"num_steps": num_steps, "rows": results}, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit("onnxruntime must compute what torch computes")


if __name__ == "__main__":
    main()
