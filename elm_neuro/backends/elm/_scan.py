"""The ELM over a sequence: the operator, its backends and the call that chooses one."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends._backend import Operator
from elm_neuro.backends._select import choose, register
from elm_neuro.backends.elm._again import twice_differentiable, twice_differentiable_spikes
from elm_neuro.backends.elm._backend import ELMBackend, LearnedBackend, fired
from elm_neuro.backends.elm._learned import Learned, parts_of
from elm_neuro.backends.elm._ordered import ORDERED
from elm_neuro.backends.parts._bytes import holds_bytes
from elm_neuro.backends.parts._lengths import last_or_zeros
from elm_neuro.backends.parts._plain import not_numbers, resolved, stand_for_others
from elm_neuro.backends.parts._recompute import in_parts
from elm_neuro.backends.parts._shapes import Shape, check_alike, check_lengths
from elm_neuro.backends.parts._spikes import SpikeRule
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState

SPARSE_INPUT = ("auto", "on", "off")


OPERATOR: Operator[ELMBackend] = register(Operator("elm", ELMBackend, ORDERED), leading=True)


def check_sparse_input(sparse_input: str, x: Tensor | SpikeEvents | None = None) -> None:
    """Refuse a value that is none of SPARSE_INPUT, and "on" for frames `x` that cannot be events."""
    if sparse_input not in SPARSE_INPUT:
        raise ValueError(f"sparse_input must be one of {list(SPARSE_INPUT)}, got {sparse_input!r}")
    if sparse_input != "on" or not isinstance(x, Tensor):
        return
    if x.device.type != "cpu":
        raise ValueError(f'sparse_input="on" takes frames on the CPU, or events, got x on {x.device}')
    if x.ndim != 3:
        raise ValueError(f'sparse_input="on" takes frames of shape (batch, time, input_size), got {tuple(x.shape)}')
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError('sparse_input="on" takes frames that need no gradient, got x with requires_grad')


def check_recompute_every(recompute_every: int | None) -> None:
    """Refuse what is no number of steps."""
    if recompute_every is None:
        return
    if isinstance(recompute_every, bool) or not isinstance(recompute_every, int) or recompute_every < 1:
        raise ValueError(f"recompute_every must be an integer of at least 1, got {recompute_every!r}")


def scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters | Learned,
    state: ELMState | None,
    *,
    lengths: Tensor | None = None,
    recompute_every: int | None = None,
    sparse_input: str = "auto",
    backend: str = "auto",
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps.

    Args:
        x: input, (batch, time, input_size), (batch, time, num_neuron, input_size), or events. Frames may be of uint8
            or int8, which `cuda` reads as they are; for the others floats are made of them.
        params: effective parameters of one step; or as a neuron learns them: a backend may then compute what is
            effective in its own pass, where autograd has one node less to walk through.
        state: before the first step; None for zeros.
        lengths: number of valid steps of each sample, (batch,), int64; past them the output is 0 and the state keeps
            its value.
        recompute_every: keep the activations of this many steps at a time and recompute the others in the backward
            pass.
        sparse_input: turn dense frames into events on the CPU: "auto", where few of their entries are spikes and x
            needs no gradient; "on", always; "off", never. The numbers are the same but for rounding; `reference`
            ignores it.
        backend: "auto", or one of :func:`elm_neuro.backends.available`.

    Returns:
        Output (batch, time, [num_neuron,] output_size), and the state after the last valid step of each sample.

    Raises:
        ValueError: a backend that is named cannot run these inputs; `recompute_every` is no integer of at least 1;
            `sparse_input` is "on" for frames that need a gradient, are not on the CPU or differ between the neurons of
            a population.
        RuntimeError: a backend that is named cannot run here.
    """
    check_sparse_input(sparse_input, x)
    check_recompute_every(recompute_every)
    chosen, x, params, state = _settled(backend, x, params, state, lengths)
    return _chosen_scan(chosen, x, params, state, lengths, recompute_every, sparse_input)


def _chosen_scan(
    chosen: ELMBackend,
    x: Tensor | SpikeEvents,
    params: ELMParameters | Learned,
    state: ELMState | None,
    lengths: Tensor | None,
    recompute_every: int | None,
    sparse_input: str,
) -> tuple[Tensor, ELMState]:
    """:func:`scan` by the backend that was chosen for it."""
    whole = _whole(chosen, x, params, lengths, recompute_every)
    if whole is not None:
        return whole.scan(x, params, state, lengths=lengths, sparse_input=sparse_input)
    params = _effective(params)
    # how many events lie in a part, compiled code does not know
    counts = isinstance(x, SpikeEvents) and recompute_every is not None and not chosen.recomputes
    if torch.compiler.is_compiling() and chosen.traceable and not counts:
        return _in_one_or_parts(chosen, x, params, state, lengths, recompute_every, sparse_input)
    y, after = _scan(chosen, x, params, state, lengths, recompute_every, sparse_input)
    if chosen.differentiates or torch.compiler.is_compiling():
        return y, after
    return twice_differentiable(y, after, x, params, state, lengths)


def spiking_scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters | Learned,
    state: ELMState | None,
    rule: SpikeRule,
    *,
    lengths: Tensor | None = None,
    recompute_every: int | None = None,
    sparse_input: str = "auto",
    backend: str = "auto",
    last_readout: bool = False,
) -> tuple[Tensor, Tensor, ELMState]:
    """Run the neuron over all time steps, its readout against a threshold: the numbers of :func:`scan` and then
    ``rule.fire``, in one pass where the backend can.

    Args:
        x: as for :func:`scan`, and so are the others.
        params: as there.
        state: before the first step.
        rule: threshold and surrogate.
        lengths: number of valid steps of each sample; past them there are no spikes.
        recompute_every: keep the activations of so many steps.
        sparse_input: turn dense frames into events.
        backend: "auto", or one of :func:`elm_neuro.backends.available`.
        last_readout: give the readout of each sample's last valid step only, (batch, [num_neuron,] output_size), 0 for
            a sample without any; without gradients `native` then keeps no record of the others.

    Returns:
        Spikes, 0 or 1, and readout, each (batch, time, [num_neuron,] output_size), in the state's dtype; the state
        after the last valid step of each sample.
    """
    check_sparse_input(sparse_input, x)
    check_recompute_every(recompute_every)
    chosen, x, params, state = _settled(backend, x, params, state, lengths)
    how, rule = (recompute_every, sparse_input), rule._replace(threshold=resolved(rule.threshold))
    if not torch.compiler.is_compiling() and chosen.fires(parts_of(params)[0], rule):
        return _firing_scan(chosen, x, params, state, rule, lengths, *how, last_readout)
    y, after = _chosen_scan(chosen, x, params, state, lengths, *how)
    return fired(y, after, rule, lengths, last_readout)


def _firing_scan(
    chosen: ELMBackend,
    x: Tensor | SpikeEvents,
    params: ELMParameters | Learned,
    state: ELMState | None,
    rule: SpikeRule,
    lengths: Tensor | None,
    recompute_every: int | None,
    sparse_input: str,
    last_readout: bool,
) -> tuple[Tensor, Tensor, ELMState]:
    """:func:`spiking_scan` by a backend that fires inside its own pass."""
    record = not last_readout or torch.is_grad_enabled()  # which the backward pass reads
    options: dict[str, Any] = {
        "lengths": lengths, "sparse_input": sparse_input, "recompute_every": recompute_every, "last_readout": not record
    }  # fmt: skip
    whole = _whole(chosen, x, params, lengths, recompute_every)
    if whole is not None:
        spikes, y, after = whole.spiking_scan(x, params, state, rule, **options)
    else:
        params = _effective(params)
        spikes, y, after = chosen.spiking_scan(x, params, state, rule, **options)
        spikes, y, after = twice_differentiable_spikes(spikes, y, after, x, params, state, lengths, rule)
    return spikes, last_or_zeros(y, lengths) if last_readout and record else y, after


def check_fit(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, lengths: Tensor | None
) -> tuple[Tensor, ...]:
    """Refuse tensors that do not fit one another.

    Returns:
        All tensors of the parameters and the state.

    Raises:
        ValueError: one has another shape than the neuron's sizes say, or is on another device; the message names it,
            the rule and what came.
        TypeError: one has another dtype.
    """
    w_s, routing, kappa_b, kappa_m, gain, weights, biases, w_y, b_y, _, _ = params
    tensors = (w_s, kappa_b, gain, w_y, b_y, *weights, *biases, *(state or ()))
    everything = (kappa_m, *tensors) if routing is None else (routing, kappa_m, *tensors)
    # what a call is checked for depends on these alone, and they seldom change from call to call
    facts = (tuple(x.shape), len(weights), routing is None, *[
        (tensor.shape, tensor.dtype, tensor.device, tensor.layout) for tensor in everything
    ])  # fmt: skip
    # there sizes are no numbers
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or type(x.shape[0]) is not int
    if traced or facts not in _fitting:
        _check_shapes(x, kappa_m, routing, tensors, len(weights))
        if not traced:
            if len(_fitting) >= MOST_FITTING:
                _fitting.clear()
            _fitting.add(facts)
    if lengths is not None:
        check_lengths(lengths, x.shape[0], x.shape[1], kappa_m.device)
    return everything


MOST_FITTING = 1024
_fitting: set[tuple[Any, ...]] = set()  # facts of calls whose tensors fit one another


def _check_shapes(
    x: Tensor | SpikeEvents, kappa_m: Tensor, routing: Tensor | None, tensors: tuple[Tensor, ...], num_layer: int
) -> None:
    """:func:`check_fit` but for the lengths."""
    shapes = tuple([tensor.shape for tensor in tensors])
    misfit = _misfit(tuple(x.shape), kappa_m.shape, None if routing is None else routing.shape, num_layer, shapes)
    if misfit is not None:
        raise ValueError(misfit)
    check_alike(tensors, kappa_m, partial(_names, num_layer))
    if routing is not None:
        check_alike((routing,), kappa_m, lambda: ["routing"], dtype=torch.int64)


def _names(num_layer: int) -> list[str]:
    """Of the tensors that :func:`check_fit` looks at."""
    layers = [f"mlp_{kind}[{index}]" for kind in ("weight", "bias") for index in range(num_layer)]
    return ["w_s", "kappa_b", "gain", "w_y", "b_y", *layers, "state.b", "state.m"]


def _misfit(x: Shape, kappa_m: Shape, routing: Shape | None, num_layer: int, shapes: tuple[Shape, ...]) -> str | None:
    """What is wrong with these shapes, the last those of :func:`_names`; None where they fit."""
    w_s, kappa_b, _, w_y, *_ = shapes
    *of, num_memory = kappa_m
    num_branch = w_s[-2]
    if routing is not None:
        wanted = (*of[: len(routing) - 2], num_branch, w_s[-1])
        if routing != wanted:
            return f"routing must have shape {wanted}, got {tuple(routing)}"
    elif x[-1] != num_branch:
        return f"x must have {num_branch} inputs, one a branch, got {x[-1]}"
    inner = [shape[-2] for shape in shapes[5 : 4 + num_layer]]
    sizes = [num_branch + num_memory, *inner, num_memory]
    rules: list[Shape] = [
        (*of, num_branch, w_s[-1]), (num_branch,) if kappa_b else (), kappa_m, (*of, w_y[-2], num_memory),
        (*of, w_y[-2]), *((*of, out, size) for size, out in pairwise(sizes)), *((*of, out) for out in sizes[1:]),
        (x[0], *of, num_branch), (x[0], *kappa_m),
    ]  # fmt: skip
    seen = len(shapes)  # without a state two fewer than there are rules; torch 2.9 compiles no zip of unlike lengths
    for name, rule, shape in zip(_names(num_layer)[:seen], rules[:seen], shapes, strict=True):
        if shape != rule:
            return f"{name} must have shape {tuple(rule)}, got {tuple(shape)}"
    return None


def _settled(
    backend: str,
    x: Tensor | SpikeEvents,
    params: ELMParameters | Learned,
    state: ELMState | None,
    lengths: Tensor | None,
) -> tuple[ELMBackend, Tensor | SpikeEvents, ELMParameters | Learned, ELMState | None]:
    """The backend that runs these inputs, which fit one another, and they themselves: the state in the parameters'
    dtype, since autocast lets others pass; the numbers of tensors that stand for others.
    """
    given = params.params if isinstance(params, Learned) else params
    if state is not None:
        state = ELMState(state.b.to(given.kappa_m.dtype), state.m.to(given.kappa_m.dtype))
    tensors = (x.channel if isinstance(x, SpikeEvents) else x, *check_fit(x, given, state, lengths))
    reason = not_numbers(tensors)

    def refusal(candidate: ELMBackend) -> str | None:
        if reason is not None and not candidate.differentiates:
            return reason
        return candidate.refusal(x, given)

    chosen = choose(OPERATOR, backend, refusal)
    if holds_bytes(x) and not chosen.takes_bytes:
        x = x.to(given.kappa_m.dtype)
    if torch.compiler.is_compiling() or not stand_for_others(tensors):
        return chosen, x, params, state
    numbers: dict[str, Any] = {
        name: tuple(map(resolved, value)) if isinstance(value, tuple) else resolved(value)
        for name, value in given._asdict().items()
    }
    given = given._replace(**numbers)
    state = None if state is None else ELMState(*map(resolved, state))
    return chosen, resolved(x), params._replace(params=given) if isinstance(params, Learned) else given, state


def _whole(
    chosen: ELMBackend,
    x: Tensor | SpikeEvents,
    params: ELMParameters | Learned,
    lengths: Tensor | None,
    recompute_every: int | None,
) -> LearnedBackend | None:
    """The backend, where it makes the parameters effective in its own pass."""
    # compiled code sees the operations: they are torch's
    if not isinstance(params, Learned) or recompute_every is not None or torch.compiler.is_compiling():
        return None
    if isinstance(chosen, LearnedBackend) and chosen.takes_learned(x, params.params, lengths):
        return chosen
    return None


def _effective(params: ELMParameters | Learned) -> ELMParameters:
    """What one step works with."""
    if not isinstance(params, Learned):
        return params
    from elm_neuro.backends.elm._effective import parameters  # which brings the kernels

    return parameters(params)


def _in_one_or_parts(
    chosen: ELMBackend,
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    recompute_every: int | None,
    sparse_input: str,
) -> tuple[Tensor, ELMState]:
    if recompute_every is None or chosen.recomputes:
        return chosen.scan(
            x, params, state, lengths=lengths, sparse_input=sparse_input, recompute_every=recompute_every
        )
    return in_parts(partial(chosen.scan, sparse_input=sparse_input), x, params, state, lengths, recompute_every)


_scan = untraced(_in_one_or_parts)
