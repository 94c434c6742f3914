"""The readout of every step where outputs are few: one launch a direction, which takes the host less than the products
of cuBLAS, the sums and the views that it stands for.
"""

from __future__ import annotations

from functools import cache

import torch

from elm_neuro.backends.cuda._arguments import num_bytes
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._launch import Launch

THREADS = 256
MAX_OUTPUT = 8  # beyond them cuBLAS
MAX_PARTS = 512  # of the rows, (sample, step), whose products are computed side by side
ROWS = 32  # of a part, where there are not more

_SIZES = "batch num_steps num_neuron num_output num_memory "
_READOUT_BYTES = num_bytes(f"{_SIZES} lengths memory w_y b_y y")
_BACKWARD_BYTES = num_bytes(
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


def readout(dtype: torch.dtype, sizes: tuple[int, int, int, int, int]) -> Launch:
    """Output of every step, 0 past a sample's end, of batch, num_steps, num_neuron, num_output and num_memory.

    Its addresses are of lengths, (batch,) or none; of memory, (num_neuron, batch, time, num_memory); of the weight,
    ([num_neuron,] output, num_memory), and the bias; of the output, (batch, time, [num_neuron,] output).
    """
    batch, num_steps, num_neuron, num_output, _ = sizes
    grid = -(-batch * num_steps * num_neuron * num_output // THREADS), 1
    return Launch(program(dtype), "elm_readout", grid, THREADS, _READOUT_BYTES, sizes)


def readout_backward(dtype: torch.dtype, sizes: tuple[int, int, int, int, int]) -> Launch:
    """Gradient of the memory, and products over parts of the rows, to be added up: (num_neuron * part, output,
    num_memory + 1), of the weight and in the last column of the bias.

    It takes the strides of the output's gradient, batch, time, neuron and output; then addresses of lengths, memory,
    weight, gradient of the output, gradient of the memory and products.
    """
    batch, num_steps, num_neuron, *_ = sizes
    num_part = num_parts(batch * num_steps)
    grid, numbers = (num_part, num_neuron), (*sizes, num_part)
    shared_bytes = THREADS * dtype.itemsize
    return Launch(program(dtype), "elm_readout_backward", grid, THREADS, _BACKWARD_BYTES, numbers, shared_bytes)
