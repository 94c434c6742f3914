"""The oracle: a plain loop over the step's equations, in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.network._backend import NetworkBackend, NetworkRecord
from elm_neuro.backends.network._masked import masked
from elm_neuro.backends.parts._lengths import without_padding
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState, network_step


class Reference(NetworkBackend):
    """:func:`elm_neuro.functional.network_step` over the frames."""

    name = "reference"
    about = "a plain loop over the equations: the oracle, any dtype, any device"
    differentiates = steps_alone = True

    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: NetworkParams,
        rule: NetworkRule,
        state: NetworkState,
        *,
        lengths: Tensor | None = None,
        input_mask: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> tuple[NetworkRecord, NetworkState]:
        """As :meth:`NetworkBackend.scan`."""
        x = masked(x if lengths is None else without_padding(x, lengths), input_mask)
        frames = x.to_dense(params.bias.dtype) if isinstance(x, SpikeEvents) else x
        record, change = [], torch.zeros_like(state.r)
        for step, x_t in enumerate(frames.unbind(1)):
            a_t, change_t, after = network_step(x_t, state, params, rule, recurrent_mask)
            if lengths is not None:
                running = (step < lengths).unsqueeze(-1)  # (batch, 1)
                a_t, change_t = torch.where(running, a_t, 0.0), torch.where(running, change_t, 0.0)
                after = NetworkState(*map(_where(running), after, state))
            change, state = change + change_t, after
            record.append(a_t)
        a = torch.stack(record, dim=1) if record else frames.new_zeros(frames.shape[0], 0, params.bias.shape[0])
        return NetworkRecord(a, change), state


class _where:
    """Picks a state's parts after the step where the sample goes on, else before it."""

    def __init__(self, running: Tensor) -> None:
        self.running = running

    def __call__(self, after: Tensor, before: Tensor) -> Tensor:
        return torch.where(self.running.view(-1, *[1] * (after.ndim - 1)), after, before)
