"""The layer by native kernels: gather, branches, MLPs and feedback of all steps in one pass, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.native import _library
from elm_neuro.backends.native._backend import NativeBackend
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.native._rows import rows
from elm_neuro.backends.network._backend import NetworkBackend, NetworkRecord
from elm_neuro.backends.network._kernels import reason_of_kernels
from elm_neuro.backends.network._native_op import run_as_operator
from elm_neuro.backends.network._native_pass import Operands, Options, run
from elm_neuro.backends.network._reference import Reference
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState

REFERENCE = Reference()


class Native(NativeBackend, NetworkBackend):
    """The kernels of :mod:`elm_neuro.backends.native`."""

    traceable = True

    def refusal(self, x: Tensor | SpikeEvents, params: NetworkParams, rule: NetworkRule) -> str | None:
        if x.device.type != "cpu":
            return f"it runs on the CPU, got {x.device}"
        if len(params.mlp_weight) > _library.MAX_LAYERS:
            return f"its MLPs have at most {_library.MAX_LAYERS} layers, got {len(params.mlp_weight)}"
        return reason_of_kernels(rule) or self.refusal_of(params.bias)

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
        if x.shape[0] * x.shape[1] * params.index.numel() * params.w_y.numel() == 0:
            masks = {"input_mask": input_mask, "recurrent_mask": recurrent_mask}
            return REFERENCE.scan(x, params, rule, state, lengths=lengths, **masks)
        begin, end, channel, value, frames = None, None, None, None, None
        compiling = torch.compiler.is_compiling()
        if not isinstance(x, SpikeEvents):
            frames = x if compiling else rows(x)
        elif compiling:
            begin, channel, value = x.indptr, x.channel, x.value
        else:
            begin, end, channel, value, _ = Events.of(x, params.bias.dtype)
        trace, high_pass = params.kappa_b is not None, params.kappa_r is not None
        operands = Operands(
            params.index, begin, end, channel, value, lengths, input_mask, recurrent_mask,
            x=frames, w_s=params.w_s, w_y=params.w_y, bias=params.bias, kappa_m=params.kappa_m, gain=params.gain,
            kappa_b=params.kappa_b, kappa_r=params.kappa_r, a_0=state.a, b_0=state.b if trace else None, m_0=state.m,
            r_0=state.r if high_pass else None,
        )  # fmt: skip
        layers, options = params.mlp_weight + params.mlp_bias, Options.of(params, rule)
        found: tuple[Any, ...] = (run_as_operator if compiling else run)(operands, layers, options, x.shape)
        a, change, a_last, b_last, m_last, r_last = found
        after = NetworkState(a_last, b_last if trace else state.b, m_last, r_last if high_pass else state.r)
        return NetworkRecord(a, change), after
