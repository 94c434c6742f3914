"""How arrays lie in memory that the native kernels read: contiguous rows, tables in rows of whole vectors."""

from __future__ import annotations

from torch import Tensor

from elm_neuro.backends.native import _library


def rows(tensor: Tensor) -> Tensor:
    """`tensor`, its rows contiguous; what is expanded, as the gradient of a sum is, stays one row in memory."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    shape, stride = tensor.shape, tensor.stride()
    once = [
        size if step or axis == len(shape) - 1 else 1
        for axis, (size, step) in enumerate(zip(shape, stride, strict=True))
    ]
    return tensor.as_strided(once, stride).contiguous().expand(shape)


def strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, time and neuron."""
    stride = tensor.stride()
    return stride[0], stride[1], stride[2] if len(stride) == 4 else 0


def padded_table(like: Tensor, num_neuron: int, num_input: int, hidden: int, *, zero: bool = False) -> Tensor:
    """A table (num_neuron, num_input, hidden) in rows of whole vectors; the padding holds zeros."""
    row = _library.padded(like.dtype, hidden)
    shape = num_neuron, num_input, row
    base = like.new_zeros(shape) if zero or row != hidden else like.new_empty(shape)
    return base if row == hidden else base[..., :hidden]


def with_padded_rows(table: Tensor) -> Tensor:
    """`table` itself where it lies as :func:`padded_table` lays it, else a copy that does."""
    num_neuron, num_input, hidden = table.shape
    row = _library.padded(table.dtype, hidden)
    room = table.untyped_storage().nbytes() // table.element_size() - table.storage_offset()
    if room >= num_neuron * num_input * row:
        if table.stride() == (num_input * row, row, 1):
            return table
        expected = (num_input * row, row, 1)
        if all(size == 1 or a == b for a, b, size in zip(table.stride(), expected, table.shape, strict=True)):
            return table
    return padded_table(table, num_neuron, num_input, hidden).copy_(table)
