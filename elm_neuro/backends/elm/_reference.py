"""The oracle: a plain loop over the step's equations, in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.elm._backend import ELMBackend
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, elm_step, zero_state


class Reference(ELMBackend):
    """The loop; `sparse_input` changes nothing in it."""

    name = "reference"
    about = "a plain loop over the equations: the oracle, any dtype, any device"
    differentiates = True

    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters,
        state: ELMState | None,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
    ) -> tuple[Tensor, ELMState]:
        """As :meth:`ELMBackend.scan`."""
        return _scan(x, params, zero_state(params, x.shape[0]) if state is None else state, lengths)


def _scan(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState, lengths: Tensor | None
) -> tuple[Tensor, ELMState]:
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
        return params.b_y.expand(x.shape[0], 0, *params.b_y.shape), state  # nothing, with a graph as any readout
    return torch.stack(outputs, dim=1), state
