"""Those parts of a pass on a GPU that are products of cuBLAS, or need torch for once."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.cuda._room import Room
from elm_neuro.backends.elm._cuda_operands import Operands, Saved, there
from elm_neuro.backends.elm._cuda_plan import Flows, Form, Plan
from elm_neuro.backends.elm._traces_before import remaining, through_hidden
from elm_neuro.backends.parts._lengths import cut_at
from elm_neuro.functional import branch_matrix


def readout(memory: Tensor, o: Operands) -> Tensor:
    """Output of every step, (batch, time, [num_neuron,] output_size)."""
    num_neuron, batch, num_steps, num_memory = memory.shape
    if o.w_y.ndim == 2:
        return cut_at(o.lengths, torch.addmm(o.b_y, memory.view(-1, num_memory), o.w_y.mT).view(batch, num_steps, -1))
    flat = torch.baddbmm(o.b_y.unsqueeze(1), memory.view(num_neuron, -1, num_memory), o.w_y.mT)
    return cut_at(o.lengths, flat.view(num_neuron, batch, num_steps, -1).permute(1, 2, 0, 3))


def through_readout(grad_y: Tensor, memory: Tensor, o: Operands, num_group: int) -> tuple[Tensor, Tensor, Tensor]:
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


def layers(of: Plan, room: Room[Flows], kept: Tensor, flows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Products of the layers' weights, to be added up, from the two buffers of a pass; `room` is that of the second."""
    rows, back = (of.num_neuron, of.num_row), of.backward
    memory = of.kept[True].part(kept, "memory", *rows, of.num_memory)
    product_m = _outer(room.part(flows, "dz", *rows, of.first), memory, back.groups)
    if not of.form.deep:
        return product_m, None
    if of.form.silu:
        hidden = room.part(flows, "post", *rows, of.first)
    else:
        hidden = of.kept[True].part(kept, "hidden", *rows, of.first)
    return product_m, _outer(room.part(flows, "dq", *rows, of.num_memory), hidden, back.groups)


def _outer(out: Tensor, inp: Tensor, num_group: int) -> Tensor:
    """Product over some samples' steps each of `inp`, (num_neuron, batch, time, in), and `out`, whose axes may be
    merged: (num_neuron * group, out, in). One product over all steps would keep few multiprocessors busy.
    """
    shape = inp.shape[0] * num_group, -1
    return torch.bmm(out.reshape(*shape, out.shape[-1]).mT, inp.reshape(*shape, inp.shape[-1]))


def frames_gradient(o: Operands, saved: Saved, dv: Tensor, grad_b: Tensor | None, of: Plan) -> Tensor | None:
    """Gradient of frames."""
    if o.x is None:
        return None
    form = of.form
    flow, table = lowered(form, dv, there(saved.table))
    if o.x.ndim == 4:
        own = table.view(of.num_neuron, form.num_input, of.first)
        grad = torch.einsum("btnf,nif->btni", flow.view(*o.x.shape[:-1], -1), own)
    else:
        grad = (flow @ table.mT).view(o.x.shape)
    grad = grad.to(dv.dtype)
    if grad_b is None or o.w_s is None:
        return grad
    if o.routing is None:
        of_total = grad_b * o.w_s.squeeze(-1)
    else:
        of_total = torch.einsum("b...j,...ji->b...i", grad_b, branch_matrix(o.w_s, o.routing, form.num_input))
    if of_total.ndim == 3 and o.x.ndim == 3:
        of_total = of_total.sum(1)
    step = torch.arange(form.num_steps, device=grad.device)
    age = (form.num_steps if o.lengths is None else o.lengths.unsqueeze(1)) - 1 - step
    discount = (o.kappa_b.double() ** age.clamp(min=0) * (age >= 0)).to(grad.dtype)
    return grad + discount.view(-1, form.num_steps, *[1] * (grad.ndim - 2)) * of_total.unsqueeze(1)


def through_memory_before(o: Operands, of: Plan, dz_first: Tensor, of_w1: Tensor) -> None:
    """Add to the weight's gradient what comes of the memory before the first step."""
    m_0 = there(o.m_0).view(of.form.batch, -1, of.num_memory).transpose(0, 1)
    product = (dz_first.mT @ m_0).view(*o.w1.shape[:-1], of.num_memory)
    of_w1[..., of.sizes.num_branch :] += product * o.kappa.unsqueeze(-2)


def through_traces_before(o: Operands, of: Plan, grad_f_0: Tensor, grad_b: Tensor | None, of_w1: Tensor) -> Tensor:
    """Gradient of the traces before the first step; what comes of them is added to that of the weight they pass."""
    grad = through_hidden(o.w1, there(o.b_0), grad_f_0, of_w1)
    return grad if grad_b is None else grad + remaining(o.kappa_b, grad_b, of.form.num_steps, o.lengths)


def lowered(form: Form, *tensors: Tensor) -> tuple[Tensor, ...]:
    """These as autocast has them."""
    return tensors if form.lowered is None else tuple(tensor.to(form.lowered) for tensor in tensors)
