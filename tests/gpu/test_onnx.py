"""ONNX models on the CUDA provider: exact, bound on the device, as CUDA graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from elm_neuro import BranchELM

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
    pytest.skip("no GPU for this onnxruntime, which is not onnxruntime-gpu", allow_module_level=True)
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
runtime = pytest.importorskip("elm_neuro.export.onnx_neuron", exc_type=ImportError)

NUM_STEPS = 40  # more than one Concat may join in a CUDA graph


@pytest.fixture
def neuron() -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(40, 2, 20, num_branch=9, num_synapse_per_branch=10).eval()


@pytest.mark.parametrize("form", ["step", "sequence", "unrolled"])
def test_the_provider_is_exact(tmp_path: Path, neuron: BranchELM, form: str) -> None:
    path = tmp_path / "neuron.onnx"
    export.to_onnx(neuron, path, form=form, num_steps=NUM_STEPS if form == "unrolled" else None, verify=False)
    assert export.verify(path, neuron, provider="cuda").runtime == "onnxruntime (CUDAExecutionProvider)"


@pytest.mark.parametrize("options", [{}, {"cuda_graph": True}])
@pytest.mark.parametrize("kind", ["tensor", "array"])
@pytest.mark.parametrize("form", ["step", "unrolled"])
def test_bound_calls_go_on_from_the_states_of_the_last(
    tmp_path: Path, neuron: BranchELM, form: str, kind: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "neuron.onnx"
    export.to_onnx(neuron, path, form=form, num_steps=NUM_STEPS if form == "unrolled" else None, verify=False)
    frames = (torch.rand(3, 5 * NUM_STEPS, 40) < 0.1).float()
    with torch.no_grad():
        expected, after = neuron(frames)
    pieces = list(frames.unbind(1) if form == "step" else frames.split(NUM_STEPS, 1))
    model = runtime.OnnxNeuron(path, providers="cuda", **options)
    bound = model.bound(pieces[0].cuda() if kind == "tensor" else pieces[0].contiguous().numpy())
    found = []
    for piece in pieces:
        y = bound.run(piece if kind == "tensor" else piece.numpy())["y"]
        found.append(y.cpu().clone() if kind == "tensor" else torch.from_numpy(y.numpy().copy()))
    y = torch.stack(found, 1) if form == "step" else torch.cat(found, 1)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    m = bound.state["m"]
    torch.testing.assert_close(m.cpu() if kind == "tensor" else torch.from_numpy(m.numpy()), after.m, rtol=0, atol=1e-5)
