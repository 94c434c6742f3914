"""ONNX: neurons and networks of them as standard operators, and the check that these compute what the module does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from elm_neuro.export._graph import HALF_TYPES
from elm_neuro.export._lowering import written_weights
from elm_neuro.export._model import Built, build, model_of, size_of
from elm_neuro.export._nodes import ExportError
from elm_neuro.export._options import Options, integer, options_of
from elm_neuro.export._session import REFERENCE
from elm_neuro.export._verify import NUM_STEPS, VerifyReport, compare
from elm_neuro.files import read_file, whole_files, write_whole

# newer versions of Scan, Identity and Pad have no kernel in onnxruntime's CUDA provider; tests/export/test_operators.py
OPSET = 18
MAX_BYTES = 2**31 - 2**24  # of constants in the file itself: protobuf ends at 2 GiB
LEAST_APART = 1024  # bytes of a constant that goes into the second file
RUNTIME = "onnx_neuron.py"
STORED = {**HALF_TYPES, "int8": onnx.TensorProto.INT8}  # kinds of the matrices' constants in lower precision


def to_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    form: str = "step",
    num_steps: int | None = None,
    precision: str = "float32",
    opset: int = OPSET,
    batch_first: bool = True,
    batch_size: int | None = None,
    shared_input: bool = True,
    head: str | None = None,
    lengths: bool = False,
    input_dtype: str | None = None,
    source: str | os.PathLike[str] | None = None,
    runtime: bool = False,
    verify: bool = True,
) -> VerifyReport | None:
    """Write a neuron, or a network of them, as an ONNX model of standard operators, with the effective parameters as
    constants.

    - "step" is one time step with the states as inputs and outputs, ``y, b_next, m_next = model(x, b, m)``: for
      streaming.
    - "sequence" takes sequences of any length; only the memory's loop is a Scan, all else is done for all steps at
      once.
    - "unrolled" takes sequences of `num_steps` steps and has no control flow, for runtimes that dislike it; six
      operators a step of an ELM.

    Start with zeros for the states, and feed ``b_next`` back as ``b`` to go on. Spiking layers give 0 or 1; a single
    spiking ELM has its readout as a second output, ``v``. Configuration, time constants, units and versions are in the
    model's metadata.

    Args:
        module: an ELM, BranchELM, population, SpikingELM, ALIF, LIF or ELMNetwork, a face of snnTorch or norse, a
            classifier of theirs (docs/how-to/onnx.md names them), or an `nn.Sequential` of these and of linear and
            pointwise layers, in float32 or float64.
        path: file to write; it is replaced only by a whole and, with `verify`, a verified one. Constants of 2 GB and
            more go into a second file beside it, `path` + ".data".
        form: "step", "sequence" or "unrolled".
        num_steps: length of the sequences of the form "unrolled".
        precision: of the matrix products: "float32" (the module's own), "float16" or "bfloat16" (which onnxruntime has
            on GPUs only), or "int8", which stores the matrices in a quarter of the space, with one scale an output;
            states, traces, inputs and outputs keep the module's. In "int8" so does all that flows, so that a sample
            never depends on its batch, on the chunks it comes in or on its future.
        opset: version of the standard operators, from 17 to 26.
        batch_first: sequences are (batch, time, ...), or with False (time, batch, ...).
        batch_size: fixed size of the batch; any by default.
        shared_input: for a population, the neurons read one input, or with False each its own, (batch, [time,]
            num_neuron, input_size).
        head: "neuronio" gives ``spike_probability`` and ``soma_mv`` in place of y, as
            :func:`elm_neuro.checkpoints.neuronio_head`.
        lengths: the model has a further input `lengths` (batch,), int64, for batches of sequences of different length:
            states stop where a sample ends, outputs are zero past it, a readout of the last step or of the mean takes
            each sample's own steps. Not for the form "step".
        input_dtype: "uint8" or "int8" for frames of bytes, a quarter of what float32 moves to a device and numbers that
            are the same: the model makes floats of them. By default x has the module's dtype.
        source: a file or folder the module was loaded from, whose SHA-256 goes into the metadata.
        runtime: write ``onnx_neuron.py`` beside the model, which runs it with NumPy and onnxruntime alone.
        verify: compare the model with the module in onnxruntime before writing.

    Returns:
        The report of :func:`verify`, None without it.

    Raises:
        TypeError: a layer, or a dtype, that cannot be exported; a number that is none.
        ValueError: an argument is unknown, missing or out of range.
        ExportError: the layers do not fit together, a module has hooks or a forward that its class does not have, or
            onnxruntime computes something else than the module.

    Warns:
        UserWarning: a model in bfloat16 was verified with onnx's reference evaluator, for want of a GPU.

    >>> import tempfile
    >>> from elm_neuro import ELM
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = to_onnx(ELM(3, 1, num_memory=2), f"{folder}/neuron.onnx", form="sequence")
    >>> sorted(report.errors)
    ['b_next', 'm_next', 'y']
    """
    options = Options(form, num_steps, precision, batch_first, batch_size, shared_input, head, lengths, input_dtype)
    options, opset = options.checked(opset)
    path = Path(path)
    with torch.device("cpu"), written_weights(module):
        built = build(module, options, opset)
        if precision != "float32" and built.dtype != torch.float32:
            raise ValueError(f"precision must be float32 for a module in {built.dtype}, got {precision!r}")
        model = model_of(built, source=None if source is None else _sha256(Path(source)))
        if verify and precision != "float32":  # what is wrong in the graph would hide behind the error of the rounding
            exact = build(module, dataclasses.replace(options, precision="float32"), opset)
            if size_of(exact) <= MAX_BYTES:
                compare(model_of(exact).SerializeToString(), exact, num_steps=NUM_STEPS, seed=0)
        report = _write(model, path, built, runtime=runtime, verify=verify)
    if report is not None and report.runtime == REFERENCE:
        warnings.warn(
            f"{path} holds bfloat16 products, which onnxruntime's CPU provider cannot load: it was verified with "
            f"{REFERENCE}, and runs in the CUDA provider and in TensorRT",
            stacklevel=2,
        )
    return report


def _write(model: onnx.ModelProto, path: Path, built: Built, *, runtime: bool, verify: bool) -> VerifyReport | None:
    """Put a model in its place once it is verified, with constants that are too many for one file beside it."""
    beside = {path.with_name(RUNTIME): read_file(Path(__file__).with_name(RUNTIME))} if runtime else {}
    if size_of(built) <= MAX_BYTES:
        content = model.SerializeToString()
        report = compare(content, built, num_steps=NUM_STEPS, seed=0) if verify else None
        write_whole(beside | {path: content})
        return report
    path = path.resolve()  # beside what a link leads to, where a runtime looks for it
    data = path.with_name(f"{path.name}.data")
    with whole_files(data, path) as (data_file, model_file):
        onnx.save_model(
            model, str(model_file), save_as_external_data=True, location=data_file.name, size_threshold=LEAST_APART
        )
        report = compare(model_file, built, num_steps=NUM_STEPS, seed=0) if verify else None
        for constant in model.graph.initializer:
            for entry in constant.external_data:
                if entry.key == "location":
                    entry.value = data.name
        model_file.write_bytes(model.SerializeToString())
    write_whole(beside)
    return report


def verify(
    path: str | os.PathLike[str], module: nn.Module, *, num_steps: int = NUM_STEPS, seed: int = 0, provider: str = "cpu"
) -> VerifyReport:
    """Compare an ONNX model of :func:`to_onnx` with the module that it was made from.

    The file passes onnx's full check and strict shape inference; then onnxruntime runs it beside the module itself (a
    copy, which is called as a user calls it) in chunks of random length, its outputs matched by name, each chunk from
    where the module's last one ended: several batch sizes, zeros and random states to start with, sparse and dense
    inputs, and louder ones while a spiking layer is silent. Where a neuron amplifies rounding errors more is allowed:
    ten times what torch's own rounding makes, seen by running the module in float32 and in float64. Spikes must be
    equal, except where a readout is so near its threshold that rounding decides; the report counts the steps that were
    left out for that and the values that were compared, and too few of them are an error.

    In a lower precision every step counts, as a user sees it: the root mean square of the difference by the spread of
    the output, the share of spikes that differ, and how often another output is the largest. What is allowed lies
    above what rounding costs and below what one wrong matrix does.

    Args:
        path: the model.
        module: what it was made from, with the same weights.
        num_steps: length of the longest sequence; the form "unrolled" has its own.
        seed: of the random inputs and states; torch's own random numbers are not touched.
        provider: onnxruntime's execution provider, by its name, or "cuda" in exact float32.

    Raises:
        ValueError: the file is not a model of :func:`to_onnx`, or num_steps is below 1.
        ExportError: it is not a model of this module, or an output is off by more than the tolerance, or could not be
            compared; the message says which and by how much. Or the module does more than its class: it has hooks or a
            forward of its own.
    """
    num_steps = integer("num_steps", num_steps)
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    path = Path(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # protobuf's own kinds
        raise ValueError(f"path must be an ONNX model, got {path}: {error}") from error
    options, opset = options_of(model, path)
    with torch.device("cpu"), written_weights(module):
        built = build(module, options, opset)
        _check_made(model, built)
        return compare(path, built, num_steps=num_steps, seed=seed, provider=provider)


def _check_made(model: onnx.ModelProto, built: Built) -> None:
    """Refuse a model whose metadata say of its readouts, or of the precision of its matrices, what is not so: the
    comparison would go by them.
    """
    words = {entry.key: entry.value for entry in model.metadata_props}
    said = words.get("elm_neuro.readouts")
    # of earlier files a list of names
    if said not in (json.dumps(built.readouts), json.dumps([*built.readouts])):
        raise ExportError(f"the model must say of its readouts {json.dumps(built.readouts)}, got {said}")
    kind = STORED.get(built.options.precision)
    if kind is None:
        return
    found = sorted(tuple(constant.dims) for constant in model.graph.initializer if constant.data_type == kind)
    if found != built.lowered:
        raise ExportError(
            f"the model must store {len(built.lowered)} matrices in {built.options.precision}, of the shapes of the "
            f"module's, got {len(found)} of the shapes {found}"
        )


def _sha256(source: Path) -> str:
    """Of a file, or of the weights in a folder."""
    names = ("model.safetensors", "neuronio_best_model_state.pt")
    files = [source] if source.is_file() else [source / name for name in names if (source / name).is_file()]
    if not files:
        raise ValueError(f"source must be a file or a folder with one of {list(names)}, got {source}")
    return f"{files[0].name} sha256 {hashlib.sha256(files[0].read_bytes()).hexdigest()}"


__all__ = ["ExportError", "VerifyReport", "to_onnx", "verify"]
