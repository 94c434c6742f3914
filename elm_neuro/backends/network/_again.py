"""A pass again in operations of torch, for who differentiates its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.network._backend import NetworkRecord
from elm_neuro.backends.parts._twice import with_second_derivative
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState


def twice_differentiable(
    record: NetworkRecord,
    after: NetworkState,
    x: Tensor | SpikeEvents,
    params: NetworkParams,
    rule: NetworkRule,
    state: NetworkState,
    options: dict[str, Tensor | None],
) -> tuple[NetworkRecord, NetworkState]:
    """Record and state that a backend gave for these inputs, differentiable as often as one likes."""
    outputs = (*record, *after)
    if not (torch.is_grad_enabled() and any(out.requires_grad for out in outputs)):
        return record, after
    events, frames = (x, None) if isinstance(x, SpikeEvents) else (None, x)
    plain = Plain(events, params.index, rule, options, len(params.mlp_weight))
    named = params._asdict()
    del named["index"], named["mlp_weight"], named["mlp_bias"]
    inputs = (frames, *state, *params.mlp_weight, *params.mlp_bias, *named.values())
    a, change, *parts = with_second_derivative(outputs, plain.run, inputs)
    return NetworkRecord(a, change), NetworkState(*parts)


class Plain(NamedTuple):
    """The pass by the loop over the equations; it holds none of the tensors that it is differentiated by."""

    events: SpikeEvents | None
    index_of_synapse: Tensor
    rule: NetworkRule
    options: dict[str, Tensor | None]
    num_layers: int

    def run(self, frames: Any, *tensors: Any) -> Any:
        """Record and state."""
        # for second derivatives only, so not imported with the package
        from elm_neuro.backends.network._reference import Reference

        state, rest = NetworkState(*tensors[:4]), tensors[4:]
        weights, biases = rest[: self.num_layers], rest[self.num_layers : 2 * self.num_layers]
        w_s, w_y, bias, kappa_m, gain, *kappas = rest[2 * self.num_layers :]
        params = NetworkParams(self.index_of_synapse, w_s, weights, biases, w_y, bias, kappa_m, gain, *kappas)
        x = self.events if frames is None else frames
        record, after = Reference().scan(x, params, self.rule, state, **self.options)  # type: ignore[arg-type]
        return *record, *after
