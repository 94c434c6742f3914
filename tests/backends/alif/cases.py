"""Drawn layers, inputs, states and lengths, and all that a call of them gives, both ways."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from elm_neuro import ALIF, LIF, ALIFState, SpikeEvents
from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid


@st.composite
def layers(draw: st.DrawFn, gradient: str = "loop") -> ALIF:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    num_input, num_neuron = draw(st.sampled_from([1, 5, 20])), draw(st.sampled_from([1, 3, 16, 17, 33, 40]))
    layer: ALIF = draw(st.sampled_from([ALIF, LIF]))(
        num_input,
        num_neuron,
        latency=float(draw(st.sampled_from([0, 1, 4, 20, 100]))),
        recurrent=draw(st.booleans()),
        surrogate=draw(st.sampled_from([FastSigmoid(), ATan(), Boxcar(), MultiGaussian(), Sigmoid()])),
        detach_reset=gradient == "blocks" or draw(st.booleans()),
        detach_recurrent=gradient == "blocks" or draw(st.booleans()),
        gradient=gradient,
        tau_v=5.0,
        generator=generator,
    )
    with torch.no_grad():
        layer.cell.weight.mul_(4)
        layer.cell.bias.add_(0.2)
        if layer.cell.w_rec is not None:
            layer.cell.w_rec.copy_(0.4 * torch.randn(num_neuron, num_neuron, generator=generator))
    return layer.double()


@st.composite
def calls(
    draw: st.DrawFn, gradient: str = "loop"
) -> tuple[ALIF, Tensor | SpikeEvents, ALIFState | None, Tensor | None]:
    layer = draw(layers(gradient))
    batch, num_steps = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 5, 31, 32, 33, 70]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    x = (uniform(batch, num_steps, layer.input_size) < 0.4) * uniform(batch, num_steps, layer.input_size)
    state = None
    if draw(st.booleans()):
        remembered = (uniform(batch, layer.cell.latency_steps + 1, layer.output_size) < 0.1).double()
        parts = uniform(batch, layer.output_size) * 2 - 1, uniform(batch, layer.output_size), remembered
        state = ALIFState(*(part.requires_grad_() for part in parts))
    lengths = torch.randint(0, num_steps + 1, (batch,), generator=generator) if draw(st.booleans()) else None
    as_events = draw(st.booleans())
    return layer, SpikeEvents.from_frames(x) if as_events else x.requires_grad_(draw(st.booleans())), state, lengths


def everything(layer: ALIF, backend: str, x: Any, state: ALIFState | None, lengths: Tensor | None) -> list[Tensor]:
    layer.backend = backend
    leaves = [*layer.parameters(), *([x] if isinstance(x, Tensor) and x.requires_grad else []), *(state or ())]
    spikes, after = layer(x, state, lengths)
    generator = torch.Generator().manual_seed(7)
    weighted = [(r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in (spikes, *after)]
    grads = torch.autograd.grad(torch.stack(weighted).sum(), leaves, allow_unused=True)
    filled = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, grads, strict=True)]
    return [r.detach() for r in (spikes, *after)] + filled
