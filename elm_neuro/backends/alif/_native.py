"""The layer by native kernels: what arrives, through the events of sparse input, and the recurrence in one pass,
forward and backward; frames that are not sparse meet the weights in one product of torch's.
"""

from __future__ import annotations

from torch import Tensor

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._kernels import reason_of_kernels
from elm_neuro.backends.alif._native_pass import Operands, Plan, run
from elm_neuro.backends.alif._reference import Reference
from elm_neuro.backends.native._backend import NativeBackend
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.parts._lengths import without_padding
from elm_neuro.backends.parts._projection import project
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState

REFERENCE = Reference()
# Frames are run as events where fewer of their entries than this are spikes. Measured for 128 neurons: a product of
# 128 inputs costs as much at a density of 0.2 to 0.3.
SPARSE_DENSITY = 0.2


class Native(NativeBackend, ALIFBackend):
    """The kernels of :mod:`elm_neuro.backends.native`."""

    def refusal(self, x: Tensor | SpikeEvents, params: ALIFParameters, state: ALIFState) -> str | None:
        if x.device.type != "cpu":
            return f"it runs on the CPU, got {x.device}"
        return reason_of_kernels(params) or self.refusal_of(params.beta)

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
        batch, num_steps = x.shape[:2]
        if batch * num_steps == 0:
            return REFERENCE.scan(x, weight, bias, params, state, lengths=lengths)
        dtype = bias.dtype
        lengths = None if lengths is None else lengths.contiguous()
        if isinstance(x, SpikeEvents):
            events: Events | None = Events.of(x, dtype)
        else:
            events = Events.searched_for(x, dtype, "auto", SPARSE_DENSITY)
        if events is None and lengths is not None:
            x = without_padding(x, lengths)
        begin, end, channel, value = (None,) * 4 if events is None else events[:4]
        operands = Operands(
            begin, end, channel, value, lengths,
            weight=None if events is None else weight,
            dense=project(x, weight).to(dtype) if events is None else None,
            bias=bias, beta=params.beta, p=None if params.b is None else params.p, b=params.b, w_rec=params.w_rec,
            v_0=state.v, a_0=state.a, s_0=state.s,
        )  # fmt: skip
        found = run(operands, Plan.of(params, state, num_steps, x.shape[2]))
        if found is None:  # the state remembers what is no spike
            return REFERENCE.scan(x, weight, bias, params, state, lengths=lengths)
        return found
