"""The ELM Network over a sequence: the operator, its backends and the call that chooses one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends._backend import Operator
from elm_neuro.backends._select import choose, register
from elm_neuro.backends.network._again import twice_differentiable
from elm_neuro.backends.network._backend import NetworkBackend, NetworkRecord
from elm_neuro.backends.network._ordered import ORDERED
from elm_neuro.backends.parts._plain import PLAIN, not_numbers, resolved
from elm_neuro.backends.parts._shapes import check_lengths, check_operands
from elm_neuro.backends.parts._twice import without_autocast
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState, zero_network_state
from elm_neuro.functional._transforms import transformed

OPERATOR: Operator[NetworkBackend] = register(Operator("network", NetworkBackend, ORDERED))


def scan(
    x: Tensor | SpikeEvents,
    params: NetworkParams,
    state: NetworkState | None,
    rule: NetworkRule,
    *,
    lengths: Tensor | None = None,
    input_mask: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[NetworkRecord, NetworkState]:
    """Run a layer of ELM neurons over all time steps: :func:`elm_neuro.functional.network_step` one after the other.

    Args:
        x: input, (batch, time, input_size), or events.
        params: effective parameters of one step.
        state: before the first step; None for zeros.
        rule: what the neurons compute alike.
        lengths: number of valid steps of each sample, (batch,), int64; past them the activity is 0 and the state keeps
            its value.
        input_mask: factor on the input in every step, (batch, input_size); no gradient reaches it.
        recurrent_mask: factor on the activity that the layer reads, (batch, num_neuron); no gradient reaches it, and
            the activity in record and state is without it.
        backend: "auto", or one of :func:`elm_neuro.backends.available`.

    Returns:
        The record of the sequence, and the state after the last valid step of each sample.

    Raises:
        ValueError: a tensor does not fit the others, or a backend that is named cannot run these inputs.
        RuntimeError: a backend that is named cannot run here.
    """
    if not params.mlp_weight or len(params.mlp_weight) != len(params.mlp_bias):
        number = f"{len(params.mlp_weight)} and {len(params.mlp_bias)}"
        raise ValueError(f"mlp_weight and mlp_bias must hold a tensor a layer, at least one, got {number}")
    x = _in_dtype_of(params, x)
    if state is None:
        state = zero_network_state(params, x.shape[0])
    state = NetworkState(*(part.to(params.bias.dtype) for part in state))
    options = {
        "lengths": lengths,
        "input_mask": None if input_mask is None else input_mask.detach(),
        "recurrent_mask": None if recurrent_mask is None else recurrent_mask.detach(),
    }
    _check(x, params, state, options)
    first = x.channel if isinstance(x, SpikeEvents) else x
    tensors = (*params.mlp_weight, *params.mlp_bias, *(one for one in params if not isinstance(one, tuple)))
    reason = not_numbers((first, *state, *tensors, *options.values()))
    compiling = torch.compiler.is_compiling()
    # torch.export, which traces even what is kept from the compiler
    if compiling and not torch.compiler.is_dynamo_compiling():
        reason = "torch.export does not trace it, or does not load what it saves of it"

    def refusal(candidate: NetworkBackend) -> str | None:
        if reason is not None and not candidate.steps_alone and not (compiling and candidate.traceable):
            return reason
        return candidate.refusal(x, params, rule)

    chosen = choose(OPERATOR, backend, refusal)
    if compiling and chosen.traceable:
        with without_autocast(params.bias):  # which would narrow the memory
            return chosen.scan(x, params, rule, state, **options)
    return _scan(chosen, x, params, rule, state, options)


@untraced
def _scan(
    chosen: NetworkBackend,
    x: Tensor | SpikeEvents,
    params: NetworkParams,
    rule: NetworkRule,
    state: NetworkState,
    options: dict[str, Tensor | None],
) -> tuple[NetworkRecord, NetworkState]:
    x, state = resolved(x), NetworkState(*map(resolved, state))
    settled: Any = [tuple(map(resolved, one)) if isinstance(one, tuple) else resolved(one) for one in params]
    params = NetworkParams(*settled)
    with without_autocast(params.bias):  # which would narrow the memory
        record, after = chosen.scan(x, params, rule, state, **options)
        if chosen.differentiates:
            return record, after
        return twice_differentiable(record, after, x, params, rule, state, options)


def _in_dtype_of(params: NetworkParams, x: Tensor | SpikeEvents) -> Tensor | SpikeEvents:
    """Input in the parameters' dtype: frames of bytes, events that count as they are stored, and what autocast lets
    pass.
    """
    if isinstance(x, SpikeEvents):
        return x if x.value is None or x.value.dtype == params.bias.dtype else x.to(dtype=params.bias.dtype)
    return x.to(params.bias.dtype)


def _check(
    x: Tensor | SpikeEvents, params: NetworkParams, state: NetworkState, options: dict[str, Tensor | None]
) -> None:
    """Refuse tensors that do not fit one another."""
    if len(x.shape) != 3:
        raise ValueError(f"x must have shape (batch, time, input_size), got {tuple(x.shape)}")
    batch, input_size = x.shape[0], x.shape[2]
    num_neuron, num_memory = params.kappa_m.shape
    num_branch, num_synapse, neurons = params.num_branch, params.w_s.shape[-1], (num_neuron,)
    if num_branch < 1 or num_synapse % num_branch:
        raise ValueError(f"w_s must have as many synapses on each of {num_branch} branches, got {num_synapse}")
    fits: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("w_s", params.w_s, (num_neuron, num_synapse)), ("w_y", params.w_y, (num_neuron, num_memory)),
        ("bias", params.bias, neurons), ("gain", params.gain, (num_neuron, num_memory)),
        ("kappa_b", params.kappa_b, (num_neuron, num_branch)), ("kappa_r", params.kappa_r, neurons),
        ("state.a", state.a, (batch, num_neuron)), ("state.b", state.b, (batch, num_neuron, num_branch)),
        ("state.m", state.m, (batch, num_neuron, num_memory)), ("state.r", state.r, (batch, num_neuron)),
        ("input_mask", options["input_mask"], (batch, input_size)),
        ("recurrent_mask", options["recurrent_mask"], (batch, num_neuron)),
    ]  # fmt: skip
    size, last = num_branch + num_memory, len(params.mlp_weight) - 1
    for layer, (weight, bias) in enumerate(zip(params.mlp_weight, params.mlp_bias, strict=True)):
        out = num_memory if layer == last else weight.shape[-2]
        fits += [
            (f"mlp_weight[{layer}]", weight, (num_neuron, out, size)),
            (f"mlp_bias[{layer}]", bias, (num_neuron, out)),
        ]
        size = out
    check_operands(fits, params.kappa_m)
    check_operands([("index", params.index, (num_neuron, num_synapse))], params.kappa_m, dtype=torch.int64)
    check_lengths(options["lengths"], batch, x.shape[1], params.kappa_m.device)
    if _may_be_read(params.index) and params.index.numel():
        low, high = (int(end) for end in params.index.aminmax())
        if low < 0 or high >= input_size + num_neuron:
            rule = f"0 to {input_size + num_neuron - 1}: {input_size} inputs, then {num_neuron} neurons"
            raise ValueError(f"index must be from {rule}; got {low} to {high}")


def _may_be_read(index: Tensor) -> bool:
    """Whether a look at the numbers costs no wait for a device and there are any."""
    plain = index.device.type == "cpu" and type(index) in PLAIN
    return plain and not torch.compiler.is_compiling() and not transformed()
