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
from elm_neuro.backends.network._native_pass import NO_EVENTS, Operands, Options, run
from elm_neuro.backends.network._reference import Reference
from elm_neuro.backends.parts._lengths import own
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState

run_plainly = untraced(Reference().scan)


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
            return run_plainly(x, params, rule, state, lengths=lengths, **masks)
        compiling, events, frames = torch.compiler.is_compiling(), NO_EVENTS, None
        if not isinstance(x, SpikeEvents):
            frames = x if compiling else rows(x)
        elif compiling:
            events = x.indptr, None, x.channel, x.value
        else:
            events = Events.of(x, params.bias.dtype)[:4]
        operands = Operands.of(
            params, state, x=frames, events=events,
            lengths=None if lengths is None else own(lengths), input_mask=input_mask, recurrent_mask=recurrent_mask,
        )  # fmt: skip
        layers, options = params.mlp_weight + params.mlp_bias, Options.of(params, rule)
        found: tuple[Any, ...] = (run_as_operator if compiling else run)(operands, layers, options, x.shape)
        a, change, a_last, b_last, m_last, r_last = found
        after = NetworkState(
            a_last, state.b if params.kappa_b is None else b_last, m_last, state.r if params.kappa_r is None else r_last
        )
        return NetworkRecord(a, change), after
