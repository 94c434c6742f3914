"""A neuron of someone else: a leaky integrator that keeps the protocol of a layer and knows nothing of the package."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class ToyState(NamedTuple):
    u: Tensor  # (batch, output_size)  leaky sum of the input current


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    input_size: int
    output_size: int
    delta_t: float = 1.0
    tau: float = 20.0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ToyConfig:
        return cls(**values)


class ToyLayer(nn.Module):
    """u_t = kappa u_{t-1} + W x_t, and the output is u."""

    state_type = ToyState
    config_type = ToyConfig  # for saving

    def __init__(self, input_size: int, output_size: int, *, delta_t: float = 1.0, tau: float = 20.0) -> None:
        super().__init__()
        self.config = ToyConfig(input_size, output_size, delta_t, tau)
        self.input_size, self.output_size, self.delta_t = input_size, output_size, delta_t
        self.kappa = math.exp(-delta_t / tau)
        self.linear = nn.Linear(input_size, output_size, bias=False)

    @classmethod
    def from_config(cls, config: ToyConfig) -> ToyLayer:
        return cls(**vars(config))

    def initial_state(self, batch: int) -> ToyState:
        return ToyState(self.linear.weight.new_zeros(batch, self.output_size))

    def check_state(self, state: ToyState, batch: int) -> ToyState:
        if state[0].shape != (batch, self.output_size):
            raise ValueError(f"state.u must have shape ({batch}, {self.output_size}), got {tuple(state[0].shape)}")
        return ToyState(*state)

    def step(self, x_t: Tensor, state: ToyState) -> tuple[Tensor, ToyState]:
        u = self.kappa * state.u + self.linear(x_t)
        return u, ToyState(u)

    def forward(self, x: Any, state: ToyState | None = None, lengths: Tensor | None = None) -> tuple[Tensor, ToyState]:
        x = x if isinstance(x, Tensor) else x.to_dense(self.linear.weight.dtype)
        state = self.initial_state(len(x)) if state is None else self.check_state(state, len(x))
        outputs = []
        for t, x_t in enumerate(x.unbind(1)):
            y_t, after = self.step(x_t, state)
            if lengths is not None:  # past its end a sample gives 0 and keeps its state
                valid = (t < lengths)[:, None]
                y_t, after = torch.where(valid, y_t, 0.0), ToyState(torch.where(valid, after.u, state.u))
            state = after
            outputs.append(y_t)
        return torch.stack(outputs, 1) if outputs else x.new_zeros(len(x), 0, self.output_size), state


def spikes_in(*shape: int) -> torch.Tensor:
    return torch.poisson(torch.full(shape, 0.7), generator=torch.Generator().manual_seed(1))


def filtered(toy: ToyLayer, x: torch.Tensor) -> torch.Tensor:
    """Its output over time in closed form: u_t = sum_k kappa^(t - k) W x_k."""
    age = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    kernel = torch.where(age >= 0, toy.kappa ** age.clamp(min=0).double(), 0.0).float()
    return torch.einsum("tk,bki,oi->bto", kernel, x, toy.linear.weight)
