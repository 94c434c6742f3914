"""The memory recurrence of a whole sequence as one kernel a direction, with the products over all steps after it."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import addresses, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._plans import Plan, Shape, choose
from elm_neuro.backends.parts._once import differentiable_once

PackArgs = structure("PackArgs", "up_row up_column up_neuron down_row down_column down_neuron", "up down packed")
ForwardArgs = structure(
    "ForwardArgs",
    "batch num_steps v_batch v_time v_neuron",
    "lengths kappa_b v f_0 m_0 bias layer_bias kappa gain packed memory tanhs hidden m_last",
)
BackwardArgs = structure(
    "BackwardArgs",
    "batch num_steps v_batch v_time v_neuron",
    "lengths kappa_b m_0 kappa gain packed memory tanhs hidden grad_memory grad_m_last dq dz dv post grad_f_0 grad_m_0 sums",
)
SIZES = {
    "ELM_BYTES_PACK": ctypes.sizeof(PackArgs),
    "ELM_BYTES_FORWARD": ctypes.sizeof(ForwardArgs),
    "ELM_BYTES_BACKWARD": ctypes.sizeof(BackwardArgs),
}


class Recurrence(NamedTuple):
    """The tensors of a pass."""

    lengths: Tensor | None  # valid steps of each sample, (batch,), int64
    kappa_b: Tensor | None  # decay of what has arrived, (); None where `v` is integrated already
    v: Tensor  # what arrives at the first layer's outputs, (batch, time, [num_neuron,] first); from here on differentiated
    f_0: Tensor | None  # what has arrived before the first step, (batch, [num_neuron,] first); None for zeros
    bias: Tensor | None  # of the first layer, ([num_neuron,] first)
    m_0: Tensor | None  # memory before the first step, (batch, [num_neuron,] num_memory); None for zeros
    kappa: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor
    w_m: Tensor  # the memory's part of the first layer's weight, ([num_neuron,] first, num_memory)
    weight: Tensor | None  # of the layer after it, ([num_neuron,] num_memory, first); None without hidden layers
    layer_bias: Tensor | None

    @property
    def num_neuron(self) -> int:
        """Neurons of the population, 1 where there is none."""
        return self.kappa.shape[0] if self.kappa.ndim == 2 else 1

    def shape(self, *, silu: bool) -> Shape:
        """Sizes that the kernel is compiled for."""
        deep = self.weight is not None
        return Shape(
            num_memory=self.kappa.shape[-1],
            hidden=self.w_m.shape[-2],
            num_layers=int(deep),
            silu=silu and deep,
            double=self.kappa.dtype == torch.float64,
        )


class Records(NamedTuple):
    """What a forward pass leaves: of every step memory, and for the backward pass tanh and hidden units."""

    memory: Tensor  # (num_neuron, batch, time, num_memory)
    m_last: Tensor  # (batch, [num_neuron,] num_memory)
    tanhs: Tensor | None
    hidden: Tensor | None  # (num_neuron, batch, time, first)


def memory_scan(operands: Recurrence, *, silu: bool) -> tuple[Tensor, Tensor]:
    """Memory of every step, (num_neuron, batch, time, num_memory), and after each sample's last, (batch, [num_neuron,] num_memory).

    Steps past a sample's end hold zeros.
    """
    memory, m_last = _MemoryScan.apply(silu, torch.is_grad_enabled(), *operands)  # type: ignore[no-untyped-call]
    return memory, m_last


class _MemoryScan(Function):
    @staticmethod
    def forward(ctx: Any, silu: bool, recorded: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        operands = Recurrence._make(tensors)
        records = run_forward(operands, silu=silu, save=recorded and any(ctx.needs_input_grad))
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, records.memory, records.tanhs, records.hidden)
        return records.memory, records.m_last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_memory: Tensor | None, grad_m_last: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, memory, tanhs, hidden = ctx.saved_tensors
        operands = Recurrence._make(tensors)
        wanted = ctx.needs_input_grad[2:]
        with torch.autocast(memory.device.type, enabled=False):
            grads = run_backward(
                operands, Records(memory, memory, tanhs, hidden), grad_memory, grad_m_last, wanted, silu=ctx.silu
            )
        return None, None, *grads


def run_forward(operands: Recurrence, *, silu: bool, save: bool) -> Records:
    """All steps; with `save` also what the backward pass reads."""
    given = _laid_out(operands)
    v, kappa, num_neuron = given.v, given.kappa, given.num_neuron
    batch, num_steps = v.shape[:2]
    plan = _plan(given, silu=silu, backward=False)
    # past a sample's end nothing is written, and products over all steps read it
    room = kappa.new_empty if given.lengths is None else kappa.new_zeros
    memory = room(num_neuron, batch, num_steps, kappa.shape[-1])
    tanhs = torch.empty_like(memory) if save else None
    hidden = room(num_neuron, batch, num_steps, given.w_m.shape[-2]) if save and given.weight is not None else None
    m_last = kappa.new_empty(batch, *kappa.shape)
    packed = packed_weights(given, plan)
    args = ForwardArgs(
        batch, num_steps, *_strides(v),
        *addresses(
            given.lengths, given.kappa_b, v, given.f_0, given.m_0, given.bias, given.layer_bias, kappa, given.gain,
            packed, memory, tanhs, hidden, m_last,
        ),
    )  # fmt: skip
    _launch(plan, "elm_forward", args, batch, num_neuron, v.device)
    return Records(memory, m_last, tanhs, hidden)


def run_backward(
    operands: Recurrence,
    records: Records,
    grad_memory: Tensor | None,
    grad_m_last: Tensor | None,
    wanted: tuple[bool, ...],
    *,
    silu: bool,
) -> list[Tensor | None]:
    """Gradients of the operands where `wanted`, one for each of their fields."""
    given = _laid_out(operands)
    v, kappa, num_neuron = given.v, given.kappa, given.num_neuron
    batch, num_steps = v.shape[:2]
    num_memory, first = kappa.shape[-1], given.w_m.shape[-2]
    plan = _plan(given, silu=silu, backward=True)
    need = dict(zip(Recurrence._fields, wanted, strict=True))
    room = kappa.new_empty if given.lengths is None else kappa.new_zeros
    grad_memory = None if grad_memory is None else grad_memory.contiguous()
    grad_m_last = None if grad_m_last is None else grad_m_last.contiguous()
    dq = room(num_neuron, batch, num_steps, num_memory)
    dz = dq if given.weight is None else room(num_neuron, batch, num_steps, first)
    dv = None
    if need["v"]:
        dv = torch.empty_like(v) if given.lengths is None else torch.zeros_like(v)
    hidden = records.hidden
    post = torch.empty_like(dz) if silu and hidden is not None and given.lengths is None else None
    if silu and hidden is not None and post is None:
        post = torch.zeros_like(dz)
    grad_f_0 = kappa.new_empty(given.f_0.shape) if given.f_0 is not None and need["f_0"] else None
    grad_m_0 = kappa.new_empty(given.m_0.shape) if given.m_0 is not None and need["m_0"] else None
    sums = kappa.new_empty(num_neuron, batch, 3 * num_memory + first)
    packed = packed_weights(given, plan)
    args = BackwardArgs(
        batch, num_steps, *_strides(v if dv is None else dv),
        *addresses(
            given.lengths, given.kappa_b, given.m_0, kappa, given.gain, packed, records.memory,
            records.tanhs, hidden, grad_memory, grad_m_last, dq, dz, dv, post, grad_f_0, grad_m_0, sums,
        ),
    )  # fmt: skip
    _launch(plan, "elm_backward", args, batch, num_neuron, v.device)

    population = kappa.ndim == 2
    over_time = sums.sum(1)
    over_time = over_time if population else over_time[0]
    grad_kappa, grad_gain, grad_layer_bias, grad_bias = over_time.split([num_memory, num_memory, num_memory, first], -1)
    # of the first step m_0, of each later one the step before
    grad_w_m = _outer(dz[:, :, 1:], records.memory[:, :, :-1])
    if given.m_0 is not None:
        m_0 = given.m_0.view(batch, num_neuron, num_memory).transpose(0, 1)
        grad_w_m += dz[:, :, 0].mT @ m_0
    grad_w_m *= kappa.view(num_neuron, 1, num_memory)
    grad_weight = None
    if given.weight is not None and hidden is not None:
        grad_weight = _outer(dq, hidden if post is None else post).view(given.weight.shape)
    found: dict[str, Tensor | None] = {
        "v": dv,
        "f_0": grad_f_0,
        "bias": None if given.bias is None else grad_bias,
        "m_0": grad_m_0,
        "kappa": grad_kappa,
        "gain": grad_gain,
        "w_m": grad_w_m.view(given.w_m.shape),
        "weight": grad_weight,
        "layer_bias": None if given.layer_bias is None else grad_layer_bias,
    }
    return [found.get(name) for name in Recurrence._fields]


def _outer(out: Tensor, inp: Tensor) -> Tensor:
    """Sum over samples and steps of out x inp, (num_neuron, out, in), of (num_neuron, batch, time, ...).

    A product a sample first: one over all steps would keep few multiprocessors busy.
    """
    num_neuron, batch = out.shape[:2]
    each = torch.bmm(out.flatten(0, 1).mT, inp.flatten(0, 1))
    return each.view(num_neuron, batch, *each.shape[1:]).sum(1)


def packed_weights(given: Recurrence, plan: Plan) -> Tensor:
    """The two matrices in the order in which the threads of the kernel hold them."""
    w_m, weight, num_neuron = given.w_m, given.weight, given.num_neuron
    packed = w_m.new_empty(num_neuron * plan.packed_vectors * plan.threads * (16 // w_m.element_size()))
    of_m = w_m.stride() if w_m.ndim == 3 else (0, *w_m.stride())
    of_weight = (0, 0, 0) if weight is None else weight.stride() if weight.ndim == 3 else (0, *weight.stride())
    # backward the transposed matrices, in the other order
    up, up_stride, down, down_stride = w_m, of_m, weight, of_weight
    if plan.backward:
        if weight is None:
            up_stride = (of_m[0], of_m[2], of_m[1])
        else:
            up, up_stride = weight, (of_weight[0], of_weight[2], of_weight[1])
            down, down_stride = w_m, (of_m[0], of_m[2], of_m[1])
    args = PackArgs(
        up_stride[1], up_stride[2], up_stride[0], down_stride[1], down_stride[2], down_stride[0],
        *addresses(up, down, packed),
    )  # fmt: skip
    launcher = _driver.launcher()
    launcher.launch(program(plan), "elm_pack", (plan.packed_vectors, num_neuron), plan.threads, 0, args, w_m.device)
    return packed


def program(plan: Plan) -> Program:
    """The source that a layout is compiled from."""
    return Program("memory.cuh", (*plan.macros().items(), *SIZES.items()))


def _plan(given: Recurrence, *, silu: bool, backward: bool) -> Plan:
    device = _driver.launcher().device(given.v.device.index or 0)
    return choose(given.shape(silu=silu), device, given.v.shape[0], given.num_neuron, backward=backward)


def _launch(plan: Plan, kernel: str, args: ctypes.Structure, batch: int, num_neuron: int, device: torch.device) -> None:
    grid = -(-batch // plan.samples), num_neuron
    _driver.launcher().launch(program(plan), kernel, grid, plan.threads, plan.shared_bytes, args, device)


def _laid_out(operands: Recurrence) -> Recurrence:
    """The operands as the kernels read them: rows of `v` contiguous, all else whole; matrices may have any strides."""
    plain = ("lengths", "kappa_b", "f_0", "bias", "m_0", "kappa", "gain", "layer_bias")
    found = {name: getattr(operands, name) for name in plain}
    v = operands.v if operands.v.stride(-1) == 1 else operands.v.contiguous()
    return operands._replace(v=v, **{name: tensor.contiguous() for name, tensor in found.items() if tensor is not None})


def _strides(v: Tensor) -> tuple[int, int, int]:
    """Strides of batch, time and neuron."""
    stride = v.stride()
    return stride[0], stride[1], stride[2] if v.ndim == 4 else 0
