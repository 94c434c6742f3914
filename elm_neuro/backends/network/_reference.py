"""The oracle: a plain loop over the step's equations, in any dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from elm_neuro.backends.network._backend import NetworkBackend, NetworkRecord
from elm_neuro.backends.network._masked import masked
from elm_neuro.backends.parts._lengths import where_running, without_padding
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
        return loop(frames, params, rule, state, lengths, recurrent_mask)


def loop(
    frames: Tensor,
    params: NetworkParams,
    rule: NetworkRule,
    state: NetworkState,
    lengths: Tensor | None,
    recurrent_mask: Tensor | None,
    layers: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> tuple[NetworkRecord, NetworkState]:
    """The steps over frames (batch, time, input_size), `layers` as for :func:`elm_neuro.functional.network_step`."""
    record, change = [], torch.zeros_like(state.r)
    for step, x_t in enumerate(frames.unbind(1)):
        a_t, change_t, after = network_step(x_t, state, params, rule, recurrent_mask, layers)
        if lengths is not None:
            running = step < lengths  # (batch,)
            a_t, change_t = (torch.where(running.unsqueeze(-1), one, 0.0) for one in (a_t, change_t))
            after = NetworkState(*(where_running(running, *pair) for pair in zip(after, state, strict=True)))
        change, state = change + change_t, after
        record.append(a_t)
    a = torch.stack(record, dim=1) if record else params.bias.expand(frames.shape[0], 0, params.bias.shape[0])
    return NetworkRecord(a, change), state
