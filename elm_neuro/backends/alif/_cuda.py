"""The layer by CUDA kernels: the input as one product of torch's, the recurrence in one launch a direction, the
gradient of the recurrent weights as one product over all steps after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._cuda_op import run_as_operator
from elm_neuro.backends.alif._cuda_pass import Operands, Options, run
from elm_neuro.backends.alif._kernels import reason_of_kernels
from elm_neuro.backends.alif._learned import AtRest, Learned
from elm_neuro.backends.alif._reference import Reference
from elm_neuro.backends.cuda import _alif
from elm_neuro.backends.cuda._backend import CudaBackend
from elm_neuro.backends.cuda._input import Events, project_events
from elm_neuro.backends.parts._lengths import silent_past
from elm_neuro.backends.parts._projection import project
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState

run_plainly = untraced(Reference().scan)


class Cuda(CudaBackend, ALIFBackend):
    """The kernels of :mod:`elm_neuro.backends.cuda`."""

    reads_learned = traceable = True

    def refusal(self, x: Tensor | SpikeEvents, params: ALIFParameters, state: ALIFState) -> str | None:
        if x.device != params.beta.device:
            return f"x must be on the parameters' device, {params.beta.device}, got {x.device}"
        if (reason := reason_of_kernels(params)) is not None:
            return reason
        if params.beta.shape[0] > _alif.MAX_NEURON:
            return f"it runs at most {_alif.MAX_NEURON} neurons, got {params.beta.shape[0]}"
        history = state.s.shape[1]
        if params.w_rec is not None and (most := _alif.max_history(params.beta.shape[0])) < history:
            latencies = f"latencies of at most {most - 1} steps in a recurrent layer of {params.beta.shape[0]} neurons"
            return f"its shared memory holds {latencies}, got {history - 1}"
        return self.refusal_of(params.beta)

    def scan(
        self,
        x: Tensor | SpikeEvents,
        weight: Tensor,
        bias: Tensor,
        params: ALIFParameters | Learned,
        state: ALIFState,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ALIFState]:
        """As :meth:`ALIFBackend.scan`."""
        if x.shape[0] * x.shape[1] == 0:
            params = params.effective() if isinstance(params, Learned) else params
            state = state.spelled_out() if isinstance(state, AtRest) else state
            return run_plainly(x, weight, bias, params, state, lengths=lengths)
        params, ranges = params if isinstance(params, Learned) else (params, None)
        options = Options.of(params, ranges, state.s.shape[1])
        if lengths is not None:
            x, lengths = silent_past(x, lengths), lengths.contiguous()
        current = _arriving(x, weight, bias.dtype)  # (batch, time, output_size)
        before = (None, None, None) if isinstance(state, AtRest) else state
        p = None if params.b is None else params.p
        o = Operands(lengths, current, bias, params.beta, p, params.b, params.w_rec, *before)
        spikes, *after = (run_as_operator if torch.compiler.is_compiling() else run)(o, options)
        return spikes, ALIFState(*after)


def _arriving(x: Tensor | SpikeEvents, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Products with the input; of events in sums of their own: torch's bag of embeddings takes several times as long
    backward.
    """
    if not isinstance(x, SpikeEvents):
        current = project(x, weight)
        return current if current.dtype == dtype else current.to(dtype)
    events = Events(x.indptr, x.channel, None if x.value is None else x.value.to(dtype))
    sizes = x.shape[0], x.shape[1], x.shape[-1]
    weight = weight.to(dtype)
    return project_events(events, sizes, weight, weight.detach().flatten()[:1])
