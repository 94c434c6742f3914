"""The commands elm-neuro export and elm-neuro onnx."""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from elm_neuro.cli._stored import load

FORMS = ("step", "sequence", "unrolled")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
INPUT_DTYPES = ("uint8", "int8")


def add_parsers(commands: Any) -> None:
    """Declare both commands."""
    export = commands.add_parser("export", help="write a trained neuron or network as an ONNX model and verify it")
    export.description = (
        "Write a trained neuron or network as an ONNX model, verified with onnxruntime: a folder of save_pretrained, a "
        "checkpoint of the "
        "authors' repository, a model on the Hugging Face Hub, or a checkpoint of elm-neuro fit."
    )
    export.add_argument("checkpoint", metavar="CHECKPOINT")
    export.add_argument(
        "--out", type=Path, metavar="F", help="file to write (default: FORM.onnx beside the checkpoint)"
    )
    export.add_argument(
        "--form",
        choices=FORMS,
        default="step",
        help="one step, sequences of any length, or of a fixed one (default: step)",
    )
    export.add_argument("--num-steps", type=int, metavar="T", help="length of the sequences of --form unrolled")
    export.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of the matrix products (default: float32)"
    )
    export.add_argument(
        "--head", choices=["neuronio"], help="spike probability and somatic voltage in mV in place of raw outputs"
    )
    export.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators")
    export.add_argument("--batch-size", type=int, metavar="B", help="fix the size of the batch")
    export.add_argument(
        "--time-first", action="store_true", help="sequences are (time, batch, input), not (batch, time, input)"
    )
    export.add_argument(
        "--lengths", action="store_true", help="a further input: the steps of each sample, whose state stops there"
    )
    export.add_argument("--input-dtype", choices=INPUT_DTYPES, help="frames of bytes, which the model makes floats of")
    export.add_argument(
        "--runtime",
        action="store_true",
        help="put onnx_neuron.py beside the model: it runs it with NumPy and onnxruntime alone",
    )
    export.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with torch before writing (default: yes)",
    )
    export.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="whose classes the checkpoint may name, besides those of elm_neuro: their code is run",
    )
    onnx = commands.add_parser("onnx", help="run or time an exported model")
    kinds = onnx.add_subparsers(dest="kind", metavar="run|bench", required=True)
    run = kinds.add_parser("run", help="run a model over a sequence in a .npy or .npz file")
    run.add_argument("model", metavar="MODEL")
    run.add_argument(
        "input",
        metavar="INPUT",
        help=".npy of x, or .npz with x and, to go on, the states by their names, or lengths for a model of --lengths",
    )
    run.add_argument(
        "--out",
        type=Path,
        default=Path("outputs.npz"),
        metavar="F",
        help="outputs and last states (default: outputs.npz)",
    )
    bench = kinds.add_parser("bench", help="time a model on random spikes")
    bench.add_argument("model", metavar="MODEL")
    bench.add_argument("--batch", type=int, metavar="B", help="(default: the model's own, or else 1)")
    bench.add_argument(
        "--num-steps", type=int, default=100, metavar="T", help="of a sequence; an unrolled model has its own"
    )
    bench.add_argument(
        "--bound", action="store_true", help="input, outputs and states stay on the provider's device between calls"
    )
    bench.add_argument(
        "--cuda-graph", action="store_true", help="--provider cuda replays a recorded call; implies --bound"
    )
    bench.add_argument("--repeats", type=int, default=50, metavar="N")
    for command in (run, bench):
        command.add_argument(
            "--provider",
            default="cpu",
            help="onnxruntime's execution provider: cpu, cuda, tensorrt or its own name (default: cpu)",
        )
        command.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU of --provider cuda")
        command.add_argument("--tf32", action="store_true", help="let --provider cuda round products to TF32")
        command.add_argument("--threads", type=int, metavar="N")


def export_command(options: argparse.Namespace) -> int:
    """Write the model and say how far it is from torch."""
    from rich.console import Console
    from rich.table import Table

    from elm_neuro.export.onnx import OPSET, to_onnx

    module, place = load(options.checkpoint, tuple(options.trust))
    name = f"{options.form}.onnx" if options.precision == "float32" else f"{options.form}_{options.precision}.onnx"
    path = options.out or place / name
    report = to_onnx(
        module,
        path,
        form=options.form,
        num_steps=options.num_steps,
        precision=options.precision,
        opset=OPSET if options.opset is None else options.opset,
        batch_first=not options.time_first,
        batch_size=options.batch_size,
        head=options.head,
        lengths=options.lengths,
        input_dtype=options.input_dtype,
        source=options.checkpoint if os.path.exists(options.checkpoint) else None,
        runtime=options.runtime,
        verify=options.verify,
    )
    console = Console()
    console.print(
        f"{path}: {type(module).__name__}, form {options.form}, {path.stat().st_size / 1000:.0f} kB",
        highlight=False,
        soft_wrap=True,
    )
    if report is None:
        console.print("not verified", highlight=False)
        return 0
    table = Table(
        "output",
        "error",
        "allowed",
        title=f"{report.runtime} against torch over {report.num_steps} steps, opset {report.opset}",
        caption=report.unit,
    )
    for output, error in report.errors.items():
        table.add_row(output, f"{error:.1e}", f"{report.tolerances[output]:.1e}")
    console.print(table)
    if report.num_undecided:
        console.print(
            f"{report.num_undecided} steps were left out: a readout within rounding of its threshold", highlight=False
        )
    if report.silent:
        console.print(f"never fired, so that nothing behind them was seen: {', '.join(report.silent)}", highlight=False)
    return 0


def onnx_command(options: argparse.Namespace) -> int:
    """Run or time a model."""
    import numpy as np

    from elm_neuro.export.onnx_neuron import OnnxNeuron
    from elm_neuro.files import write_whole

    start = time.perf_counter()
    recorded = options.kind == "bench" and options.cuda_graph
    model = OnnxNeuron(
        options.model,
        providers=[options.provider],
        num_threads=options.threads,
        device=options.device,
        tf32=options.tf32,
        cuda_graph=recorded,
    )
    loading = time.perf_counter() - start
    if options.kind == "run":
        try:
            with open(options.input, "rb") as file:
                loaded = np.load(file, allow_pickle=False)
                arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"INPUT must be a .npy or .npz file of numbers, got {options.input}: {error}") from error
        if "x" not in arrays:
            raise ValueError(f"INPUT must hold x, got {sorted(arrays)} in {options.input}")
        x = arrays.pop("x")
        lengths = arrays.pop("lengths", None)
        outputs, state = model.run(x, arrays or None, lengths)
        content = io.BytesIO()
        arrays = {**outputs, **state}
        np.savez(content, **arrays)
        write_whole({options.out: content.getvalue()})
        print(f"{options.out}: " + ", ".join(f"{name} {value.shape}" for name, value in arrays.items()))
        return 0
    x_shape = model.session.get_inputs()[0].shape
    size = x_shape[0 if model.form == "step" or model.batch_first else 1]  # a name where it is not fixed
    batch = options.batch if options.batch is not None else size if isinstance(size, int) else 1
    steps = model.num_steps or (1 if model.form == "step" else options.num_steps)
    if min(batch, steps, options.repeats) < 1:
        raise ValueError(
            f"--batch, --num-steps and --repeats must be at least 1, got {batch}, {steps} and {options.repeats}"
        )
    if isinstance(size, int) and batch != size:
        raise ValueError(f"--batch must be {size}, that of the model, got {batch}")
    shape = tuple(x_shape[1 if model.form == "step" else 2 :])
    leading = [batch] if model.form == "step" else [batch, steps]
    leading = leading if model.batch_first else leading[::-1]
    x = (np.random.default_rng(0).random((*leading, *shape)) < 0.05).astype(model.x_dtype)
    bound = options.bound or recorded
    step = model.step if model.form == "step" else model.run
    call = model.bound(x).run if bound else partial(step, x)
    times = []
    for _ in range(options.repeats + 3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    low, middle, high = (1e3 * float(value) for value in np.percentile(times[3:], [5, 50, 95]))
    measured = {
        "form": model.form,
        "provider": model.providers[0],
        "bound": bound,
        "batch": batch,
        "num_steps": steps,
        "load_ms": round(1e3 * loading, 2),
        "median_ms": round(middle, 4),
        "p5_ms": round(low, 4),
        "p95_ms": round(high, 4),
        "steps_per_s": round(batch * steps / middle * 1e3),
    }
    print(json.dumps(measured))
    return 0
