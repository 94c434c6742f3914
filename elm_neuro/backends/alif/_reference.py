"""The oracle: a plain loop over the step's equations, in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.parts._lengths import without_padding
from elm_neuro.backends.parts._projection import project
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState, alif_step


class Reference(ALIFBackend):
    """The input currents of all steps as one product, then the loop."""

    name = "reference"
    about = "a plain loop over the equations: the oracle, any dtype, any device"
    differentiates = steps_alone = True

    def refusal(self, x: Tensor | SpikeEvents, params: ALIFParameters, state: ALIFState) -> str | None:
        if params.gradient == "loop" or not torch.is_grad_enabled():
            return self.refusal_of(params.beta)
        return f'a loop has the gradient "loop", got gradient {params.gradient!r}'

    def scan(
        self,
        x: Tensor | SpikeEvents,
        weight: Tensor,
        bias: Tensor,
        params: ALIFParameters,
        state: ALIFState,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ALIFState]:
        """As :meth:`ALIFBackend.scan`."""
        if lengths is not None:
            x = without_padding(x, lengths)
        currents = project(x, weight).to(bias.dtype) + bias  # (batch, time, output_size)
        record = []
        for step, current in enumerate(currents.unbind(1)):
            spikes, after = alif_step(current, state, params)
            if lengths is not None:
                running = (step < lengths).unsqueeze(-1)  # (batch, 1)
                spikes = torch.where(running, spikes, 0.0)
                v, a = torch.where(running, after.v, state.v), torch.where(running, after.a, state.a)
                after = ALIFState(v, a, torch.where(running.unsqueeze(-1), after.s, state.s))
            record.append(spikes)
            state = after
        return (torch.stack(record, dim=1) if record else currents), state
