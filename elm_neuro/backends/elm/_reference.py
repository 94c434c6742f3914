"""The oracle: a plain loop over the step's equations, in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, elm_step


def scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState,
    *,
    lengths: Tensor | None = None,
    sparse_input: str = "auto",
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps of `x`, (batch, time, ...); see :func:`elm_neuro.backends.scan`. `sparse_input` changes nothing here."""
    if isinstance(x, SpikeEvents):
        x = x.to_dense(params.w_s.dtype)
    outputs = []
    for step, x_t in enumerate(x.unbind(1)):
        if lengths is None:
            y_t, state = elm_step(x_t, state, params)
        else:
            alive = (step < lengths).view(-1, *[1] * (state.m.ndim - 1))
            # what lies past a sample's end must not matter, not even NaN: it never enters the step
            x_t = torch.where((step < lengths).view(-1, *[1] * (x_t.ndim - 1)), x_t, 0.0)
            y_t, after = elm_step(x_t, state, params)
            y_t = torch.where(alive, y_t, 0.0)
            state = ELMState(torch.where(alive, after.b, state.b), torch.where(alive, after.m, state.m))
        outputs.append(y_t)
    if not outputs:
        return x.new_zeros(x.shape[0], 0, *params.b_y.shape, dtype=params.b_y.dtype), state
    return torch.stack(outputs, dim=1), state
