"""The first layer by the native kernels: as a table of what one spike of an input adds to the hidden units, through all
synapses that it reaches; and what all input of a sequence leaves on the branches.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.native import _library
from elm_neuro.backends.native._rows import padded_table

OUTSIDE = 2  # status of a call, as native/library.cpp has it


class FirstLayer(NamedTuple):
    """What the table is made of, beside the first layer's weight."""

    w_s: Tensor  # synaptic weights, ([num_neuron,] num_branch, num_synapse_per_branch)
    routing: Tensor | None  # as in elm_neuro.functional.ELMParameters
    total: Tensor | None  # input summed over time, (batch, [num_neuron,] input_size); None: the pass adds it up
    b_0: Tensor | None  # branch traces before the first step, (batch, [num_neuron,] num_branch); None for zeros

    def laid_out(self) -> FirstLayer:
        """As the kernels read it."""
        w_s, routing, total, b_0 = self
        return FirstLayer(
            w_s.contiguous(),
            None if routing is None else routing.contiguous(),
            None if total is None else total.contiguous(),
            None if b_0 is None else b_0.contiguous(),
        )


def table_forward(
    weight: Tensor, w_s: Tensor, routing: Tensor | None, total: Tensor, *, rectify: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The table, (num_neuron or 1, input_size, hidden), in padded rows; the memory's part of the weight,
    ([num_neuron,] hidden, num_memory); what all input adds up to on the branches, (batch, [num_neuron,] num_branch).

    Args:
        weight: of the first layer, ([num_neuron,] hidden, num_branch + num_memory); all tensors are contiguous.
        w_s: as :class:`FirstLayer` names it, and so are the others.
        routing: likewise.
        total: likewise.
        rectify: whether `w_s` is as it is learned, to be rectified.
    """
    args = _arguments(weight, w_s, routing, total, rectify=rectify)
    table = padded_table(weight, args.num_neuron, args.num_input, args.hidden, zero=routing is not None)
    w_m = weight.new_empty(*weight.shape[:-1], args.num_memory)
    arrived = weight.new_empty(total.shape[0], *w_s.shape[:-1])
    args.table, args.w_m, args.arrived = table.data_ptr(), w_m.data_ptr(), arrived.data_ptr()
    _call(_library.library().elm_table_forward, weight, args)
    return table, w_m, arrived


def table_backward(
    weight: Tensor,
    w_s: Tensor,
    routing: Tensor | None,
    total: Tensor,
    grad_table: Tensor,
    grad_w_m: Tensor,
    grad_arrived: Tensor | None,
    *,
    rectify: bool,
    wants_total: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `weight`, of `w_s` and, if wanted, of `total`.

    Args:
        weight: as :func:`table_forward` takes it.
        w_s: likewise.
        routing: likewise.
        total: likewise.
        grad_table: in padded rows.
        grad_w_m: of the memory's part of the weight, ([num_neuron,] hidden, num_memory), contiguous.
        grad_arrived: of the branch sums; None for zeros.
        rectify: as there; the gradient of `w_s` is then that of what is learned.
        wants_total: whether `total` has a gradient.
    """
    args = _arguments(weight, w_s, routing, total, rectify=rectify)
    grad_weight = torch.empty_like(weight)
    args.grad_table, args.grad_w_m, args.grad_weight = (
        grad_table.data_ptr(),
        grad_w_m.data_ptr(),
        grad_weight.data_ptr(),
    )
    return grad_weight, *_backward_of_sums(args, w_s, total, grad_arrived, wants_total=wants_total)


def branch_sums(w_s: Tensor, routing: Tensor | None, total: Tensor, *, rectify: bool = False) -> Tensor:
    """Only the branch sums, (batch, [num_neuron,] num_branch), which torch does not differentiate; arguments as
    :func:`table_forward` takes them.
    """
    args = _arguments(None, w_s, routing, total, rectify=rectify)
    arrived = w_s.new_empty(total.shape[0], *w_s.shape[:-1])
    args.arrived = arrived.data_ptr()
    _call(_library.library().elm_table_forward, w_s, args)
    return arrived


def backward_of_sums(
    w_s: Tensor,
    routing: Tensor | None,
    total: Tensor,
    grad_arrived: Tensor,
    *,
    wants_total: bool,
    rectify: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `w_s` and, if wanted, of `total` in :func:`branch_sums`."""
    args = _arguments(None, w_s, routing, total, rectify=rectify)
    return _backward_of_sums(args, w_s, total, grad_arrived, wants_total=wants_total)


def _backward_of_sums(
    args: _library.TableArgs, w_s: Tensor, total: Tensor, grad_arrived: Tensor | None, *, wants_total: bool
) -> tuple[Tensor, Tensor | None]:
    """Call the kernel; gradients of the synaptic weights and of the input summed over time."""
    grad_arrived = None if grad_arrived is None else grad_arrived.contiguous()
    grad_w_s = torch.empty_like(w_s)
    grad_total = torch.zeros_like(total) if wants_total and grad_arrived is not None else None
    args.grad_arrived, args.grad_total = _library.address(grad_arrived), _library.address(grad_total)
    args.grad_w_s = grad_w_s.data_ptr()
    _call(_library.library().elm_table_backward, w_s, args)
    return grad_w_s, grad_total


def _arguments(
    weight: Tensor | None, w_s: Tensor, routing: Tensor | None, total: Tensor, *, rectify: bool = False
) -> _library.TableArgs:
    own = total.shape[-1] if total.ndim == 3 else 0
    args = table_arguments(weight, w_s, routing, (total.shape[0], total.shape[-1], own), rectify=rectify)
    args.total = total.data_ptr()
    return args


def table_arguments(
    weight: Tensor | None, w_s: Tensor, routing: Tensor | None, of_total: tuple[int, int, int], *, rectify: bool
) -> _library.TableArgs:
    """Arguments for sizes and weights; of the input summed over time there are batch, inputs, and their stride from
    neuron to neuron, 0 where these share it.
    """
    num_neuron = w_s.shape[0] if w_s.ndim == 3 else 1
    num_branch, num_synapse = w_s.shape[-2:]
    hidden, width = (0, num_branch) if weight is None else weight.shape[-2:]
    batch, num_input, total_neuron = of_total
    routing_neuron = num_branch * num_synapse if routing is not None and routing.ndim == 3 else 0
    args = _library.TableArgs(
        num_neuron, hidden, num_input, num_branch, num_synapse, width - num_branch,
        _library.padded(w_s.dtype, hidden), rectify, routing_neuron, batch, total_neuron,
    )  # fmt: skip
    args.weight, args.w_s, args.routing = _library.address(weight), w_s.data_ptr(), _library.address(routing)
    return args


def _call(call: _library.Call, weight: Tensor, args: _library.TableArgs) -> None:
    """`weight`, the first layer's or the synapses', says the dtype and about how much work it is."""
    status = call(weight.dtype == torch.float64, _library.threads_for(weight.numel()), ctypes.byref(args))
    if status:
        refuse_outside(status, args.num_input)
        raise MemoryError(f"no memory for a row of {args.hidden} hidden units")


def refuse_outside(status: int, num_input: int) -> None:
    """Refuse a routing that a kernel has found to lead outside of the inputs."""
    if status == OUTSIDE:
        raise ValueError(f"routing must hold inputs below {num_input}, -1 where a slot is empty; it was changed")
