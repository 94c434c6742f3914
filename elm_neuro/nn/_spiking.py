"""An ELM that spikes: its readout against a threshold."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elm_neuro.backends import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ATan, ELMState, Surrogate, bernoulli_spike
from elm_neuro.nn._checks import checked_state
from elm_neuro.nn._elm import ELM

RESETS = ("none", "subtract", "zero")


class SpikingELMState(NamedTuple):
    """What a spiking ELM carries from step to step; zeros at the start."""

    b: Tensor  # (batch, [num_neuron,] num_branch)  branch trace
    m: Tensor  # (batch, [num_neuron,] num_memory)  memory
    v: Tensor  # (batch, [num_neuron,] output_size)  readout after reset
    s: Tensor  # (batch, [num_neuron,] output_size)  spikes, 0 or 1


class SpikeOutput(nn.Module):
    r"""Spikes from the readout y of a neuron.

    .. math::
        v_t &= y_t \quad\text{or}\quad y_t - \theta s_{t-1} \quad\text{or}\quad y_t (1 - s_{t-1}) \qquad\text{(reset
        none, subtract, zero)} \\ s_t &= [v_t > \theta] \quad\text{or}\quad s_t \sim \text{Bernoulli}(\sigma(v_t -
        \theta))

    The ELM itself has no reset; here it touches the readout of the next step only, and passes no gradient.

    Args:
        threshold: :math:`\theta`, a number or (output_size,).
        learn_threshold: train it.
        surrogate: called on :math:`v - \theta`, gives spikes of the same dtype; :class:`ATan` by default.
        reset: "none", "subtract" or "zero".
        stochastic: draw the spikes, with a straight-through gradient.
        graded_factor: spikes leave multiplied by this.
        learn_graded_factor: train it.
        generator: source of the random spikes; torch's global one by default.

    >>> output = SpikeOutput(threshold=1.0, reset="subtract")
    >>> spikes, v, s = output(torch.full((1, 3, 1), 1.5))
    >>> spikes.flatten(), v.flatten()
    (tensor([1., 0., 1.]), tensor([1.5000, 0.5000, 1.5000]))
    """

    def __init__(
        self,
        *,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = False,
        surrogate: Surrogate | None = None,
        reset: str = "none",
        stochastic: bool = False,
        graded_factor: float | Tensor = 1.0,
        learn_graded_factor: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if reset not in RESETS:
            raise ValueError(f"reset must be one of {list(RESETS)}, got {reset!r}")
        self.surrogate = ATan() if surrogate is None else surrogate
        self.reset, self.stochastic, self.generator = reset, stochastic, generator
        self.threshold: Tensor
        self.graded_factor: Tensor | None
        for name, value, learn in (
            ("threshold", threshold, learn_threshold),
            ("graded_factor", graded_factor, learn_graded_factor),
        ):
            tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).clone()
            if name == "graded_factor" and not learn and bool((tensor == 1.0).all()):
                self.register_buffer(name, None)
            elif learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def fire(self, v: Tensor) -> Tensor:
        """Spikes, 0 or 1, of readouts `v` of any shape ending in the threshold's.

        Raises:
            TypeError: the surrogate does not keep the dtype.
        """
        distance = v - self.threshold
        spikes = bernoulli_spike(distance, self.generator) if self.stochastic else self.surrogate(distance)
        if spikes.dtype != v.dtype:
            raise TypeError(f"surrogate must keep the dtype {v.dtype} of the readout, got spikes of {spikes.dtype}")
        return spikes

    def reset_readout(self, y: Tensor, s: Tensor) -> Tensor:
        """Readout of one step after the reset by the last step's spikes."""
        if self.reset == "subtract":
            return y - self.threshold.detach() * s.detach()
        return y * (1.0 - s.detach()) if self.reset == "zero" else y

    def forward(self, y: Tensor, s: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes times the graded factor, readout after reset and spikes, each the shape of `y`, (batch, time, ...).

        Args:
            y: readout, (batch, time, ...).
            s: spikes before the first step, (batch, ...); none by default.
        """
        if self.reset == "none":
            v, spikes = y, self.fire(y)
        else:
            v, spikes = self._fire_with_reset(y, y.new_zeros(y.shape[0], *y.shape[2:]) if s is None else s)
        return self.grade(spikes), v, spikes

    @untraced
    def _fire_with_reset(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        pairs = []
        for y_t in y.unbind(1):
            v_t = self.reset_readout(y_t, s)
            s = self.fire(v_t)
            pairs.append((v_t, s))
        if not pairs:
            return y, y
        readouts, spikes = zip(*pairs, strict=True)
        return torch.stack(readouts, dim=1), torch.stack(spikes, dim=1)

    def grade(self, spikes: Tensor) -> Tensor:
        """Spikes times the graded factor, where there is one."""
        return spikes if self.graded_factor is None else spikes * self.graded_factor

    def extra_repr(self) -> str:
        return f"reset={self.reset!r}, stochastic={self.stochastic}, surrogate={self.surrogate}"


class SpikingELM(nn.Module):
    """ELM neuron, or a population of them, whose readout spikes.

    Args:
        core: the neuron: :class:`ELM` or :class:`BranchELM`, batch first.
        output: keywords of :class:`SpikeOutput`.

    Shapes: x as for `core`; spikes (batch, time, [num_neuron,] output_size), or flattened as `core` does; state
    :class:`SpikingELMState`, None for zeros.

    >>> from elm_neuro import BranchELM
    >>> spiking = SpikingELM(BranchELM(700, 1, num_branch=10, num_synapse_per_branch=70, num_neuron=32, flatten_output=True), threshold=0.5)
    >>> spikes, state = spiking(torch.zeros(2, 50, 700))
    >>> spikes.shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, core: ELM, **output: Any) -> None:
        super().__init__()
        if not isinstance(core, ELM):
            raise TypeError(f"core must be an ELM or BranchELM, got {type(core).__name__}")
        if not core.config.batch_first:
            raise ValueError("core must be batch first, got batch_first=False")
        self.core = core
        self.output = SpikeOutput(**output)

    def initial_state(self, batch: int) -> SpikingELMState:
        """Zeros, in the parameters' dtype and on their device."""
        inner = self.core.cell.initial_state(batch)
        v, s = (inner.m.new_zeros(batch, *self.output_shape) for _ in range(2))
        return SpikingELMState(inner.b, inner.m, v, s)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's spikes in one step."""
        config = self.core.config
        if config.num_neuron is None:
            return (config.output_size,)
        return (
            (config.num_neuron * config.output_size,)
            if config.flatten_output
            else (config.num_neuron, config.output_size)
        )

    def check_state(self, state: SpikingELMState, batch: int) -> SpikingELMState:
        """`state` where it fits this neuron and a batch of `batch`.

        Raises:
            TypeError: `state` is not four tensors of the parameters' dtype.
            ValueError: a tensor has the wrong shape or device.
        """
        own = (batch, *self.output_shape)
        return checked_state(
            SpikingELMState, state, (*self.core.cell.state_shapes(batch), own, own), self.core.cell._proto_tau_m
        )

    def step(self, x: Tensor, state: SpikingELMState | None = None) -> tuple[Tensor, SpikingELMState]:
        """One time step: x (batch, input_size), or (batch, num_neuron, input_size); spikes (batch, [num_neuron,] output_size)."""
        self.core.cell.check_input(x)
        state = self.initial_state(x.shape[0]) if state is None else self.check_state(state, x.shape[0])
        y, inner = self.core.cell.advance(x, ELMState(state.b, state.m))
        v = self.output.reset_readout(y.to(inner.m.dtype), state.s)
        s = self.output.fire(v)
        return self.output.grade(s), SpikingELMState(inner.b, inner.m, v, s)

    def forward(
        self, x: Tensor | SpikeEvents, state: SpikingELMState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, SpikingELMState]:
        state = None if state is None else self.check_state(state, x.shape[0])
        y, inner = self.core(x, None if state is None else ELMState(state.b, state.m), lengths)
        spikes, v, s = self.output(y.to(inner.m.dtype), None if state is None else state.s)
        if y.shape[1] and lengths is None:
            return spikes, SpikingELMState(inner.b, inner.m, v[:, -1], s[:, -1])
        state = self.initial_state(x.shape[0]) if state is None else state
        if lengths is None or y.shape[1] == 0:
            return spikes, SpikingELMState(inner.b, inner.m, state.v, state.s)
        lengths = lengths.to(y.device)
        valid = torch.arange(y.shape[1], device=y.device) < lengths[:, None]
        started = (lengths > 0).view(-1, *[1] * (y.ndim - 2))
        rows = torch.arange(y.shape[0], device=y.device)
        v_end, s_end = (part[rows, (lengths - 1).clamp(min=0)] for part in (v, s))
        end = SpikingELMState(
            inner.b, inner.m, torch.where(started, v_end, state.v), torch.where(started, s_end, state.s)
        )
        return torch.where(valid.view(*valid.shape, *[1] * (y.ndim - 2)), spikes, 0.0), end
