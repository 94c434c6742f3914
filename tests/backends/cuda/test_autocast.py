"""Passes on the GPU whose backward pass is called inside autocast: exact, as outside of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, ELMNetwork, SpikeEvents
from elm_neuro.backends.elm import _cuda_plan
from tests.backends.cuda.conftest import forget
from tests.backends.cuda.fake_driver import FakeDriver

LAYERS: dict[str, Any] = {
    "few outputs": lambda: ELM(20, 3, num_memory=10, backend="cuda"),
    "many outputs": lambda: ELM(20, 12, num_memory=10, backend="cuda"),
    "no hidden layer": lambda: ELM(20, 12, num_memory=10, num_mlp_layers=0, backend="cuda"),
    "population": lambda: ELM(20, 12, num_memory=10, num_neuron=2, backend="cuda"),
    "LIF": lambda: ALIF(20, 8, recurrent=True, backend="cuda"),
    "network": lambda: ELMNetwork(20, 8, 3, num_branch=3, num_synapse_per_branch=4, backend="cuda"),
}


def gradients(layer: nn.Module, x: Any, *, inside: bool) -> dict[str, Tensor]:
    layer.zero_grad()
    y, after = layer(x)
    loss = sum(part.square().sum() for part in (y, *after))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        loss.backward()
    found = {name: one.grad.clone() for name, one in layer.named_parameters() if one.grad is not None}
    if isinstance(x, Tensor) and x.requires_grad:
        found["x"], x.grad = x.grad.clone(), None
    return found


@pytest.mark.parametrize("most", [None, 0])  # work above which weight gradients are products of torch's
@pytest.mark.parametrize("kind", ["frames", "frames with a gradient", "events", "bytes"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_backward_pass_inside_autocast_is_exact(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, most: int | None
) -> None:
    if most is not None:
        monkeypatch.setattr(_cuda_plan, "MAX_WORK", most)
        forget()
    torch.manual_seed(0)
    layer, frames = LAYERS[name](), (torch.rand(3, 15, 20) < 0.2).float()
    x = {
        "frames": lambda: frames,
        "frames with a gradient": frames.requires_grad_,
        "events": lambda: SpikeEvents.from_frames(frames),
        "bytes": lambda: frames.to(torch.uint8),
    }[kind]()
    outside, inside = (gradients(layer, x, inside=inside) for inside in (False, True))
    assert any(bool(grad.any()) for grad in outside.values())
    for one, exact in outside.items():
        # products that stand outside of the pass are torch's, and narrowed by it
        by_torch = name in ("LIF", "network") and one in ("cell.weight", "w_s", "mlp.0.weight", "x")
        allowed = 0.02 * float(exact.abs().max()) if by_torch else 0.0
        torch.testing.assert_close(inside[one], exact, rtol=0.0, atol=allowed, msg=lambda text, of=one: f"{of}: {text}")
