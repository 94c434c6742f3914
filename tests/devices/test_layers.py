"""Every layer on every device: the reference's numbers, states that go on, lengths, events and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ELM, LIF, SpikeEvents, backends
from elm_neuro.checkpoints import from_pretrained, save_pretrained
from tests.layers import BATCH, CELLS, INPUTS, LAYERS
from tests.tolerances import assert_close

STEPS, CUT = 9, 4
LENGTHS = torch.tensor([STEPS - CUT, 0, 3])
KINDS = ["frames", "events", "bytes"]


def counts() -> Tensor:
    rates = torch.full((BATCH, STEPS, INPUTS), 0.8)
    return torch.poisson(rates, generator=torch.Generator().manual_seed(1)).double()


def given(kind: str, x: Tensor) -> Any:
    return {"frames": x, "events": SpikeEvents.from_frames(x), "bytes": x.to(torch.uint8)}[kind]


def made(make: Any) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = make().double()  # spikes are then where the reference has them
    return module


def results(layer: nn.Module, kind: str) -> list[Tensor]:
    """Outputs and states of two calls, the second with lengths from where the first ended, and all gradients."""
    place = next(layer.parameters()).device
    x = counts().to(place)
    first, state = layer(given(kind, x[:, :CUT]))
    second, state = layer(given(kind, x[:, CUT:]), state, LENGTHS.to(place))
    found = [first, second, *state]
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(place) for part in found]
    torch.stack([(part * weight).sum() for part, weight in zip(found, weights, strict=True)]).sum().backward()
    return [part.detach() for part in found] + [
        torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters()
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_states_and_gradients_are_the_references(name: str, kind: str, device: torch.device) -> None:
    with backends.use("reference"):
        expected = results(made(LAYERS[name]), "frames")
    found = results(made(LAYERS[name]).to(device), kind)
    assert all(part.device.type == device.type for part in found)
    for result, wanted in zip(found, expected, strict=True):
        assert_close(result.cpu(), wanted)


@pytest.mark.parametrize("name", CELLS)
def test_cells_go_on_from_step_to_step(name: str, device: torch.device) -> None:
    outputs = []
    for place in (torch.device("cpu"), device):
        cell, state, found = made(CELLS[name]).to(place), None, []
        for x_t in counts().to(place).unbind(1):
            y, state = cell(x_t, state)
            found.append(y)
        torch.stack(found).sum().backward()
        grads = [p.grad.cpu() for p in cell.parameters() if p.grad is not None]
        outputs.append([torch.stack(found).detach().cpu(), *grads])
    for result, wanted in zip(outputs[1], outputs[0], strict=True):
        assert_close(result, wanted)


@pytest.mark.parametrize("name", ["BranchELM", "flat population", "ALIF", "SpikingELM with reset"])
def test_what_is_saved_from_a_device_loads_on_any(name: str, tmp_path: Path, device: torch.device) -> None:
    layer = made(LAYERS[name]).to(device)
    with torch.no_grad():
        wanted = layer(counts().to(device))[0].cpu()
        save_pretrained(layer, tmp_path)
        loaded: Any = from_pretrained(tmp_path)
        assert_close(loaded.double()(counts())[0], wanted)
        assert_close(loaded.to(device)(counts().to(device))[0].cpu(), wanted)


def test_float32_stays_within_the_table(device: torch.device) -> None:
    for kind in KINDS:
        with torch.no_grad():
            wanted = made(LAYERS["BranchELM"])(counts())[0]
            found = made(LAYERS["BranchELM"]).float().to(device)(given(kind, counts().float().to(device)))[0]
        assert_close(found.double().cpu(), wanted, dtype=torch.float32)


def test_what_lies_on_another_device_is_named(device: torch.device) -> None:
    other = torch.device("meta")
    for layer in (ELM(INPUTS, 2).to(device), LIF(INPUTS, 2).to(device)):
        with pytest.raises(ValueError, match=f"x must be on {device.type}.* like the parameters, got meta"):
            layer(torch.zeros(1, 2, INPUTS, device=other))


def runs(name: str, params: Any) -> bool:
    """Whether a backend runs on the parameters' device."""
    if backends.available()[name].startswith("cannot run"):
        return False
    return backends.elm.OPERATOR[name].refusal_of(params.kappa_m) is None


def test_every_backend_of_the_device_gives_the_references_numbers(device: torch.device) -> None:
    neuron: Any = made(LAYERS["BranchELM"]).to(device)
    params, x = neuron.cell.effective_parameters(), counts().to(device)
    expected, _ = backends.scan(x, params, None, backend="reference")
    ran = [name for name in backends.available() if runs(name, params)]
    for name in ran:
        assert_close(backends.scan(x, params, None, backend=name)[0], expected)
    assert {"torch", "reference", backends.resolve("auto", params.kappa_m)} <= set(ran)
