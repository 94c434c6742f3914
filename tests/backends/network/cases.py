"""Drawn layers, inputs, states, lengths and masks, and all that a scan of them gives, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from elm_neuro import SpikeEvents
from elm_neuro.backends import network
from elm_neuro.functional import (
    ATan,
    Boxcar,
    FastSigmoid,
    MultiGaussian,
    NetworkParams,
    NetworkRule,
    NetworkState,
    Sigmoid,
)


class Call(NamedTuple):
    """What a scan is called with."""

    x: Tensor | SpikeEvents
    params: NetworkParams
    state: NetworkState | None
    rule: NetworkRule
    options: dict[str, Tensor | None]


def made(
    seed: int,
    *,
    sizes: tuple[int, int, int, int, int] = (6, 5, 3, 2, 4),
    hidden: tuple[int, ...] = (4,),
    trace: bool = False,
    high_pass: bool = True,
    **rule: Any,
) -> tuple[NetworkParams, NetworkRule]:
    """Parameters of a layer of (input_size, num_neuron, num_branch, num_synapse_per_branch, num_memory)."""
    input_size, num_neuron, num_branch, num_synapse, num_memory = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    index = torch.randint(input_size + num_neuron, (num_neuron, num_branch * num_synapse), generator=generator)
    widths = [num_branch + num_memory, *hidden, num_memory]
    pairs = list(zip(widths, widths[1:], strict=False))
    params = NetworkParams(
        index=index,
        w_s=normal(num_neuron, num_branch * num_synapse),
        mlp_weight=tuple(normal(num_neuron, out, into) / into**0.5 for into, out in pairs),
        mlp_bias=tuple(0.3 * normal(num_neuron, out) for _, out in pairs),
        w_y=normal(num_neuron, num_memory),
        bias=0.1 * normal(num_neuron),
        kappa_m=between(0.2, 0.99, num_neuron, num_memory),
        gain=between(0.05, 0.9, num_neuron, num_memory),
        kappa_b=between(0.2, 0.9, num_neuron, num_branch) if trace else None,
        kappa_r=between(0.2, 0.9, num_neuron) if high_pass else None,
    )
    return params, NetworkRule(**{"input_scale": 1.5} | rule)


@st.composite
def calls(draw: st.DrawFn, *, activations: tuple[str, ...] = ("relu_squared", "relu", "silu")) -> Call:
    sizes = (
        draw(st.sampled_from([1, 6, 70])),
        draw(st.sampled_from([1, 3, 5, 9, 17, 19])),
        draw(st.sampled_from([1, 3, 8, 30])),
        draw(st.sampled_from([1, 2, 10])),
        draw(st.sampled_from([1, 3, 5, 8, 9])),
    )
    surrogates = [FastSigmoid(100.0), ATan(), Boxcar(), MultiGaussian(), Sigmoid()]
    params, rule = made(
        draw(st.integers(0, 9999)),
        sizes=sizes,
        hidden=draw(st.sampled_from([(), (4,), (10,), (6, 7)])),
        trace=draw(st.booleans()),
        high_pass=draw(st.booleans()),
        activation=draw(st.sampled_from(activations)),
        output=draw(st.sampled_from(["relu", "identity", "spike"])),
        surrogate=draw(st.sampled_from(surrogates)),
    )
    # so that no drawn layer is chaotic: over 33 steps one amplified the last bit of its weights to 1e-8
    params = params._replace(w_s=torch.where(params.index < sizes[0], params.w_s, 0.3 * params.w_s))
    batch, num_steps = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 7, 33]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    input_size, num_neuron, num_branch, _, num_memory = sizes
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    x = (uniform(batch, num_steps, input_size) < density) * (0.5 + uniform(batch, num_steps, input_size))
    state = None
    if draw(st.booleans()):
        shapes = (num_neuron,), (num_neuron, num_branch), (num_neuron, num_memory), (num_neuron,)
        state = NetworkState(*(uniform(batch, *shape).sub_(0.5).requires_grad_() for shape in shapes))
    options: dict[str, Tensor | None] = {}
    if draw(st.booleans()):
        options["lengths"] = torch.randint(0, num_steps + 1, (batch,), generator=generator)
    for name, size in (("input_mask", input_size), ("recurrent_mask", num_neuron)):
        if draw(st.booleans()):
            options[name] = (uniform(batch, size) < 0.8).double() * 1.25
    given: Any = SpikeEvents.from_frames(x) if draw(st.booleans()) else x.requires_grad_(draw(st.booleans()))
    return Call(given, params, state, rule, options)


def leaves(call: Call) -> list[Tensor]:
    """Everything that a gradient reaches, made to require one."""
    params = [*call.params.mlp_weight, *call.params.mlp_bias]
    params += [one for one in call.params[1:] if isinstance(one, Tensor)]
    for one in params:
        one.requires_grad_()
    frames = [call.x] if isinstance(call.x, Tensor) and call.x.requires_grad else []
    return [*params, *frames, *(call.state or ())]


def everything(call: Call, backend: str, scan: Callable[..., Any] = network.scan) -> list[Tensor]:
    """Record, state after, and the gradients of a weighted sum of both."""
    inputs = leaves(call)
    record, after = scan(call.x, call.params, call.state, call.rule, backend=backend, **call.options)
    generator = torch.Generator().manual_seed(7)
    parts = (*record, *after)
    drawn = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype) for part in parts]
    weighted = [(part * weight).sum() for part, weight in zip(parts, drawn, strict=True)]
    grads = torch.autograd.grad(torch.stack(weighted).sum(), inputs, allow_unused=True)
    filled = [torch.zeros_like(one) if grad is None else grad for one, grad in zip(inputs, grads, strict=True)]
    return [part.detach() for part in parts] + filled
