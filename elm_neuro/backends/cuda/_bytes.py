"""What arrives at a neuron as frames of bytes, uint8 or int8: read as they are, without a copy in floats.

Products are in the table's dtype, float32 or float64, exact but for rounding: neither TF32 nor autocast lowers them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import num_bytes, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._input import rows_of
from elm_neuro.backends.cuda._launch import Launch
from elm_neuro.backends.parts._traced import run_traced
from elm_neuro.backends.parts._twice import differentiable_once

THREADS = 256
DOWN, ACROSS = 8, 4  # threads of a warp, which computes all columns of its rows
MAX_OWN_COLUMNS = 10  # of a thread, an even number: pairs are read
MAX_PARTS = 64  # of the rows, in the backward pass
ROWS_OF_PART = 128  # at least
MAX_TERMS = 2**30  # of a part: they are counted in 32 bits
MAX_GRID = 65535

# Cycles of a multiprocessor, counted: four instructions of warps, or 128 bytes from or to shared memory.
ISSUED, SHARED_BYTES = 4, 128
OF_TERM = 4  # instructions of a warp besides products and loads
OF_TILE, OF_WORD = 45, 25  # and for a tile; to fill the next one with bytes
WAIT = 400  # of a tile for barriers and loads
BLOCK = 4000  # before the first tile and after the last
PART, ADDED = 100, 600  # of a part where parts are added up; bytes a cycle of its sums, written here and read there

_MULTIPLY_BYTES = num_bytes(
    "num_row num_neuron num_input num_part width share factor_row out_row num_steps x_batch x_time sign x factor out"
)
DISCOUNT, _DISCOUNT_BYTES = structure("num_steps num_input x_batch x_time sign lengths kappa x total")


class Tile(NamedTuple):
    """What a block computes, term by term: rows of a product and columns of it."""

    own_rows: int  # of a thread
    own_columns: int
    warps: int = 8
    warps_down: int = 1  # of them, that share the rows; the terms are shared among as many as that leaves

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def terms(self) -> int:
        return 4 * self.warps

    @property
    def rows(self) -> int:
        return self.warps_down * DOWN * self.own_rows

    @property
    def columns(self) -> int:
        return ACROSS * self.own_columns

    def shared_bytes(self, itemsize: int) -> int:
        """Of a block: two pairs of tiles; then two rows of each thread, to be added up."""
        tiles = 2 * self.terms * (self.rows + 1 + self.columns)
        return max(tiles, 2 * self.warps * DOWN * self.columns) * itemsize

    def cycles(self, num_term: int, blocks: int) -> float:
        """In which a multiprocessor works through so many blocks, of so many terms each."""
        loads, products = self.own_rows / 4 + self.own_columns / 2, self.own_rows * self.own_columns
        of_terms = (products + loads + OF_TERM) * self.terms * self.warps_down / self.warps
        of_warp = of_terms + OF_TILE + OF_WORD * self.rows / 32
        read = 32 * self.warps_down * (self.own_rows + self.own_columns) * self.terms  # numbers, by the threads
        filled = 2 * self.terms * (self.rows + self.columns)  # into shared memory, and there at all
        busy = max(of_warp * self.warps / ISSUED, 4 * (read + filled) / SHARED_BYTES)
        tiles = -(-num_term // self.terms)
        beside = 1 if self.warps > 8 else 2  # for which there are registers
        return tiles * blocks * busy + -(-blocks // beside) * (tiles * WAIT + BLOCK)


class Tiling(NamedTuple):
    """How a product is shared among blocks."""

    tile: Tile
    num_part: int  # of its terms

    def blocks(self, num_out: int, width: int) -> int:
        """Tiles of a product."""
        return -(-num_out // self.tile.rows) * -(-width // self.tile.columns)


@cache
def program(dtype: torch.dtype, tile: Tile | None = None) -> Program:
    """The source of these kernels for numbers of this type, and products in these tiles: by default the largest."""
    double = dtype == torch.float64
    tile = tile or Tile(4 if double else 8, MAX_OWN_COLUMNS)
    return Program(
        "bytes.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_BYTES_BYTES", _MULTIPLY_BYTES),
            ("ELM_BYTES_DISCOUNTBYTES", _DISCOUNT_BYTES),
            ("ELM_OWN_ROWS", tile.own_rows),
            ("ELM_OWN_COLUMNS", tile.own_columns),
            ("ELM_WARPS", tile.warps),
            ("ELM_WARPS_DOWN", tile.warps_down),
        ),
    )


@lru_cache(maxsize=256)
def tiling(
    num_out: int, num_term: int, width: int, num_neuron: int, multiprocessors: int, *, double: bool, in_parts: bool
) -> Tiling:
    """The tiling with the fewest estimated cycles.

    Args:
        num_out: rows of the product of each neuron.
        num_term: of its sums.
        width: its columns.
        num_neuron: products side by side.
        multiprocessors: of the device.
        double: whether sums are of float64, of which a thread has registers for half as many.
        in_parts: whether the sums may come in parts, to be added up elsewhere.
    """
    fewest = max(1, -(-width // (ACROSS * MAX_OWN_COLUMNS)))  # tiles across
    widest = max(2, -(-width // (fewest * ACROSS * 2)) * 2)
    least = max(1, -(-num_term // MAX_TERMS)) if in_parts else 1
    most = max(least, min(MAX_PARTS, num_term // ROWS_OF_PART, MAX_GRID // num_neuron)) if in_parts else 1

    def cycles(candidate: Tiling) -> float:
        blocks = candidate.blocks(num_out, width) * num_neuron * candidate.num_part
        of_parts = candidate.num_part * (PART + 8 * num_out * num_neuron * width / ADDED)
        num_term_of_part = -(-num_term // candidate.num_part)
        return candidate.tile.cycles(num_term_of_part, -(-blocks // multiprocessors)) + in_parts * of_parts

    kinds = ((4, 8, 1),) if double else ((8, 8, 1), (8, 8, 2), (4, 8, 1), (4, 16, 1))  # rows of a thread, warps, down
    tiles = [Tile(kind[0], columns, *kind[1:]) for kind in kinds for columns in range(widest, 0, -2)]
    return min((Tiling(tile, part) for tile in tiles for part in range(least, most + 1)), key=cycles)


class Settled(NamedTuple):
    """A product whose sizes are known.

    Attributes:
        launch: takes the strides of the rows of x, what its sign is exchanged by, and three addresses: of x, of what it
            is multiplied by, and of the product.
        num_part: in how many parts the product comes.
    """

    launch: Launch
    num_part: int


@lru_cache(maxsize=256)
def settled(
    dtype: torch.dtype, num_row: int, num_input: int, width: int, num_neuron: int, device: int, *, of_inputs: bool
) -> Settled:
    """:func:`multiply` or, `of_inputs`, :func:`multiply_inputs`.

    Args:
        dtype: of the sums.
        num_row: samples times steps.
        num_input: of a table.
        width: of a table.
        num_neuron: tables.
        device: its number.
        of_inputs: which.
    """
    multiprocessors, double = _driver.launcher().device(device).multiprocessors, dtype == torch.float64
    num_out, num_term = (num_input, num_row) if of_inputs else (num_row, num_input)
    chosen = tiling(num_out, num_term, width, num_neuron, multiprocessors, double=double, in_parts=of_inputs)
    tile, num_part = chosen
    share = -(-num_term // num_part)
    rows = (num_neuron * width, width) if of_inputs else (width, num_neuron * width)
    launch = Launch(
        program(dtype, tile),
        "elm_multiply_bytes_inputs" if of_inputs else "elm_multiply_bytes",
        (chosen.blocks(num_out, width), num_part * num_neuron),
        tile.threads,
        _MULTIPLY_BYTES,
        (num_row, num_neuron, num_input, num_part, width, share, *rows),
        tile.shared_bytes(dtype.itemsize),
    )
    return Settled(launch, num_part)


def kernels(
    dtype: torch.dtype, num_row: int, num_input: int, width: int, num_neuron: int, device: int, *, backward: bool
) -> list[tuple[Program, str]]:
    """What has to be compiled for the products of a direction; sizes as in :func:`settled`."""
    product = settled(dtype, num_row, num_input, width, num_neuron, device, of_inputs=backward).launch.kernels
    return product if backward else [*product, (program(dtype), "elm_discount_bytes")]


def multiply(x: Tensor, table: Tensor) -> Tensor:
    """Products of frames with a table, (batch, time, [num_neuron,] width): of (batch, time, num_input) with (num_input,
    width), or with a table for each neuron (batch, time, num_neuron, num_input) with (num_neuron, num_input, width).
    """
    launch, _ = settled(table.dtype, *_sizes(x, table), of_inputs=False)
    out = table.new_empty(*x.shape[:-1], table.shape[-1])
    _run(launch, x, table, out)
    return out


def multiply_inputs(x: Tensor, flow: Tensor) -> Tensor:
    """Gradient of the table from that of :func:`multiply`'s result, in parts to be added up: (num_part, [num_neuron,]
    num_input, width).
    """
    launch, num_part = settled(flow.dtype, *_sizes(x, flow), of_inputs=True)
    out = flow.new_empty(num_part, *x.shape[2:], flow.shape[-1])
    _run(launch, x, flow.contiguous(), out)
    return out


def _sizes(x: Tensor, factor: Tensor) -> tuple[int, int, int, int, int]:
    num_neuron = x.shape[2] if x.ndim == 4 else 1
    return x.shape[0] * x.shape[1], x.shape[-1], factor.shape[-1], num_neuron, x.device.index or 0


def _run(launch: Launch, x: Tensor, factor: Tensor, out: Tensor) -> None:
    flat = rows_of(x)
    launch(
        _driver.launcher().queue(x.device), *_rows(flat), _sign(x), flat.data_ptr(), factor.data_ptr(), out.data_ptr()
    )


def _rows(flat: Tensor) -> tuple[int, int, int]:
    """Steps of a sample, and how far samples and steps lie apart; rows in one piece are one sample's."""
    batch, num_steps, _ = flat.shape
    of_sample, of_step, _ = flat.stride()
    if num_steps == 1:
        return batch, 0, of_sample
    in_one_piece = batch * num_steps < 2**31 and (batch == 1 or of_sample == num_steps * of_step)
    return max(batch * num_steps if in_one_piece else num_steps, 1), of_sample, of_step


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
        x = x if x.stride(-1) == 1 else x.contiguous()  # wherever it has been kept in between
        return None, multiply_inputs(x, grad).sum(0)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """As :func:`elm_neuro.backends.parts._projection.project`, of bytes; `weight` is ([num_neuron,] channel, input)."""
    if x.ndim == 3 and weight.ndim == 3:
        return _projected(x, weight.flatten(0, 1).mT).view(*x.shape[:2], *weight.shape[:2])
    return _projected(x, weight.mT)


def _projected(x: Tensor, table: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return run_traced("cuda.bytes", [x, table], x.shape[:2], ())[0].view(*x.shape[:-1], table.shape[-1])
    projected: Tensor = _Projection.apply(x, table)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return projected
