"""The first layer by the native kernels: as a table of what one spike of an input adds to the hidden units, through all
synapses that it reaches; and what all input of a sequence leaves on the branches.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.native import _library
from elm_neuro.backends.native._rows import padded_table, with_padded_rows
from elm_neuro.backends.parts._once import differentiable_once
from elm_neuro.functional import branch_input, branch_matrix


def first_layer(weight: Tensor, w_s: Tensor, routing: Tensor | None, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The table, the memory's part of the first layer, and the branch sums.

    Args:
        weight: of the first layer, ([num_neuron,] hidden, num_branch + num_memory).
        w_s: synaptic weights, ([num_neuron,] num_branch, num_synapse_per_branch).
        routing: as in :class:`elm_neuro.functional.ELMParameters`.
        total: input summed over time, (batch, input_size) or (batch, num_neuron, input_size).

    Returns:
        Table, (num_neuron or 1, input_size, hidden), in padded rows; weight of the memory, ([num_neuron,] hidden,
        num_memory); what `total` adds up to on the branches, (batch, [num_neuron,] num_branch).
    """
    if torch.compiler.is_compiling():
        num_branch = w_s.shape[-2]
        from_branch = weight[..., :num_branch].mT
        table = from_branch * w_s if routing is None else branch_matrix(w_s, routing, total.shape[-1]).mT @ from_branch
        own = total if w_s.ndim == 2 or total.ndim == 3 else total.unsqueeze(1).expand(-1, w_s.shape[0], -1)
        arrived = branch_input(own, w_s, routing)
        return table if table.ndim == 3 else table.unsqueeze(0), weight[..., num_branch:], arrived
    if not torch.is_grad_enabled():
        return _forward(*_laid_out(weight, w_s, routing, total))
    table, w_m, arrived = _FirstLayer.apply(weight, w_s, routing, total)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return table, w_m, arrived


def branch_sums(w_s: Tensor, routing: Tensor | None, total: Tensor) -> Tensor:
    """Only the branch sums, (batch, [num_neuron,] num_branch), which torch does not differentiate; arguments as for
    :func:`first_layer`.
    """
    w_s, routing, total = w_s.contiguous(), None if routing is None else routing.contiguous(), total.contiguous()
    args = _arguments(None, w_s, routing, total)
    arrived = w_s.new_empty(total.shape[0], *w_s.shape[:-1])
    args.arrived = arrived.data_ptr()
    _call(_library.library().elm_table_forward, w_s, args)
    return arrived


def backward_of_sums(
    w_s: Tensor, routing: Tensor | None, total: Tensor, grad_arrived: Tensor, *, wants_total: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `w_s` and, if wanted, of `total` in :func:`branch_sums`."""
    w_s, routing, total = w_s.contiguous(), None if routing is None else routing.contiguous(), total.contiguous()
    return _backward_of_sums(_arguments(None, w_s, routing, total), w_s, total, grad_arrived, wants_total=wants_total)


class _FirstLayer(Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, w_s: Tensor, routing: Tensor | None, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        operands = _laid_out(weight, w_s, routing, total)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        return _forward(*operands)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any, grad_table: Tensor | None, grad_w_m: Tensor | None, grad_arrived: Tensor | None
    ) -> tuple[Tensor | None, Tensor, None, Tensor | None]:
        weight, w_s, routing, total = ctx.saved_tensors
        args = _arguments(weight, w_s, routing, total)
        grad_weight: Tensor | None = None
        if grad_table is None and grad_w_m is not None:
            grad_table = padded_table(weight, args.num_neuron, args.num_input, args.hidden, zero=True)
        if grad_table is not None:
            grad_table = with_padded_rows(grad_table)
            grad_w_m = weight.new_zeros(*weight.shape[:-1], args.num_memory) if grad_w_m is None else grad_w_m
            grad_weight, grad_w_m = torch.empty_like(weight), grad_w_m.contiguous()
            args.grad_table, args.grad_w_m = grad_table.data_ptr(), grad_w_m.data_ptr()
            args.grad_weight = grad_weight.data_ptr()
        grad_w_s, grad_total = _backward_of_sums(args, w_s, total, grad_arrived, wants_total=ctx.needs_input_grad[3])
        return grad_weight, grad_w_s, None, grad_total


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


def _laid_out(
    weight: Tensor, w_s: Tensor, routing: Tensor | None, total: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The operands as the kernels read them."""
    return weight.contiguous(), w_s.contiguous(), None if routing is None else routing.contiguous(), total.contiguous()


def _forward(weight: Tensor, w_s: Tensor, routing: Tensor | None, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    args = _arguments(weight, w_s, routing, total)
    table = padded_table(weight, args.num_neuron, args.num_input, args.hidden, zero=routing is not None)
    w_m = weight.new_empty(*weight.shape[:-1], args.num_memory)
    arrived = weight.new_empty(total.shape[0], *w_s.shape[:-1])
    args.table, args.w_m, args.arrived = table.data_ptr(), w_m.data_ptr(), arrived.data_ptr()
    _call(_library.library().elm_table_forward, weight, args)
    return table, w_m, arrived


def _arguments(weight: Tensor | None, w_s: Tensor, routing: Tensor | None, total: Tensor) -> _library.TableArgs:
    num_neuron = w_s.shape[0] if w_s.ndim == 3 else 1
    num_branch, num_synapse = w_s.shape[-2:]
    hidden, width = (0, num_branch) if weight is None else weight.shape[-2:]
    batch, num_input = total.shape[0], total.shape[-1]
    routing_neuron = num_branch * num_synapse if routing is not None and routing.ndim == 3 else 0
    args = _library.TableArgs(
        num_neuron, hidden, num_input, num_branch, num_synapse, width - num_branch,
        _library.padded(w_s.dtype, hidden), routing_neuron, batch, num_input if total.ndim == 3 else 0,
    )  # fmt: skip
    args.weight, args.w_s, args.routing = _library.address(weight), w_s.data_ptr(), _library.address(routing)
    args.total = total.data_ptr()
    return args


def _call(call: _library.Call, weight: Tensor, args: _library.TableArgs) -> None:
    """`weight`, the first layer's or the synapses', says the dtype and about how much work it is."""
    if call(weight.dtype == torch.float64, _library.threads_for(weight.numel()), ctypes.byref(args)):
        raise MemoryError(f"no memory for a row of {args.hidden} hidden units")
