"""What arrives at a neuron as frames of bytes, uint8 or int8: read as they are, without a copy in floats.

Products are in the table's dtype, float32 or float64, exact but for rounding: neither TF32 nor autocast lowers them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._input import rows_of
from elm_neuro.backends.parts._twice import differentiable_once

THREADS = 256
TILE_ROWS, TILE_COLUMNS, TILE_TERMS = 64, 32, 32
MAX_PARTS = 8  # of the rows, in the backward pass
ROWS_OF_PART = 256  # at least
MAX_GRID = 65535

MULTIPLY, _MULTIPLY_BYTES = structure("num_row num_steps num_input num_part width x_batch x_time sign x factor out")
DISCOUNT, _DISCOUNT_BYTES = structure("num_steps num_input x_batch x_time sign lengths kappa x total")


@cache
def program(dtype: torch.dtype) -> Program:
    """The source of these kernels for numbers of this type."""
    double = dtype == torch.float64
    return Program(
        "bytes.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_BYTES_BYTES", _MULTIPLY_BYTES),
            ("ELM_BYTES_DISCOUNTBYTES", _DISCOUNT_BYTES),
        ),
    )


def multiply(x: Tensor, table: Tensor) -> Tensor:
    """Products of frames with a table, (batch, time, [num_neuron,] width): of (batch, time, num_input) with (num_input,
    width), or with a table for each neuron (batch, time, num_neuron, num_input) with (num_neuron, num_input, width).
    """
    out = table.new_empty(*x.shape[:-1], table.shape[-1])
    return _multiply("elm_multiply_bytes", x, table, out, x.shape[0] * x.shape[1], 1)


def num_parts(num_row: int, num_neuron: int) -> int:
    """In how many parts :func:`multiply_inputs` gives its sums."""
    return max(1, min(MAX_PARTS, num_row // ROWS_OF_PART, MAX_GRID // num_neuron))


def multiply_inputs(x: Tensor, flow: Tensor) -> Tensor:
    """Gradient of the table from that of :func:`multiply`'s result, in parts to be added up: (num_part, [num_neuron,]
    num_input, width).
    """
    num_part = num_parts(x.shape[0] * x.shape[1], x.shape[2] if x.ndim == 4 else 1)
    out = flow.new_empty(num_part, *x.shape[2:], flow.shape[-1])
    return _multiply("elm_multiply_bytes_inputs", x, flow.contiguous(), out, x.shape[-1], num_part)


def _multiply(kernel: str, x: Tensor, factor: Tensor, out: Tensor, num_out: int, num_part: int) -> Tensor:
    flat, (width, num_input) = rows_of(x), (factor.shape[-1], x.shape[-1])
    args = MULTIPLY(
        x.shape[0] * x.shape[1], x.shape[1], num_input, num_part, width, flat.stride(0), flat.stride(1), _sign(x), flat,
        factor, out,
    )  # fmt: skip
    grid = -(-num_out // TILE_ROWS) * -(-width // TILE_COLUMNS), num_part * (x.shape[2] if x.ndim == 4 else 1)
    shared = TILE_TERMS * (TILE_ROWS + 1 + TILE_COLUMNS) * factor.element_size()
    if out.numel():
        _driver.launch(program(factor.dtype), kernel, grid, THREADS, shared, args, factor.device)
    return out


def discounted_sum(x: Tensor, dtype: torch.dtype, kappa: int, lengths: Tensor | None, total: int) -> None:
    """As :func:`elm_neuro.backends.cuda._input.discounted_sum`, of frames of bytes; `kappa` and `total`, the sum,
    (batch, [num_neuron,] num_input), are addresses of numbers of this dtype.
    """
    flat = rows_of(x)
    batch, num_steps, num_input = flat.shape
    args = DISCOUNT(num_steps, num_input, flat.stride(0), flat.stride(1), _sign(x), lengths, kappa, flat, total)
    grid = batch, -(-num_input // THREADS)
    _driver.launch(program(dtype), "elm_discount_bytes", grid, THREADS, 0, args, x.device)


def _sign(x: Tensor) -> int:
    """What the kernels exchange the sign by."""
    return 128 if x.dtype == torch.int8 else 0


class _Projection(Function):
    """A product with bytes by itself, for what does not run in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return multiply(x, table.contiguous())

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, multiply_inputs(x, grad).sum(0)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """As :func:`elm_neuro.backends.parts._projection.project`, of bytes; `weight` is ([num_neuron,] channel, input)."""
    if x.ndim == 3 and weight.ndim == 3:
        flat: Tensor = _Projection.apply(x, weight.flatten(0, 1).mT)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return flat.view(*x.shape[:2], *weight.shape[:2])
    projected: Tensor = _Projection.apply(x, weight.mT)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return projected
