"""Layers of LIF and adaptive LIF neurons, to put before, behind and beside an ELM."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro import backends
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState, FastSigmoid, Surrogate, alif_step
from elm_neuro.nn._checks import check_tensor, checked_state

BETA_RANGE = (0.001, 0.999)  # ranges of the effective parameters, as in Blocks
P_RANGE = (0.0, 0.999)
B_RANGE = (0.001, 1.0)


class ALIFCell(nn.Module):
    r"""One time step of a layer of adaptive LIF neurons, ``spikes, state = cell(x_t, state)``; :class:`ALIF` explains
    the arguments.

    Shapes: x_t (batch, input_size); spikes (batch, output_size); state as in :class:`ALIFState`, None for zeros.

    >>> spikes, state = ALIFCell(3, 2)(torch.zeros(5, 3))
    >>> spikes.shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        delta_t: float = 1.0,
        tau_v: float = 10.0,
        tau_a: float = 100.0,
        b_init: float = 0.5,
        latency: float = 0.0,
        adaptive: bool = True,
        recurrent: bool = False,
        surrogate: Surrogate | None = None,
        detach_reset: bool = True,
        detach_recurrent: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("output_size", output_size)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, time in (("delta_t", delta_t), ("tau_v", tau_v), ("tau_a", tau_a)):
            if not (time > 0 and math.isfinite(time)):
                raise ValueError(f"{name} must be a time above 0 ms, got {time}")
        checked = [("tau_v", tau_v, BETA_RANGE)] + ([("tau_a", tau_a, P_RANGE)] if adaptive else [])
        for name, time, (_, high) in checked:  # a decay below the range forgets within a step either way
            if math.exp(-delta_t / time) > high + 1e-6:
                raise ValueError(
                    f"{name} must give a decay per step of at most {high}, got {time} ms with delta_t {delta_t} ms"
                )
        if adaptive and not B_RANGE[0] <= b_init <= B_RANGE[1]:
            raise ValueError(f"b_init must be in [{B_RANGE[0]}, {B_RANGE[1]}], got {b_init}")
        if not (latency >= 0 and math.isfinite(latency)):
            raise ValueError(f"latency must be a time in ms, not negative, got {latency}")
        self.input_size, self.output_size, self.delta_t = input_size, output_size, float(delta_t)
        self.latency_steps = math.floor(latency / delta_t + 1e-9)
        self.adaptive = adaptive
        self.surrogate = FastSigmoid() if surrogate is None else surrogate
        self.detach_reset, self.detach_recurrent = detach_reset, detach_recurrent
        bound = 1.0 / math.sqrt(input_size)
        self.weight = nn.Parameter(torch.empty(output_size, input_size).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(output_size))
        self.beta = nn.Parameter(torch.full((output_size,), math.exp(-delta_t / tau_v)))
        self.p = nn.Parameter(torch.full((output_size,), math.exp(-delta_t / tau_a))) if adaptive else None
        self.b = nn.Parameter(torch.full((output_size,), float(b_init))) if adaptive else None
        self.w_rec = nn.Parameter(torch.eye(output_size)) if recurrent else None

    def effective_parameters(self) -> ALIFParameters:
        """Decays and strength of the adaptation in their ranges. Differentiable."""
        beta = self.beta.clamp(*BETA_RANGE)
        b = None if self.b is None else self.b.abs().clamp(*B_RANGE)
        p = beta if self.p is None else self.p.abs().clamp(*P_RANGE)
        return ALIFParameters(beta, p, b, self.w_rec, self.surrogate, self.detach_reset, self.detach_recurrent)

    def initial_state(self, batch: int) -> ALIFState:
        """Zeros, in the parameters' dtype and on their device."""
        return ALIFState(*(self.bias.new_zeros(shape) for shape in self.state_shapes(batch)))

    def check_state(self, state: ALIFState, batch: int) -> ALIFState:
        """`state` where it fits this layer and a batch of `batch`.

        Raises:
            TypeError: `state` is not three tensors of the parameters' dtype.
            ValueError: a tensor has the wrong shape or device.
        """
        return checked_state(ALIFState, state, self.state_shapes(batch), self.bias)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the state's tensors."""
        layer = (batch, self.output_size)
        return layer, layer, (batch, self.latency_steps + 1, self.output_size)

    def check_tensor(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor of another dtype or device than the parameters'."""
        check_tensor(name, tensor, self.bias)

    def forward(self, x: Tensor, state: ALIFState | None = None) -> tuple[Tensor, ALIFState]:
        if x.ndim != 2 or x.shape[1] != self.input_size:
            raise ValueError(f"x must have shape (batch, {self.input_size}), got {tuple(x.shape)}")
        self.check_tensor("x", x)
        state = self.initial_state(x.shape[0]) if state is None else self.check_state(state, x.shape[0])
        return alif_step(
            nn.functional.linear(x, self.weight, self.bias).to(self.bias.dtype), state, self.effective_parameters()
        )

    def extra_repr(self) -> str:
        flags = [f"{name}=True" for name in ("recurrent",) if self.w_rec is not None] + (
            ["adaptive=False"] if not self.adaptive else []
        )
        return ", ".join([str(self.input_size), str(self.output_size), f"delta_t={self.delta_t}", *flags])


class ALIF(nn.Module):
    r"""Layer of leaky integrate-and-fire neurons whose threshold rises with every spike, over sequences.

    :math:`i_t = W_{in} x_t + bias`, then :func:`elm_neuro.functional.alif_step`. Source: Taylor, King, Harper, NeurIPS
    2023 (Blocks).

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        delta_t: time step in ms.
        tau_v: initial time constant of the membrane in ms.
        tau_a: initial time constant of the threshold's adaptation in ms.
        b_init: initial strength of the adaptation.
        latency: refractory period after a spike in ms, cut to whole steps; fed-back spikes arrive one step after it.
        adaptive: False leaves out the adaptation: :class:`LIF`.
        recurrent: feed the layer's spikes back, by weights that start at the identity.
        surrogate: called on the distance to threshold, gives spikes of the same dtype; :class:`FastSigmoid` by default.
        detach_reset: pass no gradient through the reset.
        detach_recurrent: pass no gradient through the fed-back spikes.
        generator: source of the random initial weights; torch's global one by default.

    Shapes: x (batch, time, input_size) or :class:`SpikeEvents`; returns spikes (batch, time, output_size) and an
    :class:`ALIFState`.

    >>> spikes, state = ALIF(700, 128)(torch.zeros(2, 50, 700))
    >>> spikes.shape
    torch.Size([2, 50, 128])
    """

    def __init__(self, input_size: int, output_size: int, **options: Any) -> None:
        super().__init__()
        self.cell = ALIFCell(input_size, output_size, **options)

    def forward(self, x: Tensor | SpikeEvents, state: ALIFState | None = None) -> tuple[Tensor, ALIFState]:
        cell = self.cell
        if len(x.shape) != 3 or x.shape[2] != cell.input_size:
            raise ValueError(f"x must have shape (batch, time, {cell.input_size}), got {tuple(x.shape)}")
        if isinstance(x, Tensor):
            cell.check_tensor("x", x)
        state = cell.initial_state(x.shape[0]) if state is None else cell.check_state(state, x.shape[0])
        spikes, state = backends.alif.scan(x, cell.weight, cell.bias, cell.effective_parameters(), state)
        # a NaN never crosses the threshold, but the membrane keeps it
        if (
            state.v.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and bool(torch.isnan(state.v.detach().sum()))
        ):
            raise ValueError("x, state and parameters must be finite, got a membrane that is NaN after the last step")
        return spikes, state

    @property
    def input_size(self) -> int:
        return self.cell.input_size

    @property
    def output_size(self) -> int:
        return self.cell.output_size

    @property
    def delta_t(self) -> float:
        """Time step in ms."""
        return self.cell.delta_t


class LIF(ALIF):
    """Layer of leaky integrate-and-fire neurons with a fixed threshold of 1: :class:`ALIF` without adaptation (b = 0).

    >>> sorted(name for name, _ in LIF(3, 2).named_parameters())
    ['cell.beta', 'cell.bias', 'cell.weight']
    """

    def __init__(self, input_size: int, output_size: int, **options: Any) -> None:
        super().__init__(input_size, output_size, adaptive=False, **options)
