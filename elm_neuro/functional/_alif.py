"""Leaky integrate-and-fire with an adaptive threshold, one time step; no adaptation is a plain LIF."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.functional._spike import FastSigmoid, Surrogate, spikes_of


class ALIFState(NamedTuple):
    """What a layer of adaptive LIF neurons carries from step to step; zeros at the start."""

    v: Tensor  # (batch, output_size)  membrane
    a: Tensor  # (batch, output_size)  adaptation of the threshold
    s: Tensor  # (batch, latency + 1, output_size)  spikes of the last steps, the newest last


class ALIFParameters(NamedTuple):
    """Effective parameters of one step: decays and adaptation in their ranges."""

    beta: Tensor  # (output_size,)  membrane decay per step
    p: Tensor  # (output_size,)  adaptation decay per step
    b: Tensor | None  # (output_size,)  strength of the adaptation; None is LIF
    w_rec: Tensor | None  # (output_size, output_size), from the spikes of latency + 1 steps ago
    surrogate: Surrogate = FastSigmoid()
    detach_reset: bool = True
    detach_recurrent: bool = True
    gradient: str = "loop"  # or "blocks", in which a spike enters the adaptation as a constant


def alif_step(current: Tensor, state: ALIFState, params: ALIFParameters) -> tuple[Tensor, ALIFState]:
    r"""One time step of a layer of adaptive LIF neurons.

    .. math::
        v_t &= \beta v_{t-1} + [\text{no spike in the last } L \text{ steps}]\,(i_t + W_{rec}\, s_{t-L-1}) \\
        s_t &= [v_t > 1 + b\, a_{t-1}] \qquad a_t = p\, a_{t-1} + s_t

    with the latency L. A spike sets v to zero, and the neuron takes no input in the L steps that follow. By default
    neither the reset nor the fed-back spikes pass a gradient; with the gradient "blocks" the adaptation passes none to
    the spikes either. Source: Taylor, King, Harper, NeurIPS 2023 (Blocks).

    Args:
        current: input current :math:`i_t` with the bias, (batch, output_size).
        state: before the step; its spikes say what the latency is.
        params: the layer's parameters.

    Returns:
        Spikes (batch, output_size), 0 or 1 in the dtype of `current`, and the state after the step.

    Raises:
        TypeError: the surrogate gives no tensor, or another dtype.
        ValueError: it gives another shape.
    """
    past = state.s
    if params.w_rec is not None:
        arriving = past[:, 0].detach() if params.detach_recurrent else past[:, 0]
        current = current + arriving @ params.w_rec.mT
    if past.shape[1] > 1:
        current = current * (1.0 - past[:, 1:].detach().amax(1))
    v = params.beta * state.v + current
    spikes = crossing(v, state.a, params)
    silent = 1.0 - (spikes.detach() if params.detach_reset else spikes)
    if params.b is None:
        a = state.a
    else:
        a = params.p * state.a + (spikes.detach() if params.gradient == "blocks" else spikes)
    return spikes, ALIFState(v * silent, a, torch.cat([past[:, 1:], spikes.unsqueeze(1)], dim=1))


def crossing(v: Tensor, a: Tensor, params: ALIFParameters) -> Tensor:
    """1 where the membrane `v` is above the threshold of the adaptation `a` before the step, else 0.

    Raises:
        TypeError: the surrogate gives no tensor, or another dtype.
        ValueError: it gives another shape.
    """
    threshold = 1.0 if params.b is None else 1.0 + params.b * a
    return spikes_of(params.surrogate, v - threshold, "membrane")
