"""From a neuron's parameters to what runs over its steps, and their gradients: routing, synaptic weights, branch sums
and the input half of the first layer are one table.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import Arguments, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._readout import num_parts

THREADS = 256
SIDE = 32  # rows or columns of a block of the gradients

_SIZES = "num_neuron num_input num_branch num_synapse first w1_row input neuron routing_neuron "
TABLE, _TABLE_BYTES = structure(f"{_SIZES} begin slot w_s w1 table")
BRANCHES, _BRANCHES_BYTES = structure(
    f"{_SIZES} batch num_steps total_batch total_neuron lengths routing w_s total kappa_b b_0 b"
)
GRADIENTS, _GRADIENTS_BYTES = structure(
    f"{_SIZES} batch total_batch total_neuron num_part num_group num_group_y num_memory num_output blocks_w_s "
    "blocks_w1 routing w_s w1 kappa grad_table grad_b total sums product_m product_h product_y "
    "grad_w_s grad_w1 grad_sums grad_w2 grad_w_y grad_b_y"
)
OUTER, _OUTER_BYTES = structure("num_row num_part num_memory first dz memory dq hidden product_m product_h")
_EFFECTIVE = "num_w_s num_memory num_tau_s low width delta_t lambda v2 proto_w_s proto_tau_m tau_s "
EFFECTIVE, _EFFECTIVE_BYTES = structure(f"{_EFFECTIVE} w_s kappa_m gain kappa_b grad_w_s grad_tau_m")


@cache
def program(dtype: torch.dtype) -> Program:
    """The source of these kernels for numbers of this type."""
    double = dtype == torch.float64
    return Program(
        "weights.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_BYTES_TABLE", _TABLE_BYTES),
            ("ELM_BYTES_BRANCHES", _BRANCHES_BYTES),
            ("ELM_BYTES_GRADIENTS", _GRADIENTS_BYTES),
            ("ELM_BYTES_OUTER", _OUTER_BYTES),
            ("ELM_BYTES_EFFECTIVE", _EFFECTIVE_BYTES),
        ),
    )


def _launch(kernel: str, blocks: int, args: Arguments, like: Tensor, shared: int = 0, rows: int = 1) -> None:
    if blocks:
        _driver.launcher().launch(program(like.dtype), kernel, (blocks, rows), THREADS, shared, args, like.device)


class Sizes(NamedTuple):
    """The neuron as the kernels see it; the order is that of weights.cuh."""

    num_neuron: int
    num_input: int
    num_branch: int  # 0 where what arrives comes integrated
    num_synapse: int
    first: int  # outputs of the first layer
    w1_row: int  # its inputs
    input: int  # strides of the table
    neuron: int
    routing_neuron: int  # stride of the routing, 0 where all neurons share it

    @classmethod
    def of(cls, w_s: Tensor, routing: Tensor | None, w1: Tensor, num_input: int, *, own_input: bool) -> Sizes:
        """`own_input`: a neuron has its own input; the table is (neuron, input, first), else (input, neuron, first)."""
        num_neuron = w1.shape[0] if w1.ndim == 3 else 1
        first, row = w1.shape[-2:]
        strides = (first, num_input * first) if own_input else (num_neuron * first, first)
        per_neuron = routing is not None and routing.ndim == 3 and routing.shape[0] > 1
        num_branch, num_synapse = w_s.shape[-2:]
        return cls(
            num_neuron, num_input, num_branch, num_synapse, first, row, *strides, num_branch * num_synapse * per_neuron
        )


_by_input = WeakIdKeyDictionary()  # by the routing tensor itself


def synapses_by_input(routing: Tensor, num_input: int) -> tuple[Tensor, Tensor]:
    """Synapses of each input: where they begin, (num_routing, num_input + 1), and their numbers, (num_routing, branch *
    synapse), in order; empty slots come before. Computed and looked at once for a routing, a constant of its neuron:
    looking waits for the device.

    Raises:
        ValueError: a slot is routed to an input that is not there.
    """
    version, known = _by_input.get(routing, (None, None))
    found: tuple[Tensor, Tensor] | None = known if version == routing._version else None
    if found is None:
        flat = routing.reshape(-1 if routing.ndim == 3 else 1, routing.shape[-2] * routing.shape[-1])
        inputs, slot = torch.sort(flat, dim=-1, stable=True)
        if flat.numel() and int(inputs[:, -1].max()) >= num_input:
            raise ValueError(f"routing must hold inputs below {num_input}, -1 where a slot is empty")
        bounds = torch.arange(num_input + 1, device=routing.device).expand(flat.shape[0], -1).contiguous()
        found = torch.searchsorted(inputs, bounds), slot
        _by_input[routing] = (routing._version, found)
    return found


def first_table(sizes: Sizes, w_s: Tensor, routing: Tensor | None, w1: Tensor) -> Tensor:
    """What an event of each input adds to the first layer's outputs, (num_input, num_neuron * first), or with an input
    a neuron (num_neuron, num_input, first).
    """
    shared = sizes.input != sizes.first or sizes.num_neuron == 1
    shape = (
        (sizes.num_input, sizes.num_neuron * sizes.first)
        if shared
        else (sizes.num_neuron, sizes.num_input, sizes.first)
    )
    table = w1.new_empty(shape)
    begin, slot = (None, None) if routing is None else synapses_by_input(routing, sizes.num_input)
    _launch("elm_table", -(-table.numel() // THREADS), TABLE(*sizes, begin, slot, w_s, w1, table), w1)
    return table


def branch_traces(
    sizes: Sizes,
    w_s: Tensor,
    routing: Tensor | None,
    total: Tensor,
    kappa_b: Tensor,
    b_0: Tensor | None,
    lengths: Tensor | None,
    num_steps: int,
) -> Tensor:
    """Branch traces at each sample's end, (batch, [num_neuron,] num_branch), from the discounted sum of its input."""
    batch = total.shape[0]
    b = total.new_empty(batch, *w_s.shape[:-1])
    strides = total.stride(0), total.stride(1) if total.ndim == 3 else 0
    args = BRANCHES(*sizes, batch, num_steps, *strides, lengths, routing, w_s, total, kappa_b, b_0, b)
    if sizes.num_synapse < SIDE:
        _launch("elm_branches_of_one", -(-b.numel() // THREADS), args, total)
    else:
        _launch("elm_branches", -(-b.numel() * SIDE // THREADS), args, total)
    return b


class Gradients(NamedTuple):
    """Of the parameters; None where they are not there."""

    w_s: Tensor | None
    w1: Tensor
    sums: Tensor  # ([num_neuron,] 3 num_memory + first): kappa's, gain's and the biases' as memory.cuh orders them
    w2: Tensor | None
    w_y: Tensor | None
    b_y: Tensor | None  # where it comes with the products


class Products(NamedTuple):
    """Products over the steps of some samples each, (num_neuron * group, out, in), and sums over the steps of each;
    that of the readout may have groups of its own, and a last column of the bias.
    """

    m: Tensor
    h: Tensor | None
    y: Tensor | None
    sums: Tensor


def outer(dz: Tensor, memory: Tensor, dq: Tensor | None, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Products over parts of the rows, (sample, step), of the weights between memory and first layer, (num_neuron *
    part, first, num_memory), and of the layer after it, in one launch: for small ones.

    Args:
        dz: (num_neuron, batch, time, first), contiguous as the others are.
        memory: (num_neuron, batch, time, num_memory).
        dq: shape of memory; None where there is no layer after the first.
        hidden: shape of dz.
    """
    num_neuron, batch, num_steps, num_memory = memory.shape
    rows, first = batch * num_steps, dz.shape[-1]
    num_part = num_parts(rows)
    product_m = memory.new_empty(num_neuron * num_part, first, num_memory)
    product_h = None if dq is None else memory.new_empty(num_neuron * num_part, num_memory, first)
    args = OUTER(rows, num_part, num_memory, first, dz, memory, dq, hidden, product_m, product_h)
    _launch("elm_outer", num_part, args, memory, rows=num_neuron)
    return product_m, product_h


def gradients(
    sizes: Sizes,
    w_s: Tensor | None,
    routing: Tensor | None,
    w1: Tensor,
    kappa: Tensor,
    products: Products,
    *,
    grad_table: Tensor | None,
    grad_b: Tensor | None,
    total: Tensor | None,
    batch: int,
) -> Gradients:
    """All that is left of the backward pass, in one launch."""
    num_neuron, num_memory, first = sizes.num_neuron, kappa.shape[-1], sizes.first
    num_output = 0 if products.y is None else products.y.shape[-2]
    neurons = kappa.shape[:-1]
    grad_w1 = torch.empty_like(w1, memory_format=torch.contiguous_format)
    grad_w_s = None if w_s is None else torch.empty_like(w_s)
    grad_sums = kappa.new_empty(*neurons, 3 * num_memory + first)
    grad_w2 = None if products.h is None else kappa.new_empty(*neurons, num_memory, first)
    grad_w_y = None if products.y is None else kappa.new_empty(*neurons, num_output, num_memory)
    grad_b_y, num_group_y = None, 0
    if products.y is not None:
        num_group_y = products.y.shape[0] // num_neuron
        if products.y.shape[-1] > num_memory:
            grad_b_y = kappa.new_empty(*neurons, num_output)
    blocks_w_s = blocks_w1 = 0
    if w_s is not None:
        blocks_w_s = -(-w_s.numel() * SIDE // THREADS)
        blocks_w1 = num_neuron * sizes.num_branch * -(-first // SIDE)
    columns = sum(t.numel() // num_neuron for t in (grad_w2, grad_w_y, grad_b_y) if t is not None)
    columns += 3 * num_memory + first + first * num_memory
    blocks = blocks_w_s + blocks_w1 + -(-num_neuron * columns // SIDE)
    strides = (0, 0) if total is None else (total.stride(0), total.stride(1) if total.ndim == 3 else 0)
    args = GRADIENTS(
        *sizes, batch, *strides, 0 if grad_table is None else grad_table.shape[0], products.m.shape[0] // num_neuron,
        num_group_y, num_memory, num_output, blocks_w_s, blocks_w1, routing, w_s, w1, kappa, grad_table, grad_b, total,
        products.sums, products.m, products.h, products.y, grad_w_s, grad_w1, grad_sums, grad_w2, grad_w_y,
        grad_b_y,
    )  # fmt: skip
    _launch("elm_gradients", blocks, args, w1, THREADS * w1.element_size())
    return Gradients(grad_w_s, grad_w1, grad_sums, grad_w2, grad_w_y, grad_b_y)


def effective_forward(
    proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, constants: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rectified weights, decay factor and gain of the memory, decay factor of the synapses, in one launch.

    Args:
        proto_w_s: weights before they are rectified; all tensors are contiguous.
        proto_tau_m: unbounded time constants.
        tau_s: in ms.
        constants: low, width, delta_t, lambda (the bits of float64) and v2 of weights.cuh.
    """
    w_s, kappa_m, kappa_b = torch.empty_like(proto_w_s), torch.empty_like(proto_tau_m), torch.empty_like(tau_s)
    gain = torch.empty_like(proto_tau_m)
    sizes = proto_w_s.numel(), proto_tau_m.numel(), tau_s.numel()
    args = EFFECTIVE(*sizes, *constants, proto_w_s, proto_tau_m, tau_s, w_s, kappa_m, gain, kappa_b, None, None)
    _launch("elm_effective", -(-max(sizes) // THREADS), args, proto_w_s)
    return w_s, kappa_m, gain, kappa_b


def effective_backward(
    proto_w_s: Tensor,
    proto_tau_m: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
    constants: tuple[int, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `proto_w_s` and `proto_tau_m` from those of w_s, kappa_m and gain; of those not `wanted` None."""
    grad_w_s = torch.empty_like(proto_w_s) if wanted[0] else None
    grad_tau_m = torch.empty_like(proto_tau_m) if wanted[1] else None
    sizes = proto_w_s.numel() * wanted[0], proto_tau_m.numel() * wanted[1]
    args = EFFECTIVE(*sizes, 0, *constants, proto_w_s, proto_tau_m, None, *grads, None, grad_w_s, grad_tau_m)
    _launch("elm_effective_backward", -(-max(sizes) // THREADS), args, proto_w_s)
    return grad_w_s, grad_tau_m
