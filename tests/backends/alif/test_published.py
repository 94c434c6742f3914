"""The published loop and Blocks, frozen: spikes to the last one, membranes, readout, loss and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elm_neuro import ALIF, SpikeEvents
from elm_neuro.backends.alif import OPERATOR
from elm_neuro.functional import FastSigmoid, MultiGaussian

SIZES = [("lat0", "T100"), ("lat1", "T64"), ("lat4", "T64"), ("lat20", "T100")]
NAMES = [f"{latency}_{kind}_{steps}" for latency, steps in SIZES for kind in ("rec", "ff")]
BACKENDS = [backend.name for backend in OPERATOR if backend.missing() is None]
BLOCKS = [name for name in BACKENDS if name in ("torch", "native")]


def layer_of(data: Any, dtype: torch.dtype, backend: str, gradient: str = "loop") -> ALIF:
    config = json.loads(str(data["config_json"]))
    num_neuron, num_input = data["param.W_in"].shape
    surrogate = MultiGaussian() if config["surrogate"] == "multi_gaussian" else FastSigmoid()
    latency, recurrent = float(config["latency"]), config["recurrent"]
    settings: Any = {"latency": latency, "recurrent": recurrent, "surrogate": surrogate, "gradient": gradient}
    layer = ALIF(num_input, num_neuron, backend=backend, **settings).to(dtype)
    names = {"weight": "W_in", "bias": "bias", "beta": "beta_raw", "p": "p_raw", "b": "b_raw"}
    names |= {"w_rec": "W_rec"} if recurrent else {}
    with torch.no_grad():
        for ours, theirs in names.items():
            getattr(layer.cell, ours).copy_(torch.from_numpy(data[f"param.{theirs}"]))
    return layer


def loss_of(data: Any, spikes: Tensor) -> tuple[Tensor, Tensor]:
    """The readout, leaky and without a threshold, (batch, 5, time), and the cross entropy of its mean."""
    weight, bias, beta = (
        torch.from_numpy(data[f"param.readout_{name}"]).to(spikes.dtype) for name in ("W", "bias", "beta")
    )
    v, record = spikes.new_zeros(spikes.shape[0], weight.shape[0]), []
    for current in (spikes @ weight.mT + bias).unbind(1):
        v = beta * v + current
        record.append(v)
    readout = torch.stack(record, -1)
    logits = readout.sum(-1) / spikes.shape[1]
    return readout, torch.nn.functional.cross_entropy(logits, torch.from_numpy(data["target"]).long())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", ["frames", "events"])
@pytest.mark.parametrize(
    ("method", "backend"), [*(("seq", name) for name in BACKENDS), *(("blocks", name) for name in BLOCKS)]
)
def test_the_published_loop_and_blocks(name: str, given: str, method: str, backend: str, shared: Path) -> None:
    with np.load(shared / "data" / "blocks" / f"{name}.npz") as file:
        data = {key: file[key] for key in file.files}
    frozen = {key[len(f"f64.{method}.") :]: value for key, value in data.items() if key.startswith(f"f64.{method}.")}
    layer = layer_of(data, torch.float64, backend, {"seq": "loop", "blocks": "blocks"}[method])
    x = torch.from_numpy(data["x"]).double().transpose(1, 2).contiguous()
    if given == "frames":
        x.requires_grad_()
    spikes, _ = layer(x if given == "frames" else SpikeEvents.from_frames(x))
    np.testing.assert_array_equal(spikes.detach().numpy(), frozen["spikes"].transpose(0, 2, 1))
    assert 0.02 < float(spikes.detach().mean()) < 0.15
    readout, loss = loss_of(data, spikes)
    np.testing.assert_allclose(readout.detach().numpy(), frozen["readout"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(loss.item(), frozen["loss"], rtol=0, atol=1e-12)
    loss.backward()
    found = {"W_in": layer.cell.weight, "bias": layer.cell.bias, "beta_raw": layer.cell.beta}
    found |= {"p_raw": layer.cell.p, "b_raw": layer.cell.b, "W_rec": layer.cell.w_rec}
    for key, parameter in found.items():
        if parameter is not None:
            assert parameter.grad is not None and bool(parameter.grad.any())
            same_gradient(parameter.grad, frozen[f"grad.{key}"])
    if given == "frames":
        assert x.grad is not None
        same_gradient(x.grad, frozen["grad.x"].transpose(0, 2, 1))


def same_gradient(found: Tensor, wanted: Any) -> None:
    """To 1e-9 of the largest: the published multi-Gaussian has its square root of 2 pi in single precision."""
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-9 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_its_spikes_in_single_precision(name: str, backend: str, shared: Path) -> None:
    with np.load(shared / "data" / "blocks" / f"{name}.npz") as file:
        data = {key: file[key] for key in file.files}
    x = torch.from_numpy(data["x"]).float().transpose(1, 2).contiguous()
    spikes, _ = layer_of(data, torch.float32, backend)(x)
    assert torch.equal(spikes, layer_of(data, torch.float32, "auto", "blocks")(x)[0])
    np.testing.assert_array_equal(spikes.detach().numpy(), data["f32.seq.spikes"].transpose(0, 2, 1))
