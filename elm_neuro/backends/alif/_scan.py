"""LIF and adaptive LIF over a sequence: the operator, its backends and the call that chooses one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends._backend import Operator
from elm_neuro.backends._select import choose, register
from elm_neuro.backends.alif._again import twice_differentiable
from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._learned import AtRest, Learned, Ranges
from elm_neuro.backends.alif._ordered import ORDERED
from elm_neuro.backends.parts._plain import not_numbers, resolved
from elm_neuro.backends.parts._shapes import check_lengths, check_operands
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState
from elm_neuro.functional._transforms import transformed

OPERATOR: Operator[ALIFBackend] = register(Operator("alif", ALIFBackend, ORDERED))


def scan(
    x: Tensor | SpikeEvents,
    weight: Tensor,
    bias: Tensor,
    params: ALIFParameters | Learned,
    state: ALIFState,
    *,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ALIFState]:
    r"""Run a layer over all time steps: :math:`i_t = W_{in} x_t + bias`, then
    :func:`elm_neuro.functional.alif_step`.

    With the gradient "blocks" of the parameters the gradient is that of Blocks, counted in blocks of latency + 1 steps
    from the first one of `x`; the spikes are the same.

    Args:
        x: input, (batch, time, input_size), or events.
        weight: :math:`W_{in}`, (output_size, input_size).
        bias: (output_size,).
        params: effective parameters of one step, or as the layer learns them.
        state: before the first step.
        lengths: number of valid steps of each sample, (batch,), int64; past them there are no spikes and the state,
            the spikes that it remembers included, keeps its value.
        backend: "auto", or one of :func:`elm_neuro.backends.available`.

    Returns:
        Spikes (batch, time, output_size), and the state after the last valid step of each sample.

    Raises:
        ValueError: a tensor does not fit the others, or a backend that is named cannot run these inputs.
        RuntimeError: a backend that is named cannot run here.
    """
    given, ranges = params if isinstance(params, Learned) else (params, None)
    _check(x, weight, bias, given, state, lengths)
    first = x.channel if isinstance(x, SpikeEvents) else x
    reason = not_numbers((first, weight, bias, *given[:4], *state))
    compiling = torch.compiler.is_compiling()
    # torch.export, which traces even what is kept from the compiler
    if compiling and not torch.compiler.is_dynamo_compiling():
        reason = "torch.export does not trace it, or does not load what it saves of it"

    asked, in_blocks = given, given.gradient == "blocks"
    if in_blocks and not _learns((first, weight, bias, *given[:4], *state)):
        asked, in_blocks = given._replace(gradient="loop"), False  # the spikes are the same

    def refusal(candidate: ALIFBackend) -> str | None:
        alone = candidate.steps_alone or (in_blocks and candidate.differentiates)
        if reason is not None and not alone and not (compiling and candidate.traceable):
            return reason
        return candidate.refusal(x, asked, state)

    chosen = choose(OPERATOR, backend, refusal)
    if compiling and chosen.traceable:
        return chosen.scan(x, weight, bias, *_as_read(chosen, given, ranges, state), lengths=lengths)
    return _scan(chosen, x, weight, bias, given, ranges, state, lengths)


@untraced
def _scan(
    chosen: ALIFBackend,
    x: Tensor | SpikeEvents,
    weight: Tensor,
    bias: Tensor,
    given: ALIFParameters,
    ranges: Ranges | None,
    state: ALIFState,
    lengths: Tensor | None,
) -> tuple[Tensor, ALIFState]:
    x, weight, bias, state = resolved(x), resolved(weight), resolved(bias), type(state)(*map(resolved, state))
    beta, p, b, w_rec = (resolved(one) for one in (given.beta, given.p, given.b, given.w_rec))
    read, state = _as_read(chosen, given._replace(beta=beta, p=p, b=b, w_rec=w_rec), ranges, state)
    spikes, after = chosen.scan(x, weight, bias, read, state, lengths=lengths)
    if chosen.differentiates:
        return spikes, after
    return twice_differentiable(spikes, after, x, weight, bias, read, state, lengths)


def _as_read(
    chosen: ALIFBackend, given: ALIFParameters, ranges: Ranges | None, state: ALIFState
) -> tuple[Any, ALIFState]:
    """Parameters and state as the backend reads them."""
    read: Any = given if ranges is None else Learned(given, ranges)
    if chosen.reads_learned:
        return read, state
    read = read.effective() if isinstance(read, Learned) else read
    return read, state.spelled_out() if isinstance(state, AtRest) else state


def _learns(tensors: Iterable[Tensor | None]) -> bool:
    """Whether anybody may ask for a gradient: under transforms the tensors need not say so."""
    if not torch.is_grad_enabled():
        return False
    return transformed() or any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _check(
    x: Tensor | SpikeEvents,
    weight: Tensor,
    bias: Tensor,
    params: ALIFParameters,
    state: ALIFState,
    lengths: Tensor | None,
) -> None:
    """Refuse tensors that do not fit one another."""
    batch, num_neuron = x.shape[0], bias.shape[-1]
    one = (num_neuron,)
    named = (
        ("weight", weight, (num_neuron, x.shape[-1])), ("bias", bias, one), ("beta", params.beta, one),
        ("p", params.p, one), ("b", params.b, one), ("w_rec", params.w_rec, (num_neuron, num_neuron)),
        ("state.v", state.v, (batch, num_neuron)), ("state.a", state.a, (batch, num_neuron)),
        ("state.s", state.s, (batch, max(1, state.s.shape[-2]), num_neuron)),
    )  # fmt: skip
    check_operands(named, bias)
    check_lengths(lengths, batch, x.shape[1], bias.device)
