"""The pass over a sequence of a LIF layer by CUDA kernels, and its backward pass: ``cuda/alif.cuh`` says what they
compute.
"""

from __future__ import annotations

from functools import lru_cache
from struct import pack, unpack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.alif._learned import Ranges
from elm_neuro.backends.cuda import _alif, _driver
from elm_neuro.backends.cuda._launch import Launch, address
from elm_neuro.backends.cuda._surrogates import slope_words
from elm_neuro.backends.parts._surrogates import in_numbers, of_numbers
from elm_neuro.backends.parts._twice import differentiable_once, saved_of
from elm_neuro.functional import ALIFParameters, Surrogate


class Operands(NamedTuple):
    """The tensors of a pass."""

    lengths: Tensor | None  # (batch,), int64
    current: Tensor  # (batch, time, num_neuron): what the input adds; the fields from here on are differentiated
    bias: Tensor  # (num_neuron,), and so are the next three
    beta: Tensor
    p: Tensor | None
    b: Tensor | None  # None without adaptation
    w_rec: Tensor | None  # (to, from)
    v_0: Tensor | None  # (batch, num_neuron); None, as the next two, for zeros
    a_0: Tensor | None
    s_0: Tensor | None  # (batch, latency + 1, num_neuron)

    def laid_out(self) -> Operands:
        """As the kernels read them."""
        return Operands._make([None if one is None else one.contiguous() for one in self])


class Options(NamedTuple):
    """How a pass runs, but for its sizes."""

    history: int  # latency + 1
    surrogate: tuple[int, tuple[float, ...]]  # in numbers
    blocks: bool  # the gradient of Blocks in place of the loop's
    ranges: tuple[float, ...]  # of beta, p and b where the parameters are as they are learned
    recurrent: bool
    through_recurrence: bool  # whether fed-back spikes pass a gradient, and whether the reset does
    through_reset: bool

    @classmethod
    def of(cls, params: ALIFParameters, ranges: Ranges | None, history: int) -> Options:
        recurrent = params.w_rec is not None
        return cls(
            history, in_numbers(params.surrogate), params.gradient == "blocks",
            () if ranges is None else (*ranges.beta, *ranges.p, *ranges.b), recurrent,
            recurrent and not params.detach_recurrent, not params.detach_reset,
        )  # fmt: skip


class Plan(NamedTuple):
    """A pass of a size."""

    sizes: _alif.Sizes
    slope: Surrogate
    forward: Launch
    backward: Launch
    through_recurrence: bool


@lru_cache(maxsize=256)
def plan_of(options: Options, sizes: tuple[int, int, int], dtype: torch.dtype) -> Plan:
    """The plan of a pass of these numbers of samples, steps and neurons."""
    kind, _ = options.surrogate
    of = _alif.Sizes(dtype, *sizes, options.history, kind, options.blocks, _words(options.ranges))
    backward = _alif.backward(of, options.through_recurrence, options.through_reset)
    forward = _alif.forward(of, options.recurrent)
    return Plan(of, of_numbers(*options.surrogate), forward, backward, options.through_recurrence)


def _words(ranges: tuple[float, ...]) -> tuple[int, ...]:
    """Ranges as the kernels read them: whether there are any, then the bits of float64 numbers."""
    return int(bool(ranges)), *unpack("6q", pack("6d", *(ranges or (0.0,) * 6)))


def run(operands: Operands, options: Options) -> tuple[Tensor, ...]:
    """Spikes of every step and the state after each sample's last."""
    current = operands.current
    plan = plan_of(options, (current.shape[0], current.shape[1], current.shape[2]), current.dtype)
    if torch.is_grad_enabled():
        _driver.expect(current.device, *plan.backward.kernels)
    found: tuple[Tensor, ...] = _Pass.apply(plan, *operands)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return found


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        o = Operands._make(tensors).laid_out()
        spikes, v, a, s, kept = forward(o, plan, save=any(ctx.needs_input_grad))
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        # neither the current nor what adds up with it is read again
        ctx.save_for_backward(spikes, kept, o.lengths, o.beta, o.p, o.b, o.w_rec, o.v_0, o.s_0)
        return spikes, v, a, s

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        spikes, kept, lengths, beta, p, b, w_rec, v_0, s_0 = saved_of(ctx)
        o = Operands(lengths, spikes, beta, beta, p, b, w_rec, v_0, v_0, s_0)
        return None, None, *backward(o, ctx.plan, spikes, kept, grads)


def forward(o: Operands, plan: Plan, *, save: bool) -> tuple[Any, ...]:
    """Spikes, state and, with `save`, what the backward pass reads, of operands that are laid out."""
    batch, _, num_neuron = o.current.shape
    history, empty, s_0 = plan.sizes.history, o.current.new_empty, o.s_0
    # step k is left without input by the spikes s_0[k + 1:]
    blocked = None
    if s_0 is not None and history > 1:
        blocked = s_0[:, 1:].flip(1).cummax(1).values.flip(1).clamp_(min=0).contiguous()
    by_sender = None if o.w_rec is None else o.w_rec.t().contiguous()
    spikes, v, a = torch.empty_like(o.current), empty(batch, num_neuron), empty(batch, num_neuron)
    s = empty(batch, history, num_neuron)
    kept = empty(num_kept(o.b), *o.current.shape) if save else None
    addresses = map(
        address,
        (o.lengths, o.current, o.bias, o.beta, o.p, o.b, by_sender, o.v_0, o.a_0, s_0, blocked, spikes, v, a, s),
    )
    plan.forward(_driver.launcher().queue(o.current.device), *addresses, *_parts(kept))
    return spikes, v, a, s, kept


def num_kept(b: Tensor | None) -> int:
    """Of how many numbers a step of a neuron is kept: membrane, what the input is multiplied by, adaptation."""
    return 2 if b is None else 3


def backward(
    o: Operands, plan: Plan, spikes: Tensor, kept: Tensor, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `current` on; neither that nor `bias` nor `a_0` is read, but where they are."""
    batch, num_steps, num_neuron = spikes.shape
    of_spikes, *of_state = grads
    of_state = [None if grad is None else grad.contiguous() for grad in of_state]
    fed_back, s_0 = o.w_rec if plan.through_recurrence else None, o.s_0
    of_current, sums = torch.empty_like(spikes), spikes.new_empty(batch, 4, num_neuron)
    of_v = of_a = of_s = None
    if o.v_0 is not None and s_0 is not None:
        of_v, of_a, of_s = torch.empty_like(o.v_0), torch.empty_like(o.v_0), torch.empty_like(s_0)
    plan.backward(
        _driver.launcher().queue(spikes.device),
        *map(address, (o.lengths, o.beta, o.p, o.b, fed_back, o.v_0, spikes)), *_parts(kept),
        *map(address, (of_spikes, *of_state, of_current, of_v, of_a, of_s, sums)),
        *((0, 0, 0) if of_spikes is None else of_spikes.stride()), *slope_words(plan.slope),
    )  # fmt: skip
    of_beta, of_p, of_b, of_bias = sums.sum(0).unbind()
    of_w_rec = None if o.w_rec is None else _of_w_rec(of_current, spikes, s_0, plan.sizes.history)
    if fed_back is not None and of_s is not None:
        first = min(plan.sizes.history, num_steps)
        of_s[:, :first] += of_current[:, :first] @ fed_back
    adaptive = o.b is not None
    return (
        of_current, of_bias, of_beta, of_p if adaptive else None, of_b if adaptive else None, of_w_rec, of_v, of_a, of_s
    )  # fmt: skip


def _parts(kept: Tensor | None) -> tuple[int, int, int]:
    """Addresses of membrane, adaptation and what the input is multiplied by; 0 for those that are not there."""
    if kept is None:
        return 0, 0, 0
    begin, size = kept.data_ptr(), kept.stride(0) * kept.element_size()
    return begin, 0 if kept.shape[0] == 2 else begin + 2 * size, begin + size


def _of_w_rec(of_current: Tensor, spikes: Tensor, s_0: Tensor | None, history: int) -> Tensor:
    """Gradient of the recurrent weights: the spikes of history steps before each step, those of the state before the
    first ones.
    """
    found = _outer(of_current[:, history:], spikes[:, :-history])
    return found if s_0 is None else found + _outer(of_current[:, :history], s_0[:, : spikes.shape[1]])


def _outer(to: Tensor, sent: Tensor) -> Tensor:
    """Sum over samples and steps of outer products: sample by sample without a copy, where their sums take no more room
    than a copy would.
    """
    if to.shape[1] >= to.shape[2]:
        return torch.bmm(to.mT, sent).sum(0)
    return to.flatten(0, 1).t() @ sent.flatten(0, 1)
