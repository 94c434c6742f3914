"""The neuron over a sequence on an NVIDIA GPU with its hand-written backward pass, in few launches: what arrives, the
memory recurrence, the readout.

Non-finite numbers pass through to the output as in plain torch; nothing here waits for the device to find them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _bytes, _driver
from elm_neuro.backends.cuda._input import Arranged, Events, arrange, gather, gather_inputs, rows_of
from elm_neuro.backends.cuda._launch import address
from elm_neuro.backends.cuda._weights import synapses_by_input
from elm_neuro.backends.elm._again import Plain
from elm_neuro.backends.elm._cuda_plan import BYTES, EVENTS, FRAMES, INTEGRATED, Form, Plan, plan
from elm_neuro.backends.elm._torch import matvec
from elm_neuro.backends.parts._bytes import holds_bytes
from elm_neuro.backends.parts._lengths import cut_at
from elm_neuro.backends.parts._twice import differentiable_gradients, differentiable_once
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import branch_matrix


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

    kept: Tensor  # the parts of :class:`elm_neuro.backends.elm._cuda_plan.Kept`
    table: Tensor | None  # which the gradient of frames goes through
    order: Tensor | None  # of Arranged
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
            of_x = ctx.needs_input_grad[4]
            ctx.save_for_backward(*tensors, *(saved if of_x else saved._replace(table=None)))
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
    o, at, of = operands, addresses(operands), plan_of(operands, options)
    device, empty = o.kappa.device, o.kappa.new_empty
    buffer = empty(of.kept[save].numbers)
    kept = of.kept[save].at(buffer.data_ptr())
    v, table, arranged, f_0, b = o.v, None, None, None, empty(of.shape_of_b)
    if v is None:
        v, table, arranged = _arriving(o, at, options, of, kept.total)
        of.branch_traces(device, at.lengths, at.routing, at.w_s, kept.total, at.kappa_b, at.b_0, b.data_ptr())
        if o.b_0 is not None:
            f_0 = matvec(o.w1[..., : of.sizes.num_branch], o.b_0).contiguous()
    m, packed = empty(of.shape_of_m), None
    if of.recurrence.num_packed:
        packed = empty(of.recurrence.num_packed)
    of.recurrence(
        device, at.w1, at.w2, address(packed), at.lengths, 0 if v is o.v else at.kappa_b, v.data_ptr(), address(f_0),
        at.m_0, at.b1, at.b2, at.kappa, at.gain, kept.memory, kept.tanhs, kept.hidden, m.data_ptr(),
    )  # fmt: skip
    if of.own_readout:
        y = empty(of.shape_of_y)
        of.readout(device, at.lengths, kept.memory, at.w_y, at.b_y, y.data_ptr())
    else:
        y = _readout(_memory(of, buffer, save=save), o)
    order, ordered = (None, None) if arranged is None else arranged
    return Outputs(y, b, m), Saved(buffer, table, order, ordered)


def backward(
    operands: Operands, saved: Saved, options: Options, grads: tuple[Tensor | None, ...], *, of_x: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `x` on, from those of the outputs; with `of_x` also of the frames."""
    o, at, of, (grad_y, grad_b, grad_m) = operands, addresses(operands), plan_of(operands, options), grads
    device, empty, back = o.kappa.device, o.kappa.new_empty, of.backward
    _driver.launcher().enter(device)
    kept, buffer = of.kept[True].at(saved.kept.data_ptr()), empty(back.flows.numbers)
    flows = back.flows.at(buffer.data_ptr())
    grad_memory = product_y = of_b_y = None
    if grad_y is not None and of.own_readout:
        stride = grad_y.stride()
        back.readout(
            device, *stride[:2], stride[2] if len(stride) == 4 else 0, stride[-1], at.lengths, kept.memory, at.w_y,
            grad_y.data_ptr(), flows.grad_memory, flows.product_y,
        )  # fmt: skip
    elif grad_y is not None:
        grad_memory, product_y, of_b_y = _through_readout(grad_y, _memory(of, saved.kept, save=True), o, back.groups)
    grad_m = None if grad_m is None else grad_m.contiguous()
    grad_b = None if grad_b is None or o.w_s is None else grad_b.contiguous()
    dv = empty(of.num_row, of.num_neuron * of.first) if o.v is None else torch.empty_like(o.v)
    num_memory, first, num_branch = of.num_memory, of.first, of.sizes.num_branch
    dz_first = grad_m_0 = grad_f_0 = None
    if o.m_0 is not None:
        dz_first, grad_m_0 = empty(of.num_neuron, of.form.batch, first), torch.empty_like(o.m_0)
    if o.b_0 is not None and o.v is None:
        grad_f_0 = empty(of.form.batch, *of.neurons, first)
    back.recurrence(
        device, at.w1, at.w2, flows.packed, at.lengths, 0 if o.v is not None else at.kappa_b, at.m_0, at.kappa, at.gain,
        kept.memory, kept.tanhs, kept.hidden,
        0 if grad_y is None else flows.grad_memory or address(grad_memory), address(grad_m), flows.dq, flows.dz,
        address(dz_first), dv.data_ptr(), flows.post, address(grad_f_0), address(grad_m_0), flows.sums,
    )  # fmt: skip
    product_m = product_h = None
    hidden = flows.post or kept.hidden
    if back.own_outer:
        back.outer(device, flows.dz, kept.memory, flows.dq, hidden, flows.product_m, flows.product_h)
    else:
        product_m, product_h = _products(of, saved.kept, buffer)
    grad_table = None if o.w_s is None else _table_gradient(o, saved, dv, options)
    of_w_s, of_w1 = None if o.w_s is None else torch.empty_like(o.w_s), torch.empty_like(o.w1)
    of_w2 = None if o.w2 is None else torch.empty_like(o.w2)
    sums = empty(*of.neurons, 3 * num_memory + first)
    of_w_y = None if grad_y is None else torch.empty_like(o.w_y)
    if grad_y is not None and of.own_readout:
        of_b_y = torch.empty_like(o.b_y)
    (back.gradients_without_readout if grad_y is None else back.gradients)(
        device, at.routing, at.w_s, at.w1, at.kappa, address(grad_table), address(grad_b), kept.total, flows.sums,
        flows.product_m or address(product_m), flows.product_h or address(product_h),
        0 if grad_y is None else flows.product_y or address(product_y), address(of_w_s), of_w1.data_ptr(),
        sums.data_ptr(), address(of_w2), address(of_w_y), address(of_b_y) if of.own_readout else 0,
    )  # fmt: skip
    if o.m_0 is not None and dz_first is not None:
        m_0 = o.m_0.view(of.form.batch, -1, num_memory).transpose(0, 1)
        product = (dz_first.mT @ m_0).view(*o.w1.shape[:-1], num_memory)
        of_w1[..., num_branch:] += product * o.kappa.unsqueeze(-2)
    grad_b_0 = None
    if o.b_0 is not None and grad_f_0 is not None:
        grad_b_0, of_start = _through_start(o.b_0, grad_f_0, o.w1[..., :num_branch])
        of_w1[..., :num_branch] += of_start
        if grad_b is not None:
            age = options.num_steps if o.lengths is None else o.lengths.view(-1, *[1] * (grad_b.ndim - 1))
            grad_b_0 += o.kappa_b**age * grad_b
    of_kappa, of_gain, of_b2, of_b1 = sums.split([num_memory, num_memory, num_memory, first], -1)
    return (
        _frames_gradient(o, saved, dv, grad_b, options, of) if of_x else None,
        dv if o.v is not None else None,
        of_w_s,
        of_w1,
        None if o.b1 is None else of_b1,
        of_kappa,
        of_gain,
        of_w2,
        None if o.b2 is None else of_b2,
        of_w_y,
        of_b_y,
        grad_b_0,
        grad_m_0,
    )


def plan_of(o: Operands, options: Options) -> Plan:
    """What the sizes of a pass decide."""
    x, w_s, routing, shape = o.x, o.w_s, o.routing, o.kappa.shape
    if x is not None:
        arrives, batch = BYTES if holds_bytes(x) else FRAMES, x.shape[0]
    elif o.v is not None:
        arrives, batch = INTEGRATED, o.v.shape[0]
    else:
        arrives, batch = EVENTS, (_there(o.begin).shape[0] - 1) // options.num_steps
    form = Form(
        o.kappa.dtype, o.kappa.device, arrives, batch, options.num_steps, options.num_input,
        x is not None and x.ndim == 4, None if w_s is None else w_s.shape,
        None if routing is None else routing.shape, o.w1.shape, shape, o.w_y.shape, o.w2 is not None, options.silu,
    )  # fmt: skip
    return plan(form)


def addresses(operands: Operands) -> Any:
    """:class:`Operands` of addresses, 0 for what is not there."""
    return Operands._make([0 if tensor is None else tensor.data_ptr() for tensor in operands])


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


def _arriving(o: Operands, at: Any, options: Options, of: Plan, total: int) -> tuple[Tensor, Tensor, Arranged | None]:
    """What arrives at the first layer's outputs, and the table that it comes by; the input's discounted sum goes to
    `total`.
    """
    device, sizes = o.kappa.device, of.sizes
    table = o.kappa.new_empty(of.shape_of_table)
    begin, slot = (None, None) if o.routing is None else synapses_by_input(o.routing, options.num_input)
    of.table(device, address(begin), address(slot), at.w_s, at.w1, table.data_ptr())
    if of.form.arrives == EVENTS:
        events = Events(_there(o.begin), _there(o.channel), o.value)
        extent = of.form.batch, options.num_steps, options.num_input
        arranged = arrange(events, extent, o.kappa_b, o.lengths, total)
        return gather(table, events, of.num_row), table, arranged
    x = _there(o.x)
    own = (sizes.num_neuron, sizes.num_input, sizes.first)
    if of.form.arrives == BYTES:
        _bytes.discounted_sum(x, o.kappa_b, o.lengths, total)
        return _bytes.multiply(x, table.view(own) if x.ndim == 4 else table), table, None
    rows = rows_of(x)
    of.discounted_sum(device, *rows.stride()[:2], at.lengths, at.kappa_b, rows.data_ptr(), total)
    x, factor = _lowered(options, x, table)
    if x.ndim == 4:
        v = torch.einsum("btni,nif->btnf", x, factor.view(own)).contiguous()
    else:
        v = torch.mm(x.reshape(-1, sizes.num_input), factor)
    return v if v.dtype == table.dtype else v.to(table.dtype), table, None


def _memory(of: Plan, kept: Tensor, *, save: bool) -> Tensor:
    """The memory of every step."""
    return of.kept[save].part(kept, "memory", of.num_neuron, of.form.batch, of.form.num_steps, of.num_memory)


def _readout(memory: Tensor, o: Operands) -> Tensor:
    """Output of every step, (batch, time, [num_neuron,] output_size)."""
    num_neuron, batch, num_steps, num_memory = memory.shape
    if o.w_y.ndim == 2:
        return cut_at(o.lengths, torch.addmm(o.b_y, memory.view(-1, num_memory), o.w_y.mT).view(batch, num_steps, -1))
    flat = torch.baddbmm(o.b_y.unsqueeze(1), memory.view(num_neuron, -1, num_memory), o.w_y.mT)
    return cut_at(o.lengths, flat.view(num_neuron, batch, num_steps, -1).permute(1, 2, 0, 3))


def _through_readout(grad_y: Tensor, memory: Tensor, o: Operands, num_group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the memory, (num_neuron, batch, time, num_memory), that of the weight as products to be added up, and
    of the bias.
    """
    grad_y = cut_at(o.lengths, grad_y)
    batch, num_steps, num_output = grad_y.shape[0], grad_y.shape[1], grad_y.shape[-1]
    if o.w_y.ndim == 2:
        flat = grad_y.contiguous().view(1, -1, num_output)
        grad_memory = (flat[0] @ o.w_y).view(1, batch, num_steps, -1)
    else:
        flat = grad_y.permute(2, 0, 1, 3).contiguous().view(grad_y.shape[2], -1, num_output)
        grad_memory = torch.bmm(flat, o.w_y).view(flat.shape[0], batch, num_steps, -1)
    return grad_memory, _outer(flat, memory, num_group), flat.sum(1).view(o.b_y.shape)


def _products(of: Plan, kept: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of the layers' weights, to be added up."""
    rows, back = (of.num_neuron, of.num_row), of.backward
    dz, memory = (
        back.flows.part(buffer, "dz", *rows, of.first),
        of.kept[True].part(kept, "memory", *rows, of.num_memory),
    )
    product_m = _outer(dz, memory, back.groups)
    if not of.form.deep:
        return product_m, None
    dq = back.flows.part(buffer, "dq", *rows, of.num_memory)
    room, where, name = (back.flows, buffer, "post") if of.form.silu else (of.kept[True], kept, "hidden")
    return product_m, _outer(dq, room.part(where, name, *rows, of.first), back.groups)


def _outer(out: Tensor, inp: Tensor, num_group: int) -> Tensor:
    """Product over some samples' steps each of `inp`, (num_neuron, batch, time, in), and `out`, whose axes may be
    merged: (num_neuron * group, out, in). One product over all steps would keep few multiprocessors busy.
    """
    shape = inp.shape[0] * num_group, -1
    return torch.bmm(out.reshape(*shape, out.shape[-1]).mT, inp.reshape(*shape, inp.shape[-1]))


def _table_gradient(o: Operands, saved: Saved, dv: Tensor, options: Options) -> Tensor:
    """Of the table, in parts to be added up; `dv` is (batch * time, num_neuron * first)."""
    if o.x is None:
        batch = dv.shape[0] // options.num_steps
        return gather_inputs(dv, Arranged(_there(saved.order), saved.ordered), batch, options.num_input)
    if holds_bytes(o.x):
        return _bytes.multiply_inputs(o.x, dv.view(*o.x.shape[:-1], -1))
    x, flow = _lowered(options, o.x, dv)
    if x.ndim == 4:
        grad = torch.einsum("btni,btnf->nif", x, flow.view(*x.shape[:-1], -1)).contiguous()
    else:
        grad = torch.mm(x.reshape(dv.shape[0], -1).t(), flow)
    return grad if grad.dtype == dv.dtype else grad.to(dv.dtype)


def _frames_gradient(
    o: Operands, saved: Saved, dv: Tensor, grad_b: Tensor | None, options: Options, of: Plan
) -> Tensor | None:
    if o.x is None:
        return None
    flow, table = _lowered(options, dv, _there(saved.table))
    if o.x.ndim == 4:
        own = table.view(of.num_neuron, options.num_input, of.first)
        grad = torch.einsum("btnf,nif->btni", flow.view(*o.x.shape[:-1], -1), own)
    else:
        grad = (flow @ table.mT).view(o.x.shape)
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
