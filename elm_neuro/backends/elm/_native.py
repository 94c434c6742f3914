"""The reformulation of :mod:`elm_neuro.backends.elm._torch` by native kernels: what arrives, the recurrence and the
readout in one pass.

What has no kernel (branch nonlinearities, products of dense frames) is torch's.

Longer than most: every way of the input into the one pass stands beside the choice between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from elm_neuro.backends.elm import _torch
from elm_neuro.backends.elm._again import Plain, twice_differentiable, twice_differentiable_spikes
from elm_neuro.backends.elm._backend import LearnedBackend
from elm_neuro.backends.elm._effective import parameters, remembered_decay
from elm_neuro.backends.elm._learned import Learned, Timescales, parts_of
from elm_neuro.backends.elm._native_arriving import Arriving, present
from elm_neuro.backends.elm._native_branches import after_branches, arrived_at_branches, branch_table, fewer_branches
from elm_neuro.backends.elm._native_op import run_as_operator
from elm_neuro.backends.elm._native_operands import Operands, Outputs, Plan, one_or_all, tile_for
from elm_neuro.backends.elm._native_pass import Again, Inputs, run
from elm_neuro.backends.elm._native_table import FirstLayer
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._backend import NativeBackend
from elm_neuro.backends.native._events import Events, searched
from elm_neuro.backends.native._filter import filtered, filtered_events, filtered_inside
from elm_neuro.backends.parts._lengths import (
    cut_at,
    last_or_zeros,
    last_valid,
    own,
    silent_past,
    valid,
    without_padding,
)
from elm_neuro.backends.parts._projection import discounted_sum
from elm_neuro.backends.parts._recompute import in_parts
from elm_neuro.backends.parts._spikes import SpikeRule
from elm_neuro.backends.parts._surrogates import in_numbers
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ATan, ELMParameters, ELMState, FastSigmoid, zero_state
from elm_neuro.functional._elm import BRANCH_ACTIVATIONS

run_plainly = untraced(_torch.reformulated_scan)

# Up to so many samples a single step sums over all synapses of each; measured at 4500 synapses and 40 hidden units.
MAX_BATCH_OF_A_STEP = 8


class Native(NativeBackend, LearnedBackend):
    """The kernels of :mod:`elm_neuro.backends.native`."""

    recomputes = traceable = True

    def refusal(self, x: Tensor | SpikeEvents, params: ELMParameters) -> str | None:
        if x.device.type != "cpu":
            return f"it runs on the CPU, got {x.device}"
        num_layer = len(params.mlp_weight) - 1
        if num_layer > _library.MAX_LAYERS:
            return f"it runs at most {_library.MAX_LAYERS} hidden layers, got {num_layer}"
        if num_layer > 1 and len({weight.shape[-2] for weight in params.mlp_weight[:-1]}) > 1:
            return "its hidden layers have one width"
        return self.refusal_of(params.kappa_m)

    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters | Learned,
        state: ELMState | None,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
    ) -> tuple[Tensor, ELMState]:
        given, timescales = parts_of(params)
        if x.shape[0] * x.shape[1] == 0:
            state = zero_state(given, x.shape[0]) if state is None else state
            return run_plainly(x, given, state, lengths, sparse_input)
        lengths = None if lengths is None else own(lengths)
        if not torch.is_autocast_enabled("cpu"):
            y, _, state = _scan(x, given, state, lengths, Run(sparse_input, recompute_every, timescales))
            return y, state
        # as in the torch backend, only products over the whole sequence may be lowered
        dtype = torch.get_autocast_dtype("cpu")
        lowered = dtype if given.kappa_m.dtype == torch.float32 else None
        with torch.autocast("cpu", enabled=False):
            y, _, state = _scan(x, given, state, lengths, Run(sparse_input, recompute_every, timescales, lowered))
        return y.to(dtype), state

    def takes_learned(self, x: Tensor | SpikeEvents, params: ELMParameters, lengths: Tensor | None) -> bool:
        if x.shape[0] * x.shape[1] == 0 or _learns_decay(params):
            return False
        return _torch.may_commute(params) or (
            _is_one_step(x, params, lengths) and not torch.is_autocast_enabled("cpu")  # which lowers products
        )

    def fires(self, params: ELMParameters, rule: SpikeRule) -> bool:
        """For the surrogates that the kernels know; under autocast the readout is narrowed before it meets the
        threshold.
        """
        threshold, shape = rule.threshold, params.b_y.shape
        return (
            type(rule.surrogate) in KERNEL_SURROGATES
            and threshold.dtype == params.b_y.dtype
            and (not threshold.ndim or _broadcasts(threshold.shape, shape))
            and not torch.is_autocast_enabled("cpu")
        )

    def spiking_scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters | Learned,
        state: ELMState | None,
        rule: SpikeRule,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
        last_readout: bool = False,
    ) -> tuple[Tensor, Tensor, ELMState]:
        given, timescales = parts_of(params)
        if x.shape[0] * x.shape[1] == 0:
            return super().spiking_scan(
                x,
                params,
                state,
                rule,
                lengths=lengths,
                sparse_input=sparse_input,
                recompute_every=recompute_every,
                last_readout=last_readout,
            )
        lengths = None if lengths is None else own(lengths)
        run_ = Run(sparse_input, recompute_every, timescales, rule=rule, last_readout=last_readout)
        y, spikes, after = _scan(x, given, state, lengths, run_)
        if spikes is None:  # of parts that are computed again where the branches filter for themselves
            # what fires gives zeros of no gradient: the pass before it must answer for second derivatives by itself
            y, after = twice_differentiable(y, after, x, given, state, lengths)
            return cut_at(lengths, rule.fire(y)), last_or_zeros(y, lengths) if last_readout else y, after
        return spikes, y, after


# Surrogates whose slope the kernels compute from one number.
KERNEL_SURROGATES = ATan, FastSigmoid


def _broadcasts(threshold: torch.Size, to: torch.Size) -> bool:
    sizes = zip(reversed(threshold), reversed(to), strict=False)
    return len(threshold) <= len(to) and all(size in (1, wide) for size, wide in sizes)


class Run(NamedTuple):
    """How a scan is run."""

    sparse_input: str
    recompute_every: int | None
    timescales: Timescales | None = None  # by which the parameters become effective; None: they are already
    lowered: torch.dtype | None = None  # of products over the whole sequence, under autocast
    rule: SpikeRule | None = None  # by which the readout fires inside the pass
    last_readout: bool = False  # with a rule, and without gradients: no record of the others

    def in_one_part(self, num_steps: int) -> bool:
        return self.recompute_every is None or self.recompute_every >= num_steps


Scanned: TypeAlias = tuple[Tensor, Tensor | None, ELMState]  # readout, spikes where there is a rule, state


def _scan(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, lengths: Tensor | None, run: Run
) -> Scanned:
    """Where the filter may follow the first layer it does, but for dense frames on fewer branches than hidden units."""
    if torch.compiler.is_compiling():
        return _scan_traced(x, params, state, lengths, run)
    if run.lowered is None and _is_one_step(x, params, lengths):
        return _one_step(x, params, state, run)
    if run.timescales is not None:
        return _scan_learned(x, params, state, lengths, run)
    commutes = _torch.may_commute(params) and not _learns_decay(params)
    arriving = _arriving(x, params, lengths, run) if commutes else None
    if arriving is not None and (arriving.events is not None or not fewer_branches(params)):
        return _hidden_first(x, arriving, params, state, run)
    if arriving is not None:  # what it was searched for is not there
        x, run = arriving.frames_or_raise(), run._replace(sparse_input="off")
    return _branches_first_in_parts(x, params, state, lengths, run)


def _branches_first_in_parts(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, lengths: Tensor | None, run: Run
) -> Scanned:
    """The filter on the branches, of some steps at a time where the others are to be computed again."""
    if run.recompute_every is None or x.shape[1] <= run.recompute_every or not torch.is_grad_enabled():
        return _branches_first(x, params, state, lengths=lengths, run=run)
    part = partial(_branches_first, run=run._replace(rule=None, last_readout=False))

    def without_spikes(*args: Any, **options: Any) -> tuple[Tensor, ELMState]:
        y, _, after = part(*args, **options)
        return y, after

    # how many events lie in a part, compiled code does not know
    run_parts = untraced(in_parts) if isinstance(x, SpikeEvents) else in_parts
    y, after = run_parts(without_spikes, x, params, state, lengths, run.recompute_every)
    return y, None, after


def _scan_learned(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, lengths: Tensor | None, run: Run
) -> Scanned:
    """The same of parameters as they are learned; differentiable twice."""
    arriving = _arriving(x, params, lengths, run)
    if arriving.events is not None or not fewer_branches(params) or run.timescales is None:
        return _hidden_first(x, arriving, params, state, run)
    frames, params = arriving.frames_or_raise(), parameters(Learned(params, run.timescales))
    run = run._replace(timescales=None, sparse_input="off")
    y, spikes, after = _branches_first(frames, params, state, lengths=lengths, run=run)
    if spikes is None or run.rule is None:
        y, after = twice_differentiable(y, after, frames, params, state, lengths)
    else:
        spikes, y, after = twice_differentiable_spikes(spikes, y, after, frames, params, state, lengths, run.rule)
    return y, spikes, after


def _scan_traced(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, lengths: Tensor | None, run: Run
) -> Scanned:
    """The same inside compiled code, which must not look at how many events there are: it counts on finding them in
    frames that are searched.
    """
    commutes = _torch.may_commute(params) and not _learns_decay(params)
    if isinstance(x, SpikeEvents):
        if commutes:
            return _hidden_first_traced(x, params, state, lengths, run)
        return _branches_first_in_parts(x, params, state, lengths, run)
    x = x.to(params.kappa_m.dtype)
    if commutes and (searched(x, run.sparse_input) or not fewer_branches(params)):
        return _hidden_first_traced(x, params, state, lengths, run)
    return _branches_first_in_parts(x, params, state, lengths, run._replace(sparse_input="off"))


def _learns_decay(params: ELMParameters) -> bool:
    """Whether the branch traces' decay has a gradient, which the filter by itself computes."""
    return params.kappa_b.requires_grad and torch.is_grad_enabled()


def _is_one_step(x: Tensor | SpikeEvents, params: ELMParameters, lengths: Tensor | None) -> bool:
    if x.shape[1] != 1 or x.shape[0] > MAX_BATCH_OF_A_STEP or lengths is not None:
        return False
    return params.branch_activation is None and not _learns_decay(params)


def _one_step(x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, run: Run) -> Scanned:
    """A single step of few samples: no table, whose making would cost more than the step."""
    kappa_b, dtype = params.kappa_b, params.kappa_m.dtype
    if run.timescales is not None:
        kappa_b = remembered_decay(kappa_b, run.timescales)
    if isinstance(x, SpikeEvents):
        frames = Events.of(x, dtype).discounted_sum(0.0, dtype, None).unsqueeze(1)
    else:
        frames = x.to(dtype)
    first = FirstLayer(params.w_s, params.routing, None, None if state is None else state.b)
    operands = _operands(
        params, state, run, params.mlp_weight[0], None, kappa_b=kappa_b, frames=frames, bias=params.mlp_bias[0]
    )
    again = None
    if torch.is_grad_enabled():
        again = Again(Plain.of(params.kappa_m, frames, params, None, run.rule, run.timescales), None)
    y, spikes, m, b = _run(operands, params, run, x.shape[0], 1, first=first, again=again, one_step=True)
    return y, spikes, ELMState(present(b), m)


def _arriving(x: Tensor | SpikeEvents, params: ELMParameters, lengths: Tensor | None, run: Run) -> Arriving:
    """The input, searched for events where it depends on them how the pass goes."""
    search = fewer_branches(params) or not run.in_one_part(x.shape[1])
    return Arriving.of(x, params.kappa_m.dtype, lengths, run.sparse_input, search=search)


def _hidden_first(
    x: Tensor | SpikeEvents, arriving: Arriving, params: ELMParameters, state: ELMState | None, run: Run
) -> Scanned:
    """The filter on the hidden units, inside the pass."""
    weight, kappa_b, b_0 = params.mlp_weight[0], params.kappa_b, None if state is None else state.b
    if run.timescales is not None:
        kappa_b = remembered_decay(kappa_b, run.timescales)
    adds_up = (arriving.events is not None or arriving.unsearched) and run.in_one_part(arriving.num_steps)
    total = None if adds_up else arriving.discounted_sum(kappa_b)
    first = FirstLayer(params.w_s, params.routing, total, b_0)
    # the pass itself makes the memory's part of the weight, and its table
    operands = _operands(
        params, state, run, weight, arriving.lengths, arriving.events,
        kappa_b=kappa_b, frames=arriving.frames, bias=params.mlp_bias[0],
    )  # fmt: skip
    again = None
    if torch.is_grad_enabled():
        plain = Plain.of(params.kappa_m, x, params, arriving.lengths, run.rule, run.timescales)
        again = Again(plain, x if arriving.frames is None and isinstance(x, Tensor) else None)
    y, spikes, m, b = _run(
        operands, params, run, arriving.batch, arriving.num_steps, first=first, again=again,
        time_first=arriving.time_first, num_input=x.shape[-1],
    )  # fmt: skip
    return y, spikes, ELMState(present(b), m)


def _hidden_first_traced(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, lengths: Tensor | None, run: Run
) -> Scanned:
    """The same inside compiled code."""
    kappa_b, total = params.kappa_b, None
    if isinstance(x, Tensor) and x.requires_grad:  # whose gradient goes through the branches' sums too
        x = x if lengths is None else torch.where(valid(lengths, x), x, 0.0)
        total = discounted_sum(x, kappa_b, lengths)
    frames = x if isinstance(x, Tensor) else None
    operands = _operands(
        params, state, run, params.mlp_weight[0], lengths, kappa_b=kappa_b, frames=frames, bias=params.mlp_bias[0]
    )
    if isinstance(x, SpikeEvents):
        value = None if x.value is None else x.value.to(kappa_b.dtype)
        operands = operands._replace(begin=x.indptr, channel=x.channel, value=value)
    # without a total, the pass adds it up
    first = FirstLayer(params.w_s, params.routing, total, None if state is None else state.b)
    y, m, b = _run_traced(operands, params, run, x.shape, first)
    return y, None, ELMState(b, m)


def _branches_first(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None, *, lengths: Tensor | None, run: Run
) -> Scanned:
    """The filter on the branches, before the pass; inside torch.compile frames stay dense here."""
    dtype, shape, num_input = params.kappa_m.dtype, params.w_s.shape[:-1], x.shape[-1]
    compiling = torch.compiler.is_compiling()
    if lengths is not None:
        x = silent_past(x, lengths) if compiling else without_padding(x, lengths)
    decay, b_0 = params.kappa_b.expand(shape).flatten(), None if state is None else state.b.flatten(1)
    events = x if compiling else Arriving.of(x, dtype, None, run.sparse_input).events
    if isinstance(events, SpikeEvents):
        flat = filtered_inside(events.to(dtype=dtype), branch_table(params, num_input), None, decay, b_0)
    elif isinstance(events, Events):
        flat = filtered_events(events, branch_table(params, num_input), decay, b_0)
    else:
        frames = x.to_dense(dtype) if isinstance(x, SpikeEvents) else x.to(dtype)
        flat = filtered(arrived_at_branches(frames, params, run.lowered).flatten(2), decay, b_0)
    traces = flat.view(*flat.shape[:2], *shape)  # (batch, time, [num_neuron,] num_branch)
    b = last_valid(traces, lengths, flat.new_zeros(x.shape[0], *shape) if state is None else state.b)
    if params.branch_activation is not None:
        traces = BRANCH_ACTIVATIONS[params.branch_activation](traces)
    u, w_m = after_branches(traces, params, run.lowered)
    operands = _operands(params, state, run, w_m, lengths, dense=u)
    if compiling:
        y, m, _ = _run_traced(operands, params, run._replace(recompute_every=None), x.shape, None)
        return y, None, ELMState(b, m)
    y, spikes, m, _ = _run(operands, params, run, *u.shape[:2], in_one_part=True)
    return y, spikes, ELMState(b, m)


def _operands(
    params: ELMParameters,
    state: ELMState | None,
    run_: Run,
    w_m: Tensor,
    lengths: Tensor | None,
    events: Events | None = None,
    *,
    kappa_b: Tensor | None = None,
    frames: Tensor | None = None,
    dense: Tensor | None = None,
    f_0: Tensor | None = None,
    bias: Tensor | None = None,
) -> Operands:
    """The operands of a pass in which this arrives; there is no table yet."""
    layers = zip(params.mlp_weight[1:], params.mlp_bias[1:], strict=True)
    begin, end, channel, value = (None, None, None, None) if events is None else events[:4]
    return Operands(
        begin=begin, end=end, channel=channel, value=value, lengths=lengths, kappa_b=kappa_b, frames=frames,
        table=None, dense=dense, f_0=f_0, bias=bias, m_0=None if state is None else state.m, kappa=params.kappa_m,
        gain=params.gain, w_m=w_m, w_y=params.w_y, b_y=params.b_y,
        threshold=None if run_.rule is None else one_or_all(run_.rule.threshold, params.b_y),
        layers=tuple([tensor for layer in layers for tensor in layer]),
    )  # fmt: skip


def _run(
    operands: Operands,
    params: ELMParameters,
    run_: Run,
    batch: int,
    num_steps: int,
    *,
    first: FirstLayer | None = None,
    again: Again | None = None,
    in_one_part: bool = False,
    time_first: bool = False,
    num_input: int = 0,
    one_step: bool = False,
) -> Outputs:
    """The pass; `first` is what the table is still to be made of."""
    silu = params.activation == "silu"
    part = num_steps if in_one_part or run_.recompute_every is None else min(run_.recompute_every, num_steps)
    tile = tile_for(batch, params.kappa_m)
    surrogate, (slope,) = (0, (0.0,)) if run_.rule is None else in_numbers(run_.rule.surrogate)
    plan = Plan(
        batch, num_steps, silu, tile, part, run_.lowered, surrogate, slope, time_first, run_.last_readout,
        run_.timescales, num_input, one_step,
    )  # fmt: skip
    return run(operands, plan, first, again)


def _run_traced(
    operands: Operands, params: ELMParameters, run_: Run, shape: Sequence[int], first: FirstLayer | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The pass inside compiled code, of input of this shape."""
    return run_as_operator(
        Inputs(operands, first),
        (shape[0], shape[1], shape[-1]),
        silu=params.activation == "silu",
        sparse_input=run_.sparse_input,
        part=run_.recompute_every,
        lowered=run_.lowered,
    )
