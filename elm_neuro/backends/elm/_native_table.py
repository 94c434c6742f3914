"""The first layer as a table, compiled: what one spike of an input adds to the hidden units, through all synapses that it reaches."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.native import _library
from elm_neuro.backends.parts._once import differentiable_once
from elm_neuro.functional import branch_matrix


def first_layer(weight: Tensor, w_s: Tensor, routing: Tensor | None, num_input: int) -> tuple[Tensor, Tensor]:
    """The table and the memory's part of the first layer.

    Args:
        weight: of the first layer, ([num_neuron,] hidden, num_branch + num_memory).
        w_s: synaptic weights, ([num_neuron,] num_branch, num_synapse_per_branch).
        routing: as in :class:`elm_neuro.functional.ELMParameters`.
        num_input: number of inputs.

    Returns:
        Table, (num_neuron or 1, num_input, hidden), in padded rows; weight of the memory, ([num_neuron,] hidden,
        num_memory).
    """
    if torch.compiler.is_compiling():
        num_branch = w_s.shape[-2]
        from_branch = weight[..., :num_branch].mT
        table = from_branch * w_s if routing is None else branch_matrix(w_s, routing, num_input).mT @ from_branch
        return table if table.ndim == 3 else table.unsqueeze(0), weight[..., num_branch:]
    table, w_m = _FirstLayer.apply(weight, w_s, routing, num_input)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return table, w_m


class _FirstLayer(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, w_s: Tensor, routing: Tensor | None, num_input: int) -> tuple[Tensor, Tensor]:
        weight, w_s, routing = weight.contiguous(), w_s.contiguous(), None if routing is None else routing.contiguous()
        args = _arguments(weight, w_s, routing, num_input)
        table = padded_table(weight, args.num_neuron, num_input, args.hidden, zero=routing is not None)
        w_m = weight.new_empty(*weight.shape[:-1], args.num_memory)
        args.table, args.w_m = table.data_ptr(), w_m.data_ptr()
        _call(_library.library().elm_table_forward, weight, args)
        ctx.num_input = num_input
        ctx.save_for_backward(weight, w_s, routing)
        return table, w_m

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_table: Tensor, grad_w_m: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, w_s, routing = ctx.saved_tensors
        args = _arguments(weight, w_s, routing, ctx.num_input)
        grad_table, grad_w_m = with_padded_rows(grad_table), grad_w_m.contiguous()
        grad_weight, grad_w_s = torch.empty_like(weight), torch.empty_like(w_s)
        args.grad_table, args.grad_w_m = grad_table.data_ptr(), grad_w_m.data_ptr()
        args.grad_weight, args.grad_w_s = grad_weight.data_ptr(), grad_w_s.data_ptr()
        _call(_library.library().elm_table_backward, weight, args)
        return grad_weight, grad_w_s, None, None


def _arguments(weight: Tensor, w_s: Tensor, routing: Tensor | None, num_input: int) -> _library.TableArgs:
    num_neuron, (num_branch, num_synapse) = weight.shape[0] if weight.ndim == 3 else 1, w_s.shape[-2:]
    hidden, num_memory = weight.shape[-2], weight.shape[-1] - num_branch
    row = _library.padded(weight.dtype, hidden)
    own = routing is not None and routing.ndim == 3
    args = _library.TableArgs(
        num_neuron, hidden, num_input, num_branch, num_synapse, num_memory, row, num_branch * num_synapse if own else 0
    )
    args.weight, args.w_s, args.routing = weight.data_ptr(), w_s.data_ptr(), _library.address(routing)
    return args


def _call(call: Any, weight: Tensor, args: _library.TableArgs) -> None:
    if call(weight.dtype == torch.float64, _library.threads_for(weight.numel()), ctypes.byref(args)):
        raise MemoryError(f"no memory for a row of {args.hidden} hidden units")


def padded_table(like: Tensor, num_neuron: int, num_input: int, hidden: int, *, zero: bool = False) -> Tensor:
    """A table (num_neuron, num_input, hidden) in rows of whole vectors; the padding holds zeros."""
    row = _library.padded(like.dtype, hidden)
    shape = num_neuron, num_input, row
    base = like.new_zeros(shape) if zero or row != hidden else like.new_empty(shape)
    return base[..., :hidden]


def with_padded_rows(table: Tensor) -> Tensor:
    """`table` itself where it lies as :func:`padded_table` lays it, else a copy that does."""
    num_neuron, num_input, hidden = table.shape
    row = _library.padded(table.dtype, hidden)
    room = table.untyped_storage().nbytes() // table.element_size() - table.storage_offset()
    strides = [stride for stride, size in zip(table.stride(), table.shape, strict=True) if size > 1]
    expected = [stride for stride, size in zip((num_input * row, row, 1), table.shape, strict=True) if size > 1]
    if strides == expected and room >= num_neuron * num_input * row:
        return table
    return padded_table(table, num_neuron, num_input, hidden).copy_(table)
