"""From a neuron's parameters to what runs over its steps, and their gradients: routing, synaptic weights, branch sums
and the input half of the first layer are one table.
"""

from __future__ import annotations

import math
import weakref
from functools import cache, lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import num_bytes
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._launch import Launch, address
from elm_neuro.backends.cuda._readout import num_parts

THREADS = 256
SIDE = 32  # rows or columns of a block of the gradients
MAX_SORTED_HERE = 2**17  # synapses that the CPU sorts, in 5 ms: torch would load six kernels for them on a GPU

_SIZES = "num_neuron num_input num_branch num_synapse first w1_row input neuron routing_neuron "
_LEARNING = "num_w_s num_memory_m num_tau_s low width delta_t lambda v2 "
_TABLE_BYTES = num_bytes(
    f"{_SIZES} blocks {_LEARNING} begin slot w_s w1 table proto_tau_m tau_s effective_w_s kappa_m gain kappa_b"
)
_BRANCHES_BYTES = num_bytes(
    f"{_SIZES} batch num_steps total_batch total_neuron lengths routing w_s total kappa_b b_0 b"
)
_GRADIENTS_BYTES = num_bytes(
    f"{_SIZES} batch total_batch total_neuron num_part num_group num_group_y num_memory num_output blocks_w_s "
    f"blocks_w1 blocks_tau_m {_LEARNING} routing w_s w1 kappa proto_tau_m grad_table grad_b total sums product_m "
    "product_h product_y grad_w_s grad_tau_m grad_w1 grad_kappa grad_gain grad_b2 grad_b1 grad_w2 grad_w_y grad_b_y"
)
_OUTER_BYTES = num_bytes("num_row num_part num_memory first dz memory dq hidden product_m product_h")
_EFFECTIVE_BYTES = num_bytes(f"{_LEARNING} proto_w_s proto_tau_m tau_s w_s kappa_m gain kappa_b grad_w_s grad_tau_m")


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
    def of(
        cls,
        neurons: tuple[int, ...],
        w_s: tuple[int, ...] | None,
        routing: tuple[int, ...] | None,
        w1: tuple[int, ...],
        num_input: int,
        *,
        own_input: bool,
    ) -> Sizes:
        """Of the shapes of the parameters. `own_input`: a neuron has its own input; the table is (neuron, input,
        first), else (input, neuron, first).
        """
        num_neuron, (first, row) = neurons[0] if neurons else 1, w1[-2:]
        if w_s is None:
            return cls(num_neuron, 0, 0, 0, first, row, 0, 0, 0)
        strides = (first, num_input * first) if own_input else (num_neuron * first, first)
        num_branch, num_synapse = w_s[-2:]
        per_neuron = routing is not None and len(routing) == 3 and routing[0] > 1
        of_routing = num_branch * num_synapse * per_neuron
        return cls(num_neuron, num_input, num_branch, num_synapse, first, row, *strides, of_routing)


class Sorted(NamedTuple):
    """What :func:`synapses_by_input` found."""

    routing: weakref.ref[Tensor]
    version: int | None
    num_input: int
    found: tuple[Tensor, Tensor]


_sorted: dict[int, Sorted] = {}  # by id; torch's dictionary with weak keys takes as long to ask as two launches


def synapses_by_input(routing: Tensor, num_input: int) -> tuple[Tensor, Tensor]:
    """Synapses of each input: where they begin, (num_routing, num_input + 1), and their numbers, (num_routing, branch *
    synapse), in order; empty slots come before. Computed and looked at once for a routing, a constant of its neuron:
    looking waits for the device.

    Raises:
        ValueError: a slot is routed to an input that is not there.
    """
    now = None if routing.is_inference() else routing._version  # what inference writes to, nobody counts
    known = _sorted.get(id(routing))
    if known is not None and known.routing() is routing and known[1:3] == (now, num_input):
        return known.found
    found = _sorted_by_input(routing, num_input)
    forget = partial(_forget, id(routing))
    _sorted[id(routing)] = Sorted(weakref.ref(routing, forget), now, num_input, found)
    return found


def _forget(key: int, _: object) -> None:
    _sorted.pop(key, None)


def _sorted_by_input(routing: Tensor, num_input: int) -> tuple[Tensor, Tensor]:
    flat = routing.reshape(-1 if routing.ndim == 3 else 1, routing.shape[-2] * routing.shape[-1])
    flat = flat.cpu() if flat.numel() <= MAX_SORTED_HERE else flat
    inputs, slot = torch.sort(flat, dim=-1, stable=True)
    if flat.numel() and int(inputs[:, -1].max()) >= num_input:
        raise ValueError(f"routing must hold inputs below {num_input}, -1 where a slot is empty")
    bounds = torch.arange(num_input + 1, device=flat.device).expand(flat.shape[0], -1).contiguous()
    found = torch.searchsorted(inputs, bounds).to(routing.device), slot.to(routing.device)
    _driver.written(routing)
    return found


Constants = tuple[int, ...]  # low, width, delta_t, lambda (the bits of float64) and v2 of weights.cuh
Shape = tuple[int, ...]
NONE: Shape = (0,)


class Learning(NamedTuple):
    """Between what a neuron learns and what is effective; the order is that of weights.cuh."""

    num_w_s: int = 0  # synaptic weights; 0: they are effective already
    num_memory: int = 0
    num_tau_s: int = 0
    low: int = 0  # the bits of float64 numbers
    width: int = 0
    delta_t: int = 0
    lambda_: int = 0
    v2: int = 0

    @classmethod
    def of(cls, w_s: Shape, kappa: Shape, tau_s: Shape, constants: Constants) -> Learning:
        """Of the shapes of what is learned and of tau_s; what has no entries is left alone."""
        return cls(math.prod(w_s), math.prod(kappa), math.prod(tau_s), *constants)


def first_table(dtype: torch.dtype, sizes: Sizes, learning: Learning) -> Launch:
    """What an event of each input adds to the first layer's outputs, (num_input, num_neuron * first), or with an input
    a neuron (num_neuron, num_input, first), and what is effective of what is learned.

    Its addresses are of the two of :func:`synapses_by_input` or none, of w_s, w1 and the table; where something is
    learned of proto_tau_m and tau_s, and of what becomes of w_s, kappa, gain and kappa_b.
    """
    blocks = -(-sizes.num_input * sizes.num_neuron * sizes.first // THREADS)
    grid = blocks + -(-max(learning[:3]) // THREADS), 1
    return Launch(program(dtype), "elm_table", grid, THREADS, _TABLE_BYTES, (*sizes, blocks, *learning))


def branch_traces(dtype: torch.dtype, sizes: Sizes, batch: int, num_steps: int, total: tuple[int, int]) -> Launch:
    """Branch traces at each sample's end, (batch, [num_neuron,] num_branch), from the discounted sum of its input:
    addresses of lengths or none, routing or none, w_s, the sum, kappa_b, b_0 or none, and the traces.

    Args:
        dtype: of the numbers.
        sizes: of the neuron.
        batch: number of samples.
        num_steps: of the sequence.
        total: strides of the sum, of a sample and of a neuron.
    """
    lanes, kernel = (1, "elm_branches_of_one") if sizes.num_synapse < SIDE else (SIDE, "elm_branches")
    grid = -(-batch * sizes.num_neuron * sizes.num_branch * lanes // THREADS), 1
    return Launch(program(dtype), kernel, grid, THREADS, _BRANCHES_BYTES, (*sizes, batch, num_steps, *total))


def outer(dtype: torch.dtype, num_neuron: int, num_row: int, num_memory: int, first: int) -> Launch:
    """Products over parts of the rows, (sample, step), of the weights between memory and first layer, (num_neuron *
    part, first, num_memory), and of the layer after it, (num_neuron * part, num_memory, first), in one launch: for
    small ones.

    Its addresses are of dz, (num_neuron, num_row, first); memory, (num_neuron, num_row, num_memory); where there is a
    layer after the first dq, shape of memory, and hidden, shape of dz; the two products.
    """
    num_part = num_parts(num_row)
    numbers = num_row, num_part, num_memory, first
    return Launch(program(dtype), "elm_outer", (num_part, num_neuron), THREADS, _OUTER_BYTES, numbers)


class Sums(NamedTuple):
    """What :func:`gradients` adds up."""

    num_table: int  # parts of the table's gradient; 0 where there is no table
    num_product: int  # groups of the products of the layers' weights, for each neuron
    num_readout: int  # of the readout's; 0 where it has no gradient
    num_memory: int
    num_output: int  # 0 where the readout has no gradient
    deep: bool  # whether there is a layer after the first
    of_bias: bool  # whether the readout's products have a last column of the bias


def gradients(
    dtype: torch.dtype, sizes: Sizes, batch: int, total: tuple[int, int], sums: Sums, learning: Learning
) -> Launch:
    """All that is left of the backward pass.

    Its addresses are of routing, w_s, w1, kappa, proto_tau_m or none, the parts of the table's gradient, grad_b, the
    input's sum, the sums over steps of each sample, the products of w1's memory half, the next layer and the readout,
    (num_neuron * group, out, in); and of the gradients: w_s and proto_tau_m, as they are learned where something is,
    w1, kappa, gain, the biases of the next layer and the first, w2, w_y, and b_y where its sums come with the products.
    """
    num_neuron, first, num_memory = sizes.num_neuron, sizes.first, sums.num_memory
    has_table = sizes.num_branch > 0
    blocks_w_s = -(-num_neuron * sizes.num_branch * sizes.num_synapse * SIDE // THREADS)
    blocks_w1 = num_neuron * sizes.num_branch * -(-first // SIDE) if has_table else 0
    blocks_tau_m = -(-learning.num_memory // SIDE)
    columns = 3 * num_memory + first + first * num_memory * (2 if sums.deep else 1)
    columns += sums.num_output * (num_memory + sums.of_bias)
    numbers = (
        *sizes, batch, *total, sums.num_table, sums.num_product, sums.num_readout, num_memory, sums.num_output,
        blocks_w_s, blocks_w1, blocks_tau_m, *learning,
    )  # fmt: skip
    grid = blocks_w_s + blocks_w1 + blocks_tau_m + -(-num_neuron * columns // SIDE), 1
    shared = THREADS * dtype.itemsize
    return Launch(program(dtype), "elm_gradients", grid, THREADS, _GRADIENTS_BYTES, numbers, shared)


@lru_cache(maxsize=256)
def effective(dtype: torch.dtype, of: Learning, *, backward: bool = False) -> Launch:
    """Rectified weights, decay factor and gain of the memory, decay factor of the synapses, or their gradients.

    Its addresses are of proto_w_s, proto_tau_m and tau_s; w_s, kappa_m, gain and kappa_b, backward the gradients of the
    first three, none where there are none; backward the gradients of proto_w_s and proto_tau_m.
    """
    kernel = "elm_effective_backward" if backward else "elm_effective"
    return Launch(program(dtype), kernel, (-(-max(of[:3]) // THREADS), 1), THREADS, _EFFECTIVE_BYTES, of)


def effective_forward(
    proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, constants: Constants
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rectified weights, decay factor and gain of the memory, decay factor of the synapses, in one launch.

    Args:
        proto_w_s: weights before they are rectified; all tensors are contiguous.
        proto_tau_m: unbounded time constants.
        tau_s: in ms.
        constants: of the kernel.
    """
    w_s, kappa_m, kappa_b = torch.empty_like(proto_w_s), torch.empty_like(proto_tau_m), torch.empty_like(tau_s)
    gain = torch.empty_like(proto_tau_m)
    effective(proto_w_s.dtype, Learning.of(proto_w_s.shape, proto_tau_m.shape, tau_s.shape, constants))(
        _driver.launcher().queue(proto_w_s.device), proto_w_s.data_ptr(), proto_tau_m.data_ptr(), tau_s.data_ptr(),
        w_s.data_ptr(), kappa_m.data_ptr(), gain.data_ptr(), kappa_b.data_ptr(), 0, 0,
    )  # fmt: skip
    return w_s, kappa_m, gain, kappa_b


def effective_backward(
    proto_w_s: Tensor,
    proto_tau_m: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
    constants: Constants,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `proto_w_s` and `proto_tau_m` from those of w_s, kappa_m and gain; of those not `wanted` None."""
    grad_w_s = torch.empty_like(proto_w_s) if wanted[0] else None
    grad_tau_m = torch.empty_like(proto_tau_m) if wanted[1] else None
    w_s, kappa = (proto.shape if want else NONE for proto, want in zip((proto_w_s, proto_tau_m), wanted, strict=True))
    effective(proto_w_s.dtype, Learning.of(w_s, kappa, NONE, constants), backward=True)(
        _driver.launcher().queue(proto_w_s.device), proto_w_s.data_ptr(), proto_tau_m.data_ptr(), 0,
        *map(address, grads), 0, address(grad_w_s), address(grad_tau_m),
    )  # fmt: skip
    return grad_w_s, grad_tau_m
