"""Layers of LIF and adaptive LIF neurons, to put before, behind and beside an ELM."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from elm_neuro.backends import project
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState, alif_step

BETA_RANGE = (0.001, 0.999)  # ranges of the effective parameters, as in Blocks
P_RANGE = (0.0, 0.999)
B_RANGE = (0.001, 1.0)


class ALIF(nn.Module):
    r"""Layer of leaky integrate-and-fire neurons whose threshold rises with every spike.

    :math:`i_t = W_{in} x_t + bias`, then :func:`elm_neuro.functional.alif_step`. Source: Taylor, King, Harper, NeurIPS 2023 (Blocks).

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        delta_t: time step in ms.
        tau_v: initial time constant of the membrane in ms.
        tau_a: initial time constant of the threshold's adaptation in ms.
        b_init: initial strength of the adaptation.
        recurrent: feed the layer's spikes back with the next step, by weights that start at the identity.
        generator: source of the random initial weights; torch's global one by default.

    Shapes: x (batch, time, input_size) or :class:`SpikeEvents`; returns spikes (batch, time, output_size) and an :class:`ALIFState`.

    >>> spikes, state = ALIF(700, 128)(torch.zeros(2, 50, 700))
    >>> spikes.shape
    torch.Size([2, 50, 128])
    """

    adaptive = True

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        delta_t: float = 1.0,
        tau_v: float = 10.0,
        tau_a: float = 100.0,
        b_init: float = 0.5,
        recurrent: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("output_size", output_size)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, time in (("delta_t", delta_t), ("tau_v", tau_v), ("tau_a", tau_a)):
            if not (time > 0 and math.isfinite(time)):
                raise ValueError(f"{name} must be a time above 0 ms, got {time}")
        self.input_size, self.output_size, self.delta_t = input_size, output_size, float(delta_t)
        bound = 1.0 / math.sqrt(input_size)
        self.weight = nn.Parameter(torch.empty(output_size, input_size).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(output_size))
        self.beta = nn.Parameter(torch.full((output_size,), math.exp(-delta_t / tau_v)))
        self.p: Tensor
        self.b: Tensor
        p, b = torch.full((output_size,), math.exp(-delta_t / tau_a)), torch.full((output_size,), float(b_init))
        if self.adaptive:
            self.p, self.b = nn.Parameter(p), nn.Parameter(b)
        self.w_rec = nn.Parameter(torch.eye(output_size)) if recurrent else None

    def effective_parameters(self) -> ALIFParameters:
        """Decays and adaptation strength in their ranges."""
        beta = self.beta.clamp(*BETA_RANGE)
        if not self.adaptive:
            return ALIFParameters(beta, torch.zeros_like(beta), torch.zeros_like(beta), self.w_rec)
        return ALIFParameters(beta, self.p.abs().clamp(*P_RANGE), self.b.abs().clamp(*B_RANGE), self.w_rec)

    def initial_state(self, batch: int) -> ALIFState:
        """Zeros, in the parameters' dtype and on their device."""
        zeros = self.bias.new_zeros(batch, self.output_size)
        return ALIFState(zeros, zeros, zeros)

    def forward(self, x: Tensor | SpikeEvents, state: ALIFState | None = None) -> tuple[Tensor, ALIFState]:
        if len(x.shape) != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x must have shape (batch, time, {self.input_size}), got {tuple(x.shape)}")
        state = self.initial_state(x.shape[0]) if state is None else state
        for name, part in zip(state._fields, state, strict=True):
            if tuple(part.shape) != (x.shape[0], self.output_size):
                raise ValueError(f"state.{name} must have shape {(x.shape[0], self.output_size)}, got {tuple(part.shape)}")
        params = self.effective_parameters()
        currents = project(x, self.weight) + self.bias
        spikes = []
        for current in currents.unbind(1):
            s, state = alif_step(current, state, params)
            spikes.append(s)
        if not spikes:
            return currents, state
        return torch.stack(spikes, dim=1), state

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.output_size}, delta_t={self.delta_t}" + (", recurrent=True" if self.w_rec is not None else "")


class LIF(ALIF):
    """Layer of leaky integrate-and-fire neurons with a fixed threshold of 1: :class:`ALIF` without adaptation (b = 0).

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        delta_t: time step in ms.
        tau_v: initial time constant of the membrane in ms.
        recurrent: feed the layer's spikes back with the next step.
        generator: source of the random initial weights; torch's global one by default.

    >>> sorted(name for name, _ in LIF(3, 2).named_parameters())
    ['beta', 'bias', 'weight']
    """

    adaptive = False

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        delta_t: float = 1.0,
        tau_v: float = 10.0,
        recurrent: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(input_size, output_size, delta_t=delta_t, tau_v=tau_v, recurrent=recurrent, generator=generator)
