"""The readout of every step where outputs are few: one launch a direction, which takes the host less than the products
of cuBLAS, the sums and the views that it stands for.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import structure
from elm_neuro.backends.cuda._compile import Program

THREADS = 256
MAX_OUTPUT = 8  # beyond them cuBLAS
MAX_PARTS = 256  # of the rows, (sample, step), whose products are computed side by side
ROWS = 32  # of a part, where there are not more

_SIZES = "batch num_steps num_neuron num_output num_memory "
READOUT, _READOUT_BYTES = structure(f"{_SIZES} lengths memory w_y b_y y")
BACKWARD, _BACKWARD_BYTES = structure(
    f"{_SIZES} num_part grad_batch grad_time grad_neuron grad_output lengths memory w_y grad_y grad_memory product"
)


@cache
def program(dtype: torch.dtype) -> Program:
    """The source of these kernels for numbers of this type."""
    double = dtype == torch.float64
    return Program(
        "readout.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_BYTES_READOUT", _READOUT_BYTES),
            ("ELM_BYTES_READOUTBACKWARD", _BACKWARD_BYTES),
        ),
    )


def num_parts(rows: int) -> int:
    """In how many parts the products over so many rows are computed."""
    return min(MAX_PARTS, -(-rows // ROWS))


def readout(memory: Tensor, w_y: Tensor, b_y: Tensor, lengths: Tensor | None) -> Tensor:
    """Output of every step, (batch, time, [num_neuron,] output), 0 past a sample's end.

    Args:
        memory: of every step, (num_neuron, batch, time, num_memory), contiguous as the others are.
        w_y: ([num_neuron,] output, num_memory).
        b_y: ([num_neuron,] output).
        lengths: valid steps of each sample, (batch,), or None.
    """
    num_neuron, batch, num_steps, num_memory = memory.shape
    y = memory.new_empty(batch, num_steps, *b_y.shape)
    sizes = batch, num_steps, num_neuron, b_y.shape[-1], num_memory
    grid = -(-batch * num_steps * num_neuron * sizes[3] // THREADS), 1
    args = READOUT(*sizes, lengths, memory, w_y, b_y, y)
    _driver.launcher().launch(program(memory.dtype), "elm_readout", grid, THREADS, 0, args, memory.device)
    return y


def readout_backward(grad_y: Tensor, memory: Tensor, w_y: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradient of the memory, and products over parts of the rows, to be added up: (num_neuron * part, output,
    num_memory + 1), of the weight and in the last column of the bias. `grad_y` may have any strides.
    """
    num_neuron, batch, num_steps, num_memory = memory.shape
    num_output, rows = w_y.shape[-2], batch * num_steps
    num_part = num_parts(rows)
    grad_memory = torch.empty_like(memory)
    product = memory.new_empty(num_neuron * num_part, num_output, num_memory + 1)
    stride = grad_y.stride()
    strides = (*stride[:2], stride[2] if grad_y.ndim == 4 else 0, stride[-1])
    sizes = batch, num_steps, num_neuron, num_output, num_memory
    args = BACKWARD(*sizes, num_part, *strides, lengths, memory, w_y, grad_y, grad_memory, product)
    grid = num_part, num_neuron
    _driver.launcher().launch(program(memory.dtype), "elm_readout_backward", grid, THREADS, 0, args, memory.device)
    return grad_memory, product
