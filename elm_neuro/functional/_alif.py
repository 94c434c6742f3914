"""Leaky integrate-and-fire with an adaptive threshold, one time step; no adaptation is a plain LIF."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd import Function

SURROGATE_SCALE = 10.0  # of the fast sigmoid, as in Blocks


class ALIFState(NamedTuple):
    """What a layer of adaptive LIF neurons carries from step to step; zeros at the start."""

    v: Tensor  # (batch, output_size)  membrane
    a: Tensor  # (batch, output_size)  adaptation of the threshold
    s: Tensor  # (batch, output_size)  spikes of the last step, fed back by recurrent weights


class ALIFParameters(NamedTuple):
    """Effective parameters of one step: decays and adaptation in their ranges."""

    beta: Tensor  # (output_size,)  membrane decay per step
    p: Tensor  # (output_size,)  adaptation decay per step
    b: Tensor  # (output_size,)  strength of the adaptation; 0 is LIF
    w_rec: Tensor | None  # (output_size, output_size), from the last step's spikes


class _FastSigmoidSpike(Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        slope: Tensor = 1.0 / (1.0 + SURROGATE_SCALE * distance.abs()) ** 2
        return grad[0] * slope


def spike(distance: Tensor) -> Tensor:
    r"""1 where `distance` to the threshold is positive, with the gradient of a fast sigmoid, :math:`1 / (1 + 10 |x|)^2`.

    >>> import torch
    >>> spike(torch.tensor([-1.0, 0.0, 0.5]))
    tensor([0., 0., 1.])
    """
    spikes: Tensor = _FastSigmoidSpike.apply(distance)  # type: ignore[no-untyped-call]  # torch leaves Function.apply untyped
    return spikes


def alif_step(current: Tensor, state: ALIFState, params: ALIFParameters) -> tuple[Tensor, ALIFState]:
    r"""One time step of a layer of adaptive LIF neurons.

    .. math::
        v_t &= \beta v_{t-1} + i_t + W_{rec} s_{t-1} \qquad s_t = [v_t > 1 + b\, a_{t-1}] \\
        a_t &= p\, a_{t-1} + s_t

    A spike sets v to zero; the reset and the fed-back spikes pass no gradient. Source: Taylor, King, Harper, NeurIPS 2023 (Blocks), latency 0.

    Args:
        current: input current :math:`i_t`, (batch, output_size).
        state: before the step.
        params: the layer's parameters.

    Returns:
        Spikes (batch, output_size), 0 or 1, and the state after the step.
    """
    if params.w_rec is not None:
        current = current + state.s.detach() @ params.w_rec.mT
    v = params.beta * state.v + current
    spikes = spike(v - (1.0 + params.b * state.a))
    silenced = v * (1.0 - spikes.detach())
    return spikes, ALIFState(silenced, params.p * state.a + spikes, spikes)
