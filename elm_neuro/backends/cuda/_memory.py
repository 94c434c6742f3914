"""The memory recurrence of a whole sequence as one kernel a direction."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import Arguments, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._plans import Plan, Shape, choose

_MATRICES = "up_row up_column up_neuron down_row down_column down_neuron up down packed"
PACK, _PACK_BYTES = structure(_MATRICES)
FORWARD, _FORWARD_BYTES = structure(
    f"{_MATRICES} batch num_steps v_batch v_time v_neuron "
    "lengths kappa_b v f_0 m_0 bias layer_bias kappa gain memory tanhs hidden m_last"
)
BACKWARD, _BACKWARD_BYTES = structure(
    f"{_MATRICES} batch num_steps v_batch v_time v_neuron lengths kappa_b m_0 kappa gain memory tanhs hidden "
    "grad_memory grad_m_last dq dz dz_first dv post grad_f_0 grad_m_0 sums"
)


class Recurrence(NamedTuple):
    """The tensors of a pass, contiguous but for `v`, whose rows are, and the matrices, which may have any strides."""

    lengths: Tensor | None  # valid steps of each sample, (batch,), int64
    kappa_b: Tensor | None  # decay of what has arrived, (); None where `v` is integrated already
    v: Tensor  # what arrives at the first layer's outputs, (batch, time, [num_neuron,] first)
    f_0: Tensor | None  # what has arrived before the first step, (batch, [num_neuron,] first); None for zeros
    bias: Tensor | None  # of the first layer, ([num_neuron,] first)
    m_0: Tensor | None  # memory before the first step, (batch, [num_neuron,] num_memory); None for zeros
    kappa: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor
    w1: Tensor  # of the first layer, ([num_neuron,] first, inputs): the memory's part are its last columns
    w2: Tensor | None  # of the layer after it, ([num_neuron,] num_memory, first); None without hidden layers
    b2: Tensor | None

    @property
    def num_neuron(self) -> int:
        """Neurons of the population, 1 where there is none."""
        return self.kappa.shape[0] if self.kappa.ndim == 2 else 1


class Records(NamedTuple):
    """What a forward pass leaves: of every step memory, and for the backward pass tanh and hidden units; past a
    sample's end zeros.
    """

    memory: Tensor  # (num_neuron, batch, time, num_memory)
    m_last: Tensor  # (batch, [num_neuron,] num_memory)
    tanhs: Tensor | None
    hidden: Tensor | None  # (num_neuron, batch, time, first); with silu what it takes, else what relu gives


class Flows(NamedTuple):
    """Gradients that flow back through the steps, and what of them sums up."""

    dq: Tensor | None  # of what the tanh takes, (num_neuron, batch, time, num_memory); None without hidden layers
    dz: Tensor  # of what the first layer gives, one step later: beside the memory it came from; 0 in the last step
    dz_first: Tensor | None  # (num_neuron, batch, first): in the first step, where there is a memory before it
    hidden: Tensor | None  # (num_neuron, batch, time, first): what the activation gave
    v: Tensor  # shape of v
    f_0: Tensor | None
    m_0: Tensor | None
    sums: Tensor  # (num_neuron, batch, 3 num_memory + first): over time, of kappa's, gain's, b2's and bias's gradient


def run_forward(given: Recurrence, *, silu: bool, save: bool) -> Records:
    """All steps; with `save` also what the backward pass reads."""
    v, kappa, num_neuron = given.v, given.kappa, given.num_neuron
    batch, num_steps = v.shape[:2]
    kernel = _kernel(given, silu=silu, backward=False)
    memory = kappa.new_empty(num_neuron, batch, num_steps, kappa.shape[-1])
    tanhs = torch.empty_like(memory) if save else None
    hidden = (
        kappa.new_empty(num_neuron, batch, num_steps, given.w1.shape[-2]) if save and given.w2 is not None else None
    )
    m_last = kappa.new_empty(batch, *kappa.shape)
    matrices = _matrices(given, kernel)
    args = FORWARD(
        *matrices, batch, num_steps, *_strides(v), given.lengths, given.kappa_b, v, given.f_0, given.m_0, given.bias,
        given.b2, kappa, given.gain, memory, tanhs, hidden, m_last,
    )  # fmt: skip
    kernel.launch("elm_forward", args, batch, num_neuron, v.device)
    return Records(memory, m_last, tanhs, hidden)


def run_backward(
    given: Recurrence, records: Records, grad_memory: Tensor | None, grad_m_last: Tensor | None, *, silu: bool
) -> Flows:
    """All steps from the last to the first."""
    v, kappa, num_neuron, hidden = given.v, given.kappa, given.num_neuron, records.hidden
    batch, num_steps = v.shape[:2]
    num_memory, first = kappa.shape[-1], given.w1.shape[-2]
    kernel = _kernel(given, silu=silu, backward=True)
    dq = None if given.w2 is None else torch.empty_like(records.memory)
    dz = kappa.new_empty(num_neuron, batch, num_steps, first)
    dz_first = None if given.m_0 is None else kappa.new_empty(num_neuron, batch, first)
    post = torch.empty_like(dz) if silu and hidden is not None else None
    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    grad_f_0 = None if given.f_0 is None else torch.empty_like(given.f_0)
    grad_m_0 = None if given.m_0 is None else torch.empty_like(given.m_0)
    sums = kappa.new_empty(num_neuron, batch, 3 * num_memory + first)
    matrices = _matrices(given, kernel)
    args = BACKWARD(
        *matrices, batch, num_steps, *_strides(dv), given.lengths, given.kappa_b, given.m_0, kappa, given.gain,
        records.memory, records.tanhs, hidden, grad_memory, grad_m_last, dq, dz, dz_first, dv, post, grad_f_0,
        grad_m_0, sums,
    )  # fmt: skip
    kernel.launch("elm_backward", args, batch, num_neuron, v.device)
    return Flows(dq, dz, dz_first, hidden if post is None else post, dv, grad_f_0, grad_m_0, sums)


class Kernel:
    """A compiled layout and how it is launched."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.program = program(plan)
        self.threads, self.samples, self.shared_bytes = plan.threads, plan.samples, plan.shared_bytes
        self.packed_vectors = plan.packed_vectors if plan.is_packed else 0

    def launch(self, name: str, args: Arguments, batch: int, num_neuron: int, device: torch.device) -> None:
        """Run a kernel over all samples and neurons."""
        grid = -(-batch // self.samples), num_neuron
        _driver.launcher().launch(self.program, name, grid, self.threads, self.shared_bytes, args, device)


@cache
def program(plan: Plan) -> Program:
    """The source that a layout is compiled from."""
    bytes_of = (
        ("ELM_BYTES_MATRICES", _PACK_BYTES),
        ("ELM_BYTES_FORWARD", _FORWARD_BYTES),
        ("ELM_BYTES_BACKWARD", _BACKWARD_BYTES),
    )
    return Program("memory.cuh", (*plan.macros().items(), *bytes_of))


def _kernel(given: Recurrence, *, silu: bool, backward: bool) -> Kernel:
    deep = given.w2 is not None
    double = given.kappa.dtype == torch.float64
    return kernel_for(
        given.kappa.shape[-1], given.w1.shape[-2], deep, silu and deep, double,
        given.v.shape[0], given.num_neuron, given.v.device.index or 0, backward,
    )  # fmt: skip


@lru_cache(maxsize=256)
def kernel_for(
    num_memory: int,
    first: int,
    deep: bool,
    silu: bool,
    double: bool,
    batch: int,
    num_neuron: int,
    device: int,
    backward: bool,
) -> Kernel:
    """The layout that is fastest for these sizes on a device."""
    shape = Shape(num_memory, first, int(deep), silu, double)
    return Kernel(choose(shape, _driver.launcher().device(device), batch, num_neuron, backward=backward))


def _matrices(given: Recurrence, kernel: Kernel) -> tuple[int | Tensor | None, ...]:
    """The two matrices with their strides, and a copy in the order of the threads where the kernel wants one."""
    w1, w2, num_neuron = given.w1, given.w2, given.num_neuron
    of_m = w1.stride() if w1.ndim == 3 else (0, *w1.stride())
    # where the memory's columns begin, as an address: a view would take longer than all else here
    w_m = w1.data_ptr() + (w1.shape[-1] - given.kappa.shape[-1]) * of_m[2] * w1.element_size()
    of_2 = (0, 0, 0) if w2 is None else w2.stride() if w2.ndim == 3 else (0, *w2.stride())
    up: int | Tensor
    down: int | Tensor | None
    up, up_stride, down, down_stride = w_m, of_m, w2, of_2
    if kernel.plan.backward:  # the transposed matrices, in the other order
        if w2 is None:
            up_stride = (of_m[0], of_m[2], of_m[1])
        else:
            up, up_stride = w2, (of_2[0], of_2[2], of_2[1])
            down, down_stride = w_m, (of_m[0], of_m[2], of_m[1])
    fields = (up_stride[1], up_stride[2], up_stride[0], down_stride[1], down_stride[2], down_stride[0], up, down)
    if not kernel.packed_vectors:
        return (*fields, None)
    packed = w1.new_empty(num_neuron * kernel.packed_vectors * kernel.threads * (16 // w1.element_size()))
    grid = (kernel.packed_vectors, num_neuron)
    _driver.launcher().launch(kernel.program, "elm_pack", grid, kernel.threads, 0, PACK(*fields, packed), w1.device)
    return (*fields, packed)


def _strides(v: Tensor) -> tuple[int, int, int]:
    """Strides of batch, time and neuron."""
    stride = v.stride()
    return stride[0], stride[1], stride[2] if v.ndim == 4 else 0
