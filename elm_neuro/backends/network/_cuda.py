"""The layer by CUDA kernels: what the inputs add to all steps as one product, the recurrence in one launch a direction,
the gradients of the weights as products over all steps after it.

Gather, weights and branch sum are one linear map of the sources, and the gradient of that map is a product too. What
the neurons add is computed in the pass itself, from the synapses that read them; their half of the map serves its
gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _network
from elm_neuro.backends.cuda._backend import CudaBackend
from elm_neuro.backends.cuda._input import Events, project_events
from elm_neuro.backends.network._backend import NetworkBackend, NetworkRecord
from elm_neuro.backends.network._cuda_op import run_as_operator
from elm_neuro.backends.network._cuda_pass import Operands, Options, run, sizes_of
from elm_neuro.backends.network._kernels import reason_of_kernels
from elm_neuro.backends.network._reference import Reference
from elm_neuro.backends.network._sources import Sources, read_inputs, reason_of_sources
from elm_neuro.backends.parts._lengths import valid
from elm_neuro.backends.parts._projection import project
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState

run_plainly = untraced(Reference().scan)


class Cuda(CudaBackend, NetworkBackend):
    """The kernels of :mod:`elm_neuro.backends.cuda`."""

    traceable = True

    def refusal(self, x: Tensor | SpikeEvents, params: NetworkParams, rule: NetworkRule) -> str | None:
        if x.device != params.bias.device:
            return f"x must be on the parameters' device, {params.bias.device}, got {x.device}"
        reason = reason_of_kernels(rule) or self.refusal_of(params.bias) or reason_of_sources(params, x.shape[-1])
        if reason is not None or params.index.numel() == 0:
            return reason
        reads_layer = True  # what compiled code must not look at
        if not torch.compiler.is_compiling():
            reads_layer = _network.wiring(params.index, x.shape[-1], params.num_branch) is not None
        kappas = params.kappa_m, params.kappa_b, params.kappa_r
        sizes = sizes_of(Options.of(params, rule), *kappas, reads_layer=reads_layer)
        return _network.reason_of_size(tuple(sizes), params.bias.dtype, params.bias.device.index or 0)

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
        batch, num_steps, num_input = x.shape
        if batch * num_steps * params.index.numel() * params.w_y.numel() == 0:
            masks = {"input_mask": input_mask, "recurrent_mask": recurrent_mask}
            return run_plainly(x, params, rule, state, lengths=lengths, **masks)
        sources = Sources.of(params, rule, num_input)
        read = read_inputs(params, num_input)
        from_input = _project(x, read, sources.of_input, lengths, input_mask) + sources.constant
        trace, high_pass = params.kappa_b is not None, params.kappa_r is not None
        operands = Operands(
            params.index, lengths, recurrent_mask, rule.input_scale * params.w_s.detach(), from_input,
            sources.of_neurons, params.w_y, params.bias, params.kappa_m, params.gain,
            params.kappa_b, params.kappa_r, state.a, state.b if trace else None, state.m,
            state.r if high_pass else None,
        )  # fmt: skip
        layers, options = params.mlp_weight + params.mlp_bias, Options.of(params, rule)
        found = (run_as_operator if torch.compiler.is_compiling() else run)(operands, layers, options, num_input)
        a, change, a_last, b_last, m_last, r_last = found
        after = NetworkState(a_last, b_last if trace else state.b, m_last, r_last if high_pass else state.r)
        return NetworkRecord(a, change), after


def _project(
    x: Tensor | SpikeEvents, read: Tensor, weight: Tensor, lengths: Tensor | None, mask: Tensor | None
) -> Tensor:
    """What the inputs that are `read` add to every step, (batch, time, rows); nothing here waits for the device."""
    if not isinstance(x, SpikeEvents):
        frames = torch.where(read if lengths is None else read & valid(lengths, x), x, 0.0)
        return project(frames if mask is None else frames * mask.unsqueeze(1), weight)
    value, (batch, num_steps, _) = None if x.value is None else torch.where(read[x.channel], x.value, 0.0), x.shape
    if mask is not None or (lengths is not None and value is not None):
        row = torch.searchsorted(x.indptr, torch.arange(x.channel.shape[0], device=x.device), right=True) - 1
        sample = row // num_steps
        if lengths is not None and value is not None:  # past its sample's end an event may hold any number
            value = torch.where(row % num_steps < lengths[sample], value, 0.0)
        if mask is not None:
            factor = mask[sample, x.channel]
            value = factor if value is None else value * factor
    return project_events(Events(x.indptr, x.channel, value), (batch, num_steps, x.shape[2]), weight, weight.detach())
