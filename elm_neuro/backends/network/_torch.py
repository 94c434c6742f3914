"""The layer in PyTorch: what the input adds to every step in one product, then a loop whose products are of all neurons
at once.

Gather, weights and branch sum are one linear map, and without a branch trace the first layer of the MLPs follows at
once: of a hidden layer of 10 units behind 30 branches 10 numbers a neuron and step are left instead of 30 branches of
10 synapses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.network._backend import NetworkBackend, NetworkRecord
from elm_neuro.backends.network._masked import masked
from elm_neuro.backends.network._sources import Sources, read_inputs, reason_of_sources
from elm_neuro.backends.parts._lengths import without_padding
from elm_neuro.backends.parts._projection import project
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState
from elm_neuro.functional._elm import TANH_SCALE, TANH_SLOPE
from elm_neuro.functional._network import NETWORK_ACTIVATIONS


class Torch(NetworkBackend):
    """Plain operations of torch: what autograd gives for them is the gradient."""

    name = "torch"
    about = "plain PyTorch, any dtype, any device"
    differentiates = True

    def refusal(self, x: Tensor | SpikeEvents, params: NetworkParams, rule: NetworkRule) -> str | None:
        return reason_of_sources(params, x.shape[-1]) or self.refusal_of(params.bias)

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
        x = _read_by(params, x)
        batch, num_steps, input_size = x.shape
        if num_steps == 0:
            return NetworkRecord(params.bias.expand(batch, 0, params.bias.shape[0]), 0.0 * state.r), state
        sources = Sources.of(params, rule, input_size)
        from_input = project(x, sources.of_input) + sources.constant  # (batch, time, num_neuron * rows)
        layer = _Layer.of(params)
        act = NETWORK_ACTIVATIONS[rule.activation]
        a, b, m, r = state.a, state.b.transpose(0, 1), state.m.transpose(0, 1), state.r
        activity, proposed = [], []
        for step, from_input_t in enumerate(from_input.unbind(1)):
            fed_back = a if recurrent_mask is None else a * recurrent_mask
            z = torch.addmm(from_input_t, fed_back, sources.of_neurons).view(batch, *sources.shape).transpose(0, 1)
            b_t, decayed = b, layer.kappa_m * m
            if layer.kappa_b is not None:
                b_t = layer.kappa_b * b + z
                z = torch.baddbmm(layer.bias[0], b_t, layer.of_branches)
            z = torch.baddbmm(z, decayed, layer.of_memory)  # (num_neuron, batch, out)
            for weight, bias in zip(layer.weight, layer.bias[1:], strict=True):
                z = torch.baddbmm(bias, act(z), weight)
            m_t = torch.addcmul(decayed, layer.gain, torch.tanh(TANH_SLOPE * z))
            y_t = torch.einsum("nbm,nm->bn", m_t, params.w_y)
            r_t = r if params.kappa_r is None else torch.lerp(y_t, r, params.kappa_r)
            a_t = rule.emit(y_t + params.bias if params.kappa_r is None else y_t - r_t + params.bias)
            activity.append(a_t)
            proposed.append(z)
            if lengths is not None:
                running = (step < lengths).unsqueeze(-1)  # (batch, 1)
                a_t, b_t = torch.where(running, a_t, a), torch.where(running, b_t, b)
                m_t, r_t = torch.where(running, m_t, m), torch.where(running, r_t, r)
            a, b, m, r = a_t, b_t, m_t, r_t
        record = torch.stack(activity, dim=1)
        size = torch.stack(proposed).abs().mean(-1).permute(2, 0, 1)  # (batch, time, num_neuron)
        if lengths is not None:
            running = (torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
            record, size = torch.where(running, record, 0.0), torch.where(running, size, 0.0)
        return NetworkRecord(record, size.sum(1)), NetworkState(a, b.transpose(0, 1), m.transpose(0, 1), r)


def _read_by(params: NetworkParams, x: Tensor | SpikeEvents) -> Tensor | SpikeEvents:
    """The input without what no neuron reads."""
    read = read_inputs(params, x.shape[-1])
    if not isinstance(x, SpikeEvents):
        return torch.where(read, x, 0.0)
    return x if x.value is None else x.select(read[x.channel])


class _Layer(NamedTuple):
    """Parameters of all neurons for products of all neurons at once: the neuron axis first, then the batch."""

    kappa_m: Tensor  # (num_neuron, 1, num_memory)
    gain: Tensor  # (num_neuron, 1, num_memory), with the scale of the tanh
    kappa_b: Tensor | None  # (num_neuron, 1, num_branch)
    of_branches: Tensor  # (num_neuron, num_branch, out): the first layer's halves
    of_memory: Tensor  # (num_neuron, num_memory, out)
    weight: tuple[Tensor, ...]  # of the further layers, (num_neuron, in, out)
    bias: tuple[Tensor, ...]  # of all layers, (num_neuron, 1, out)

    @classmethod
    def of(cls, params: NetworkParams) -> _Layer:
        first, *further = (weight.mT.contiguous() for weight in params.mlp_weight)
        return cls(
            kappa_m=params.kappa_m.unsqueeze(1),
            gain=TANH_SCALE * params.gain.unsqueeze(1),
            kappa_b=None if params.kappa_b is None else params.kappa_b.unsqueeze(1),
            of_branches=first[:, : params.num_branch],
            of_memory=first[:, params.num_branch :].contiguous(),
            weight=tuple(further),
            bias=tuple(bias.unsqueeze(1) for bias in params.mlp_bias),
        )
