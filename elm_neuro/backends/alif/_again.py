"""A pass again in operations of torch, for who differentiates its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.alif._learned import Learned, Ranges
from elm_neuro.backends.parts._twice import with_second_derivative
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState


def twice_differentiable(
    spikes: Tensor,
    after: ALIFState,
    x: Tensor | SpikeEvents,
    weight: Tensor,
    bias: Tensor,
    params: ALIFParameters | Learned,
    state: ALIFState,
    lengths: Tensor | None,
) -> tuple[Tensor, ALIFState]:
    """Spikes and state that a backend gave for these inputs, differentiable as often as one likes."""
    if not (torch.is_grad_enabled() and (spikes.requires_grad or after.v.requires_grad or after.a.requires_grad)):
        return spikes, after
    events, frames = (x, None) if isinstance(x, SpikeEvents) else (None, x)
    params, ranges = params if isinstance(params, Learned) else (params, None)
    nothing = bias.new_empty(0)
    plain = Plain(events, lengths, ranges, params._replace(beta=nothing, p=nothing, b=None, w_rec=None))
    inputs = (frames, weight, bias, params.beta, params.p, params.b, params.w_rec, *state)
    found, v, a, s = with_second_derivative((spikes, *after), plain.run, inputs)
    return found, ALIFState(v, a, s)


class Plain(NamedTuple):
    """The pass by a backend of torch's operations; it holds none of the tensors that it is differentiated by."""

    events: SpikeEvents | None
    lengths: Tensor | None
    ranges: Ranges | None  # where the parameters are as they are learned
    settings: ALIFParameters  # without its tensors

    def run(self, frames: Any, weight: Any, bias: Any, beta: Any, p: Any, b: Any, w_rec: Any, *state: Any) -> Any:
        """Spikes and state."""
        # for second derivatives only, so not imported with the package
        from elm_neuro.backends.alif._reference import Reference
        from elm_neuro.backends.alif._torch import Torch

        params = self.settings._replace(beta=beta, p=p, b=b, w_rec=w_rec)
        if self.ranges is not None:
            params = Learned(params, self.ranges).effective()
        x = self.events if frames is None else frames
        plain = Torch() if params.gradient == "blocks" else Reference()
        spikes, after = plain.scan(x, weight, bias, params, ALIFState(*state), lengths=self.lengths)  # type: ignore[arg-type]
        return spikes, *after
