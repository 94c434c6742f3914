"""The neuron over a sequence on an NVIDIA GPU with its hand-written backward pass, in few launches: what arrives, the
memory recurrence, the readout.

Non-finite numbers pass through to the output as in plain torch; nothing here waits for the device to find them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _bytes, _driver
from elm_neuro.backends.cuda._input import Arranged, Events, arrange, discounted_sum, gather, gather_inputs
from elm_neuro.backends.cuda._memory import Flows, Records, Recurrence, run_backward, run_forward
from elm_neuro.backends.cuda._readout import MAX_OUTPUT, readout, readout_backward
from elm_neuro.backends.cuda._weights import Products, Sizes, branch_traces, first_table, gradients, outer
from elm_neuro.backends.elm._again import Plain
from elm_neuro.backends.elm._torch import matvec
from elm_neuro.backends.parts._bytes import BYTES
from elm_neuro.backends.parts._lengths import cut_at
from elm_neuro.backends.parts._twice import differentiable_gradients, differentiable_once
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import branch_matrix

MAX_WORK = 2**24  # multiply-adds of a product over all steps; beyond them cuBLAS
MAX_GROUPS = 32  # of samples, whose products over their steps are computed side by side
ENOUGH_GROUPS = 132  # with the neurons of a population: as many as a large GPU has multiprocessors


class Operands(NamedTuple):
    """All tensors of a pass. What arrives is the filtered sum of events or frames, or `v` as it is."""

    lengths: Tensor | None  # valid steps of each sample, (batch,), int64
    begin: Tensor | None  # of Events; one by one, because torch watches over every tensor that is kept
    channel: Tensor | None
    value: Tensor | None
    kappa_b: Tensor  # decay of what has arrived, ()
    routing: Tensor | None  # as in ELMParameters
    x: Tensor | None  # (batch, time, [num_neuron,] num_input), or bytes; the fields from here on are differentiated
    v: Tensor | None  # (batch, time, [num_neuron,] first): integrated already, with the first layer's bias
    w_s: Tensor | None  # ([num_neuron,] num_branch, num_synapse); None with `v`
    w1: Tensor  # of the first layer, ([num_neuron,] first, num_branch + num_memory); with `v` the memory's part alone
    b1: Tensor | None  # None with `v`
    kappa: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor
    w2: Tensor | None  # of the layer after it, ([num_neuron,] num_memory, first); None without hidden layers
    b2: Tensor | None
    w_y: Tensor  # ([num_neuron,] output_size, num_memory)
    b_y: Tensor
    b_0: Tensor | None  # state before the first step; None for zeros, b_0 also with `v`
    m_0: Tensor | None


FIRST_DIFFERENTIATED = Operands._fields.index("x")
KAPPA_B = Operands._fields.index("kappa_b")


class Options(NamedTuple):
    """How a pass runs."""

    num_steps: int
    num_input: int
    silu: bool
    lowered: torch.dtype | None = None  # of the product with `x`, under autocast


class Saved(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    memory: Tensor
    tanhs: Tensor | None
    hidden: Tensor | None
    f_0: Tensor | None
    v: Tensor | None  # its shape alone matters where it is computed here
    table: Tensor | None
    total: Tensor | None  # discounted sum of the input
    first: Tensor | None  # of Arranged
    row: Tensor | None
    ordered: Tensor | None


class Outputs(NamedTuple):
    y: Tensor  # (batch, time, [num_neuron,] output_size)
    b: Tensor  # (batch, [num_neuron,] num_branch); with `v` empty
    m: Tensor  # (batch, [num_neuron,] num_memory)


def run(operands: Operands, options: Options, events: SpikeEvents | None) -> Outputs:
    """Readout of every step and the state after each sample's last; `events` are what begin, channel and value are
    of.
    """
    constants, differentiated = operands[:FIRST_DIFFERENTIATED], operands[FIRST_DIFFERENTIATED:]
    # the constants as one argument: autograd asks each of its arguments more than once
    return Outputs._make(_Pass.apply(options, events, torch.is_grad_enabled(), constants, *differentiated))  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _Pass(Function):
    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        events: SpikeEvents | None,
        recorded: bool,
        constants: tuple[Tensor | None, ...],
        *differentiated: Tensor | None,
    ) -> tuple[Tensor, ...]:
        tensors = constants + differentiated
        save = recorded and any(ctx.needs_input_grad)
        outputs, saved = forward(laid_out(Operands._make(tensors)), options, save=save)
        ctx.options, ctx.events = options, events
        ctx.set_materialize_grads(False)
        if save:
            ctx.save_for_backward(*tensors, *saved)
        ctx.differentiates_again = differentiated[0] is not None or events is not None
        if not ctx.differentiates_again:
            ctx.mark_non_differentiable(outputs.b)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and ctx.differentiates_again:
            operands = Operands._make(ctx.saved_tensors[: len(Operands._fields)])
            found = _differentiable(operands, ctx.options, ctx.events, ctx.needs_input_grad[4:], grads)
            return (None, None, None, None, *found)
        return _backward(ctx, *grads)


@differentiable_once
def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    operands, saved = Operands._make(tensors[: len(Operands._fields)]), Saved._make(tensors[len(Operands._fields) :])
    found = backward(laid_out(operands), saved, ctx.options, grads, of_x=ctx.needs_input_grad[4])
    return (None, None, None, None, *found)


def forward(operands: Operands, options: Options, *, save: bool) -> tuple[Outputs, Saved]:
    """The pass, of operands that are :func:`laid_out`; with `save` also what the backward pass reads."""
    o = operands
    v, b, f_0, table, total, arranged = o.v, None, None, None, None, None
    if v is None:
        sizes = _sizes(o, options)
        v, table, total, arranged = _arriving(o, options, sizes)
        b = branch_traces(sizes, _there(o.w_s), o.routing, total, o.kappa_b, o.b_0, o.lengths, options.num_steps)
        f_0 = None if o.b_0 is None else matvec(o.w1[..., : sizes.num_branch], o.b_0).contiguous()
    records = run_forward(_recurrence(o, v, f_0), silu=options.silu, save=save)
    y = _readout(records.memory, o)
    arrangement = (None, None, None) if arranged is None else arranged
    saved = Saved(records.memory, records.tanhs, records.hidden, f_0, v, table, total, *arrangement)
    return Outputs(y, y.new_empty(0) if b is None else b, records.m_last), saved


def backward(
    operands: Operands, saved: Saved, options: Options, grads: tuple[Tensor | None, ...], *, of_x: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `x` on, from those of the outputs; with `of_x` also of the frames."""
    o, (grad_y, grad_b, grad_m) = operands, grads
    _driver.launcher().enter(o.kappa.device)
    batch = saved.memory.shape[1]
    grad_memory, product_y, of_b_y = _through_readout(grad_y, saved.memory, o)
    records = Records(saved.memory, saved.memory, saved.tanhs, saved.hidden)
    grad_m = None if grad_m is None else grad_m.contiguous()
    flows = run_backward(_recurrence(o, _there(saved.v), saved.f_0), records, grad_memory, grad_m, silu=options.silu)
    grad_b = None if grad_b is None or o.w_s is None else grad_b.contiguous()
    found = gradients(
        _sizes(o, options), o.w_s, o.routing, o.w1, o.kappa, _products(flows, saved.memory, product_y),
        grad_table=None if o.w_s is None else _table_gradient(o, saved, flows.v, options),
        grad_b=grad_b, total=saved.total, batch=batch,
    )  # fmt: skip
    num_memory, num_branch = o.kappa.shape[-1], 0 if o.w_s is None else o.w_s.shape[-2]
    if o.m_0 is not None and flows.dz_first is not None:
        m_0 = o.m_0.view(batch, -1, num_memory).transpose(0, 1)
        product = (flows.dz_first.mT @ m_0).view(*o.w1.shape[:-1], num_memory)
        found.w1[..., num_branch:] += product * o.kappa.unsqueeze(-2)
    grad_b_0 = None
    if o.b_0 is not None and flows.f_0 is not None:
        grad_b_0, of_w1 = _through_start(o.b_0, flows.f_0, o.w1[..., :num_branch])
        found.w1[..., :num_branch] += of_w1
        if grad_b is not None:
            age = options.num_steps if o.lengths is None else o.lengths.view(-1, *[1] * (grad_b.ndim - 1))
            grad_b_0 += o.kappa_b**age * grad_b
    of_kappa, of_gain, of_b2, of_b1 = found.sums.split([num_memory, num_memory, num_memory, o.w1.shape[-2]], -1)
    return (
        _frames_gradient(o, saved, flows.v, grad_b, options) if of_x else None,
        flows.v if o.v is not None else None,
        found.w_s,
        found.w1,
        None if o.b1 is None else of_b1,
        of_kappa,
        of_gain,
        found.w2,
        None if o.b2 is None else of_b2,
        found.w_y,
        of_b_y if found.b_y is None else found.b_y,
        grad_b_0,
        flows.m_0,
    )


def _differentiable(
    o: Operands,
    options: Options,
    events: SpikeEvents | None,
    needed: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `x` on with a graph of their own: the reference's, run again."""
    activation = "silu" if options.silu else "relu"
    plain = Plain(events, o.lengths, activation, None, None, o.kappa.dtype)

    def again(x: Any, v: None, w_s: Any, w1: Any, b1: Any, kappa: Any, gain: Any, w2: Any, b2: Any, *rest: Any) -> Any:
        w_y, b_y, b_0, m_0 = rest
        layers = (w1, b1) if w2 is None else (w1, w2, b1, b2)
        return plain.run(x, b_0, m_0, w_s, o.routing, o.kappa_b, kappa, gain, w_y, b_y, *layers)

    return differentiable_gradients(again, o[FIRST_DIFFERENTIATED:], needed, grads)


def laid_out(operands: Operands) -> Operands:
    """The operands as the kernels read them: all whole but `x`, and `v`, whose rows are."""
    whole = Operands._make([tensor if tensor is None else tensor.contiguous() for tensor in operands])
    return whole if operands.x is None else whole._replace(x=operands.x)


def _sizes(o: Operands, options: Options) -> Sizes:
    if o.w_s is None:
        num_neuron, (first, num_memory) = o.w1.shape[0] if o.w1.ndim == 3 else 1, o.w1.shape[-2:]
        return Sizes(num_neuron, 0, 0, 0, first, num_memory, 0, 0, 0)
    return Sizes.of(o.w_s, o.routing, o.w1, options.num_input, own_input=o.x is not None and o.x.ndim == 4)


def _recurrence(o: Operands, v: Tensor, f_0: Tensor | None) -> Recurrence:
    kappa_b = None if o.v is not None else o.kappa_b
    return Recurrence(o.lengths, kappa_b, v, f_0, o.b1, o.m_0, o.kappa, o.gain, o.w1, o.w2, o.b2)


def _arriving(o: Operands, options: Options, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor, Arranged | None]:
    """What arrives at the first layer's outputs, the table that it comes by, and the input's discounted sum."""
    table = first_table(sizes, _there(o.w_s), o.routing, o.w1)
    neurons = o.kappa.shape[:-1]
    if o.x is not None and o.x.dtype in BYTES:
        total = _bytes.discounted_sum(o.x, o.kappa_b, o.lengths)
        own = o.x.ndim == 4
        v = _bytes.multiply(o.x, table.view(sizes.num_neuron, sizes.num_input, sizes.first) if own else table)
        return v.view(*o.x.shape[:2], *neurons, sizes.first), table, total, None
    if o.x is not None:
        total = discounted_sum(o.x, o.kappa_b, o.lengths)
        x, factor = _lowered(options, o.x, table)
        if x.ndim == 4:
            v = torch.einsum("btni,nif->btnf", x, factor.view(sizes.num_neuron, sizes.num_input, sizes.first))
        else:
            v = torch.mm(x.reshape(-1, sizes.num_input), factor).view(*x.shape[:2], *neurons, sizes.first)
        return v.to(table.dtype).contiguous(), table, total, None
    events = Events(_there(o.begin), _there(o.channel), o.value)
    num_row = events.begin.shape[0] - 1
    shape = num_row // options.num_steps, options.num_steps, options.num_input
    arranged, total = arrange(events, shape, o.kappa_b, o.lengths)
    v = gather(table, events, num_row).view(*shape[:2], *neurons, sizes.first)
    return v, table, total, arranged


def _readout(memory: Tensor, o: Operands) -> Tensor:
    """Output of every step, (batch, time, [num_neuron,] output_size)."""
    num_neuron, batch, num_steps, num_memory = memory.shape
    if o.w_y.shape[-2] <= MAX_OUTPUT:
        return readout(memory, o.w_y, o.b_y, o.lengths)
    if o.w_y.ndim == 2:
        return cut_at(o.lengths, torch.addmm(o.b_y, memory.view(-1, num_memory), o.w_y.mT).view(batch, num_steps, -1))
    flat = torch.baddbmm(o.b_y.unsqueeze(1), memory.view(num_neuron, -1, num_memory), o.w_y.mT)
    return cut_at(o.lengths, flat.view(num_neuron, batch, num_steps, -1).permute(1, 2, 0, 3))


def _through_readout(
    grad_y: Tensor | None, memory: Tensor, o: Operands
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradient of the memory, (num_neuron, batch, time, num_memory), that of the weight as products to be added up, and
    of the bias where they do not hold it.
    """
    if grad_y is None:
        return None, None, None
    if o.w_y.shape[-2] <= MAX_OUTPUT:
        return *readout_backward(grad_y, memory, o.w_y, o.lengths), None
    grad_y = cut_at(o.lengths, grad_y)
    batch, num_steps, num_output = grad_y.shape[0], grad_y.shape[1], grad_y.shape[-1]
    if o.w_y.ndim == 2:
        flat = grad_y.contiguous().view(1, -1, num_output)
        grad_memory = (flat[0] @ o.w_y).view(1, batch, num_steps, -1)
    else:
        flat = grad_y.permute(2, 0, 1, 3).contiguous().view(grad_y.shape[2], -1, num_output)
        grad_memory = torch.bmm(flat, o.w_y).view(flat.shape[0], batch, num_steps, -1)
    return grad_memory, _outer(flat, memory), flat.sum(1).view(o.b_y.shape)


def _products(flows: Flows, memory: Tensor, of_y: Tensor | None) -> Products:
    """Weight gradients, to be added up."""
    dz, dq = flows.dz, flows.dq
    if memory.numel() * dz.shape[-1] <= MAX_WORK:
        return Products(*outer(dz, memory, dq, None if dq is None else flows.hidden), of_y, flows.sums)
    return Products(_outer(dz, memory), None if dq is None else _outer(dq, _there(flows.hidden)), of_y, flows.sums)


def _outer(out: Tensor, inp: Tensor) -> Tensor:
    """Product over some samples' steps each of `inp`, (num_neuron, batch, time, in), and `out`, whose axes may be
    merged: (num_neuron * group, out, in). One product over all steps would keep few multiprocessors busy.
    """
    num_neuron, batch = inp.shape[:2]
    shape = num_neuron * _groups(num_neuron, batch), -1
    return torch.bmm(out.view(*shape, out.shape[-1]).mT, inp.view(*shape, inp.shape[-1]))


@lru_cache(maxsize=256)
def _groups(num_neuron: int, batch: int) -> int:
    most = MAX_GROUPS if num_neuron == 1 else max(1, min(MAX_GROUPS, ENOUGH_GROUPS // num_neuron))
    return max(group for group in range(1, min(most, batch) + 1) if batch % group == 0)


def _table_gradient(o: Operands, saved: Saved, dv: Tensor, options: Options) -> Tensor:
    """Of the table, in parts to be added up."""
    if o.x is None:
        arranged = Arranged(_there(saved.first), _there(saved.row), saved.ordered)
        return gather_inputs(dv.flatten(0, 1).flatten(1), arranged)
    if o.x.dtype in BYTES:
        return _bytes.multiply_inputs(o.x, dv if o.x.ndim == 4 else dv.flatten(2))
    x, flow = _lowered(options, o.x, dv)
    if x.ndim == 4:
        return torch.einsum("btni,btnf->nif", x, flow).to(dv.dtype).contiguous().unsqueeze(0)
    rows = x.shape[0] * x.shape[1]
    return torch.mm(x.reshape(rows, -1).t(), flow.view(rows, -1)).to(dv.dtype).unsqueeze(0)


def _frames_gradient(o: Operands, saved: Saved, dv: Tensor, grad_b: Tensor | None, options: Options) -> Tensor | None:
    if o.x is None:
        return None
    flow, table = _lowered(options, dv, _there(saved.table))
    if o.x.ndim == 4:
        sizes = _sizes(o, options)
        grad = torch.einsum("btnf,nif->btni", flow, table.view(sizes.num_neuron, sizes.num_input, sizes.first))
    else:
        grad = flow.flatten(2) @ table.mT
    grad = grad.to(dv.dtype)
    if grad_b is None or o.w_s is None:
        return grad
    if o.routing is None:
        of_total = grad_b * o.w_s.squeeze(-1)
    else:
        of_total = torch.einsum("b...j,...ji->b...i", grad_b, branch_matrix(o.w_s, o.routing, options.num_input))
    if of_total.ndim == 3 and o.x.ndim == 3:
        of_total = of_total.sum(1)
    step = torch.arange(options.num_steps, device=grad.device)
    age = (options.num_steps if o.lengths is None else o.lengths.unsqueeze(1)) - 1 - step
    discount = (o.kappa_b.double() ** age.clamp(min=0) * (age >= 0)).to(grad.dtype)
    return grad + discount.view(-1, options.num_steps, *[1] * (grad.ndim - 2)) * of_total.unsqueeze(1)


def _through_start(b_0: Tensor, grad_f_0: Tensor, w1_s: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the traces before the first step and of the weight that they pass."""
    if w1_s.ndim == 2:
        return grad_f_0 @ w1_s, grad_f_0.mT @ b_0
    return torch.einsum("bnf,nfj->bnj", grad_f_0, w1_s), torch.einsum("bnf,bnj->nfj", grad_f_0, b_0)


def _lowered(options: Options, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors if options.lowered is None else tuple(tensor.to(options.lowered) for tensor in tensors)


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("a tensor of the pass is missing")
    return tensor
