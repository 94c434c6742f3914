"""The neuron over a sequence on an NVIDIA GPU with its hand-written backward pass, in few launches: what arrives, the
memory recurrence, the readout.

Non-finite numbers pass through to the output as in plain torch; nothing here waits for the device to find them.
"""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver, _frames
from elm_neuro.backends.cuda._input import Arranged, Events, arrange, gather_inputs, rows_of
from elm_neuro.backends.cuda._launch import address
from elm_neuro.backends.cuda._room import Room
from elm_neuro.backends.cuda._weights import synapses_by_input
from elm_neuro.backends.elm import _cuda_products as products
from elm_neuro.backends.elm._again import Plain
from elm_neuro.backends.elm._cuda_operands import (
    FIRST_DIFFERENTIATED,
    Operands,
    Options,
    Outputs,
    Saved,
    addresses,
    laid_out,
    plan_of,
    there,
    with_values,
)
from elm_neuro.backends.elm._cuda_plan import EVENTS, BackwardRuns, Flows, Form, Kept, Plan, Runs
from elm_neuro.backends.elm._traces_before import on_hidden
from elm_neuro.backends.parts._twice import asks_operators, differentiable_gradients, differentiable_once
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import decay


def run(operands: Operands, options: Options, events: SpikeEvents | None) -> Outputs:
    """Readout of every step and the state after each sample's last; `events` are what begin, channel and value are
    of.
    """
    if not torch.is_grad_enabled():
        return forward(laid_out(operands), plan_of(operands, options), save=False, of_x=False)[0]
    constants, differentiated = operands[:FIRST_DIFFERENTIATED], operands[FIRST_DIFFERENTIATED:]
    # the constants as one argument: autograd asks each of its arguments more than once
    return Outputs._make(_apply(plan_of(operands, options), events, constants, *differentiated))


NUM_SETTLED = 3  # arguments before those that are differentiated: plan, events, constants
NUM_OPERAND = len(Operands._fields)


class _Pass(Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        events: SpikeEvents | None,
        constants: tuple[Tensor | None, ...],
        *differentiated: Tensor | None,
    ) -> tuple[Tensor, ...]:
        needs = ctx.needs_input_grad  # which torch makes anew each time
        x, v, w_s, w1, b1, kappa, gain, w2, b2, _w_y, _b_y, b_0, m_0 = needs[NUM_SETTLED:]
        tensors = constants + differentiated
        save, whole = True in needs, laid_out(Operands._make(tensors))
        outputs, saved = forward(whole, plan, save=save, of_x=x)
        ctx.set_materialize_grads(False)
        if save:
            ctx.save_for_backward(*tensors, *saved)
        again = ctx.differentiates_again = differentiated[0] is not None or events is not None
        ctx.of_pass = plan, events, all(map(is_, tensors, whole)), x
        moves = x or v or w_s or w1 or b1 or kappa or gain or w2 or b2 or b_0 or m_0
        fixed = [] if moves else [outputs.m]  # who trains the readout alone may hand the state on for ever
        if not (again and (x or w_s or b_0)):
            fixed.append(outputs.b)
        if fixed:
            ctx.mark_non_differentiable(*fixed)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.differentiates_again and asks_operators(grads):
            operands, (plan, events, *_) = Operands._make(ctx.saved_tensors[:NUM_OPERAND]), ctx.of_pass
            found = _differentiable(operands, plan.form, events, ctx.needs_input_grad[NUM_SETTLED:], grads)
            return (None, None, None, *found)
        return _backward(ctx, *grads)


# Function's own asks each argument besides whether it is left of a transform, which those of a pass are not any more
_apply: Any = super(Function, _Pass).apply


@differentiable_once
def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors, (plan, _, is_laid_out, of_x) = ctx.saved_tensors, ctx.of_pass
    operands, saved = Operands._make(tensors[:NUM_OPERAND]), Saved._make(tensors[NUM_OPERAND:])
    # contiguous too where they have been kept elsewhere in between: torch.autograd.graph.saved_tensors_hooks
    if not is_laid_out or [None for tensor in tensors if tensor is not None and not tensor.is_contiguous()]:
        operands, saved = laid_out(operands), Saved._make(map(_whole, saved))
    found = backward(operands, saved, plan, grads, of_x=of_x)
    return (None, None, None, *found)


def _whole(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def forward(o: Operands, of: Plan, *, save: bool, of_x: bool) -> tuple[Outputs, Saved]:
    """The pass, of operands that are :func:`laid_out`; with `save` also what the backward pass reads, with `of_x` what
    the gradient of frames does.
    """
    if save:
        of.expect_backward()
    queue, empty, room = _driver.launcher().queue(of.form.device), o.kappa.new_empty, of.kept[save]
    runs = of.on(queue)
    buffer = empty(room.numbers)
    kept = room.at(buffer.data_ptr())
    at = addresses(o, kept if of.learning.num_w_s else None)
    arriving, f_0, b = Arriving(at.v, None, None, None), None, empty(of.shape_of_b)
    if o.v is None:
        arriving = _arriving(queue, runs, o, at, of, kept, of_x=of_x)
        runs.branch_traces(at.lengths, at.routing, at.w_s, kept.total, at.kappa_b, at.b_0, b.data_ptr())
        if o.b_0 is not None:
            f_0 = on_hidden(o.w1, o.b_0)
    m = empty(of.shape_of_m)
    packed = empty(of.recurrence.num_packed) if of.recurrence.num_packed else None
    runs.recurrence(
        at.w1, at.w2, address(packed), at.lengths, 0 if o.v is not None else at.kappa_b, arriving.v,
        address(f_0), at.m_0, at.b1, at.b2, at.kappa, at.gain, kept.memory, kept.tanhs, kept.hidden, m.data_ptr(),
    )  # fmt: skip
    if of.own_readout:
        y = empty(of.shape_of_y)
        runs.readout(at.lengths, kept.memory, at.w_y, at.b_y, y.data_ptr())
    else:
        y = products.readout(of.memory(buffer, save=save), o)
    order, ordered = (None, None) if arriving.arranged is None else arriving.arranged
    return Outputs(y, b, m), Saved(buffer, arriving.table if of_x else None, order, ordered)


class At(NamedTuple):
    """Addresses of a backward pass."""

    o: Any  # Operands of addresses, of what is effective
    kappa: int  # as it is learned, where it is
    kept: Kept
    flows: Flows
    room: Room[Flows]  # whose these are
    dv: int
    product_y: int  # of the readout, to be added up; 0: it has no gradient


def backward(
    o: Operands, saved: Saved, of: Plan, grads: tuple[Tensor | None, ...], *, of_x: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `x` on, from those of the outputs; with `of_x` also of the frames."""
    grad_y, grad_b, grad_m = grads
    queue, empty, back = _driver.launcher().queue(of.form.device), o.kappa.new_empty, of.backward
    runs = back.on(queue)
    inside = back.takes_addresses and not of_x
    kept, room = of.kept[True].at(saved.kept.data_ptr()), back.flows[inside][grad_y is not None]
    buffer = empty(room.numbers)
    flows = room.at(buffer.data_ptr())
    at_o, at_learned = addresses(o, kept if of.learning.num_w_s else None), o.kappa.data_ptr()
    if of.learning.num_w_s and (of_x or o.b_0 is not None or o.m_0 is not None):
        o = with_values(o, of, saved.kept)

    at_grad_memory, product_y, of_b_y, of_readout = 0, 0, None, None
    if grad_y is not None and of.own_readout:
        stride, of_b_y = grad_y.stride(), torch.empty_like(o.b_y)
        at_grad_memory, product_y = flows.grad_memory, flows.product_y
        runs.readout(
            *stride[:2], stride[2] if len(stride) == 4 else 0, stride[-1], at_o.lengths, kept.memory, at_o.w_y,
            grad_y.data_ptr(), at_grad_memory, product_y,
        )  # fmt: skip
    elif grad_y is not None:
        of_readout = products.through_readout(grad_y, of.memory(saved.kept, save=True), o, back.groups)
        at_grad_memory, product_y, of_b_y = of_readout[0].data_ptr(), of_readout[1].data_ptr(), of_readout[2]

    grad_m = None if grad_m is None else grad_m.contiguous()
    dv, at_dv = None, flows.dv
    if not inside:
        dv = torch.empty_like(o.v) if o.v is not None else empty(of.num_row, of.num_neuron * of.first)
        at_dv = dv.data_ptr()
    dz_first = grad_m_0 = grad_f_0 = None
    if o.m_0 is not None:
        dz_first, grad_m_0 = empty(of.num_neuron, of.form.batch, of.first), torch.empty_like(o.m_0)
    if o.b_0 is not None:
        grad_f_0 = empty(of.form.batch, *of.neurons, of.first)
    runs.recurrence(
        at_o.w1, at_o.w2, flows.packed, at_o.lengths, 0 if o.v is not None else at_o.kappa_b, at_o.m_0,
        at_o.kappa, at_o.gain, kept.memory, kept.tanhs, kept.hidden, at_grad_memory, address(grad_m), flows.dq,
        flows.dz, address(dz_first), at_dv, flows.post, address(grad_f_0), address(grad_m_0), flows.sums,
    )  # fmt: skip
    grad_b = None if grad_b is None or o.w_s is None else grad_b.contiguous()
    at = At(at_o, at_learned, kept, flows, room, at_dv, product_y)
    of_w_s, of_w1, of_b1, of_kappa, of_gain, of_w2, of_b2, of_w_y = _of_weights(
        queue, runs, o, at, saved, of, buffer, dv, grad_b, of_b_y if of.own_readout else None
    )
    del buffer, of_readout  # what comes needs room
    if dz_first is not None:
        products.through_memory_before(o, of, dz_first, of_w1)
    return (
        products.frames_gradient(o, saved, there(dv), grad_b, of) if of_x else None,
        dv if o.v is not None else None,
        of_w_s, of_w1, of_b1, of_kappa, of_gain, of_w2, of_b2, of_w_y, of_b_y,
        None if grad_f_0 is None else products.through_traces_before(o, of, grad_f_0, grad_b, of_w1),
        grad_m_0,
    )  # fmt: skip


def _of_weights(
    queue: _driver.Queue,
    runs: BackwardRuns,
    o: Operands,
    at: At,
    saved: Saved,
    of: Plan,
    buffer: Tensor,
    dv: Tensor | None,
    grad_b: Tensor | None,
    of_b_y: Tensor | None,
) -> tuple[Any, ...]:
    """Gradients of the operands from `w_s` to `w_y`, once all has flowed back; that of the readout's bias is written to
    `of_b_y` where a kernel adds it up.
    """
    back, flows, learns, empty_like = of.backward, at.flows, of.learning.num_w_s, torch.empty_like
    product_m, product_h, of_layers = flows.product_m, flows.product_h, None
    if back.own_outer:
        hidden = flows.post or at.kept.hidden
        runs.outer(flows.dz, at.kept.memory, flows.dq, hidden, product_m, product_h)
    else:
        of_layers = products.layers(of, at.room, saved.kept, buffer)
        product_m, product_h = of_layers[0].data_ptr(), address(of_layers[1])
    grad_table, at_grad_table = None, flows.grad_table
    if dv is None:
        _add_up_table(runs, o, at, saved, of)
    elif o.w_s is not None:
        grad_table = _table_gradient(queue, runs, o, saved, dv, of)
        at_grad_table = grad_table.data_ptr()
    of_w_s, of_kappa = None if o.w_s is None else empty_like(o.w_s), empty_like(o.kappa)  # as learned, where they are
    of_w1, of_b1 = empty_like(o.w1), None if o.b1 is None else empty_like(o.b1)
    of_w2, of_b2 = (None, None) if o.w2 is None or o.b2 is None else (empty_like(o.w2), empty_like(o.b2))
    of_gain, of_w_y = None if learns else empty_like(o.kappa), empty_like(o.w_y) if at.product_y else None
    at_kappa = of_kappa.data_ptr()
    runs.gradients[at.product_y != 0](
        at.o.routing, at.o.w_s, at.o.w1, at.o.kappa, at.kappa, at_grad_table, address(grad_b),
        at.kept.total, flows.sums, product_m, product_h, at.product_y, address(of_w_s), at_kappa, of_w1.data_ptr(),
        0 if learns else at_kappa, address(of_gain), address(of_b2), address(of_b1), address(of_w2), address(of_w_y),
        address(of_b_y),
    )  # fmt: skip
    return of_w_s, of_w1, of_b1, of_kappa, of_gain, of_w2, of_b2, of_w_y


def _differentiable(
    o: Operands,
    form: Form,
    events: SpikeEvents | None,
    needed: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `x` on with a graph of their own: the reference's, run again."""
    activation = "silu" if form.silu else "relu"
    plain = Plain(events, o.lengths, activation, None, None, o.kappa.dtype, form.timescales)
    kappa_b = o.kappa_b if form.timescales is None else decay(o.kappa_b, form.timescales.delta_t)

    def again(x: Any, v: None, w_s: Any, w1: Any, b1: Any, kappa: Any, gain: Any, w2: Any, b2: Any, *rest: Any) -> Any:
        w_y, b_y, b_0, m_0 = rest
        layers = (w1, b1) if w2 is None else (w1, w2, b1, b2)
        return plain.run(x, b_0, m_0, w_s, o.routing, kappa_b, kappa, gain, w_y, b_y, *layers)

    return differentiable_gradients(again, o[FIRST_DIFFERENTIATED:], needed, grads)


class Arriving(NamedTuple):
    """What arrives at the first layer's outputs."""

    v: int  # address
    held: Tensor | None  # whose memory that is
    table: Tensor | None  # that it comes by, where somebody else reads it
    arranged: Arranged | None  # events


def _arriving(queue: _driver.Queue, runs: Runs, o: Operands, at: Any, of: Plan, kept: Kept, *, of_x: bool) -> Arriving:
    """What arrives; what becomes effective, and the input's discounted sum, go to the buffer."""
    sizes, total, w_s, empty = of.sizes, kept.total, there(o.w_s), o.kappa.new_empty
    held = table = None
    if of.arrives_by_kernels and not of_x:
        held = empty(of.passing.numbers)
        at_table, at_v = of.passing.at(held.data_ptr())
    else:
        table = empty(of.shape_of_table)
        at_table, at_v = table.data_ptr(), 0
        if of.arrives_by_kernels:
            held = empty(of.num_row, of.num_neuron * of.first)
            at_v = held.data_ptr()
    begin, slot = (None, None) if o.routing is None else synapses_by_input(o.routing, sizes.num_input)
    runs.table(
        address(begin), address(slot), w_s.data_ptr(), at.w1, at_table, o.kappa.data_ptr(),
        o.kappa_b.data_ptr(), kept.w_s, kept.kappa, kept.gain, kept.kappa_b,
    )  # fmt: skip
    if of.form.arrives == EVENTS:
        events = Events(there(o.begin), there(o.channel), o.value)
        extent = of.form.batch, of.form.num_steps, sizes.num_input
        arranged = arrange(queue, events, extent, o.kappa.dtype, at.kappa_b, o.lengths, total)
        begin, channel, value = events
        runs.gathering(begin.data_ptr(), 0, channel.data_ptr(), address(value), at_table, at_v)
        return Arriving(at_v, held, table, arranged)
    x = there(o.x)
    rows = rows_of(x)
    stride = rows.stride()
    runs.discounted_sum(*stride[:2], _frames.sign_of(x), at.lengths, at.kappa_b, rows.data_ptr(), total)
    if of.product is not None:
        _frames.run(runs.product, rows, at_table, at_v)
        return Arriving(at_v, held, table, None)
    table = there(table)
    x, factor = products.lowered(of.form, x, table)
    if x.ndim == 4:
        own = (sizes.num_neuron, sizes.num_input, sizes.first)
        v = torch.einsum("btni,nif->btnf", x, factor.view(own)).contiguous()
    else:
        v = torch.mm(x.reshape(-1, sizes.num_input), factor)
    v = v if v.dtype == table.dtype else v.to(table.dtype)
    return Arriving(v.data_ptr(), v, table, None)


def _add_up_table(runs: BackwardRuns, o: Operands, at: At, saved: Saved, of: Plan) -> None:
    """Gradient of the table, in parts to be added up, where kernels alone read it."""
    if o.x is not None:
        _frames.run(runs.of_table, o.x, at.dv, at.flows.grad_table)
        return
    first = there(saved.order).data_ptr()
    second = first + 8 * of.form.batch * (of.form.num_input + 1)
    runs.of_table(first, second, address(saved.ordered), at.dv, at.flows.grad_table)


def _table_gradient(
    queue: _driver.Queue, runs: BackwardRuns, o: Operands, saved: Saved, dv: Tensor, of: Plan
) -> Tensor:
    """Of the table, in parts to be added up; `dv` is (batch * time, num_neuron * first)."""
    if o.x is None:
        batch = of.form.batch
        return gather_inputs(queue, dv, Arranged(there(saved.order), saved.ordered), batch, of.form.num_input)
    if of.backward.of_table is not None:
        grad = dv.new_empty(of.backward.num_part, *of.shape_of_table)
        _frames.run(runs.of_table, o.x, dv.data_ptr(), grad.data_ptr())
        return grad
    x, flow = products.lowered(of.form, o.x, dv)
    if x.ndim == 4:
        grad = torch.einsum("btni,btnf->nif", x, flow.view(*x.shape[:-1], -1)).contiguous()
    else:
        grad = torch.mm(x.reshape(dv.shape[0], -1).t(), flow)
    return grad if grad.dtype == dv.dtype else grad.to(dv.dtype)
