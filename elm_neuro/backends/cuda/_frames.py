"""What arrives at a neuron as frames: of bytes, uint8 or int8, which are read as they are, without a copy in floats; or
of numbers, whose small products a kernel computes in less of the host's time than cuBLAS takes.

Products are in the table's dtype, float32 or float64, exact but for rounding: neither TF32 nor autocast lowers them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import num_bytes
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._driver import Queue, Run
from elm_neuro.backends.cuda._input import rows_of
from elm_neuro.backends.cuda._launch import Launch
from elm_neuro.backends.parts._bytes import holds_bytes
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
OF_TILE, OF_FOUR = 45, 25  # and for a tile; to fill the next one with four entries a thread
WAIT = 400  # of a tile for barriers and loads
BLOCK = 4000  # before the first tile and after the last
PART, ADDED = 100, 600  # of a part where parts are added up; bytes a cycle of its sums, written here and read there

# Of cuBLAS in float32, fitted to 20, 458 and 240 us measured on an H100: before and after a product, columns of a tile,
# multiply-adds a cycle of a multiprocessor; and what a launch of it takes the host beyond one of ours, 19 us.
AROUND, COLUMNS, PRODUCTS = 9000, 64, 96
SPARED = 30_000

KINDS = {  # rows of a thread, warps, of them down, by whether sums are of float64 and frames of bytes
    (False, True): ((8, 8, 1), (8, 8, 2), (4, 8, 1), (4, 16, 1)),
    (False, False): ((4, 8, 1), (4, 16, 1)),
    (True, True): ((4, 8, 1),),
    (True, False): ((4, 8, 1),),
}

_PRODUCT_BYTES = num_bytes(
    "num_row num_neuron num_input num_part width share factor_row out_row num_steps x_batch x_time sign x factor out"
)
_DISCOUNT_BYTES = num_bytes("num_steps num_input x_batch x_time sign lengths kappa x total")


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
        of_warp = of_terms + OF_TILE + OF_FOUR * self.rows / 32
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
    cycles: float = 0.0  # of the device, estimated

    def blocks(self, num_out: int, width: int) -> int:
        """Tiles of a product."""
        return -(-num_out // self.tile.rows) * -(-width // self.tile.columns)


@cache
def program(dtype: torch.dtype, tile: Tile | None = None, *, of_bytes: bool) -> Program:
    """The source of these kernels for numbers of this type, frames of them or of bytes, and products in these tiles: by
    default the largest.
    """
    double = dtype == torch.float64
    tile = tile or Tile(4 if double or not of_bytes else 8, MAX_OWN_COLUMNS)
    return Program(
        "frames.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_FRAMES_OF_BYTES", int(of_bytes)),
            ("ELM_BYTES_PRODUCT", _PRODUCT_BYTES),
            ("ELM_BYTES_DISCOUNT", _DISCOUNT_BYTES),
            ("ELM_OWN_ROWS", tile.own_rows),
            ("ELM_OWN_COLUMNS", tile.own_columns),
            ("ELM_WARPS", tile.warps),
            ("ELM_WARPS_DOWN", tile.warps_down),
        ),
    )


@lru_cache(maxsize=256)
def tiling(
    num_out: int,
    num_term: int,
    width: int,
    num_neuron: int,
    multiprocessors: int,
    *,
    double: bool,
    of_bytes: bool,
    in_parts: bool,
) -> Tiling:
    """The tiling with the fewest estimated cycles.

    Args:
        num_out: rows of the product of each neuron.
        num_term: of its sums.
        width: its columns.
        num_neuron: products side by side.
        multiprocessors: of the device.
        double: whether sums are of float64, of which a thread has registers for half as many.
        of_bytes: whether frames are of bytes; of numbers a thread has fewer registers for what it fetches.
        in_parts: whether the sums may come in parts, to be added up elsewhere.
    """
    fewest = max(1, -(-width // (ACROSS * MAX_OWN_COLUMNS)))  # tiles across
    widest = max(2, -(-width // (fewest * ACROSS * 2)) * 2)
    least = max(1, -(-num_term // MAX_TERMS)) if in_parts else 1
    most = max(least, min(MAX_PARTS, num_term // ROWS_OF_PART, MAX_GRID // num_neuron)) if in_parts else 1

    def estimated(tile: Tile, num_part: int) -> Tiling:
        tiles = Tiling(tile, num_part)
        blocks = tiles.blocks(num_out, width) * num_neuron * num_part
        of_parts = num_part * (PART + 8 * num_out * num_neuron * width / ADDED)
        cycles = tile.cycles(-(-num_term // num_part), -(-blocks // multiprocessors))
        return tiles._replace(cycles=cycles + in_parts * of_parts)

    kinds = KINDS[double, of_bytes]
    tiles = [Tile(kind[0], columns, *kind[1:]) for kind in kinds for columns in range(widest, 0, -2)]
    candidates = [estimated(tile, part) for tile in tiles for part in range(least, most + 1)]
    return min(candidates, key=lambda candidate: candidate.cycles)


class Settled(NamedTuple):
    """A product whose sizes are known.

    Attributes:
        launch: takes the strides of the rows of x, what its sign is exchanged by, and three addresses: of x, of what it
            is multiplied by, and of the product.
        num_part: in how many parts the product comes.
        pays: whether it takes no longer than cuBLAS: the device, by an estimate, less what it spares the host.
    """

    launch: Launch
    num_part: int
    pays: bool


class Sizes(NamedTuple):
    """Of a product of frames with tables."""

    num_row: int  # samples times steps
    num_input: int  # of a table
    width: int  # of a table
    num_neuron: int  # tables
    of_bytes: bool
    device: int  # its number


@lru_cache(maxsize=256)
def settled(dtype: torch.dtype, sizes: Sizes, *, of_inputs: bool) -> Settled:
    """:func:`multiply` in this dtype or, `of_inputs`, :func:`multiply_inputs`."""
    num_row, num_input, width, num_neuron, of_bytes, device = sizes
    multiprocessors, double = _driver.launcher().device(device).multiprocessors, dtype == torch.float64
    num_out, num_term = (num_input, num_row) if of_inputs else (num_row, num_input)
    chosen = tiling(
        num_out, num_term, width, num_neuron, multiprocessors, double=double, of_bytes=of_bytes, in_parts=of_inputs
    )
    tile, num_part, cycles = chosen
    share = -(-num_term // num_part)
    rows = (num_neuron * width, width) if of_inputs else (width, num_neuron * width)
    launch = Launch(
        program(dtype, tile, of_bytes=of_bytes),
        "elm_multiply_inputs" if of_inputs else "elm_multiply",
        (chosen.blocks(num_out, width), num_part * num_neuron),
        tile.threads,
        _PRODUCT_BYTES,
        (num_row, num_neuron, num_input, num_part, width, share, *rows),
        tile.shared_bytes(dtype.itemsize),
    )
    across = num_neuron * -(-width // COLUMNS) * COLUMNS
    of_cublas = AROUND + num_row * num_input * across / (PRODUCTS * multiprocessors)
    return Settled(launch, num_part, cycles <= of_cublas + SPARED)


@lru_cache(maxsize=256)
def discounted_sum(dtype: torch.dtype, batch: int, num_steps: int, num_input: int, *, of_bytes: bool) -> Launch:
    """As :func:`elm_neuro.backends.parts._projection.discounted_sum`: strides of batch and time of x, what its sign is
    exchanged by, then addresses of lengths, kappa, x and the sum, (batch, num_input).
    """
    grid, numbers = (batch, -(-num_input // THREADS)), (num_steps, num_input)
    of = program(dtype, of_bytes=of_bytes)
    return Launch(of, "elm_discount", grid, THREADS, _DISCOUNT_BYTES, numbers)


def multiply(x: Tensor, table: Tensor) -> Tensor:
    """Products of frames with a table, (batch, time, [num_neuron,] width): of (batch, time, num_input) with (num_input,
    width), or with a table for each neuron (batch, time, num_neuron, num_input) with (num_neuron, num_input, width).
    """
    out = table.new_empty(*x.shape[:-1], table.shape[-1])
    product = settled(table.dtype, _sizes(x, table), of_inputs=False)
    run(product.launch.on(_queue(x)), x, table.data_ptr(), out.data_ptr())
    return out


def multiply_inputs(x: Tensor, flow: Tensor) -> Tensor:
    """Gradient of the table from that of :func:`multiply`'s result, in parts to be added up: (num_part, [num_neuron,]
    num_input, width).
    """
    product = settled(flow.dtype, _sizes(x, flow), of_inputs=True)
    out = flow.new_empty(product.num_part, *x.shape[2:], flow.shape[-1])
    flow = flow.contiguous()
    run(product.launch.on(_queue(x)), x, flow.data_ptr(), out.data_ptr())
    return out


def run(product: Run, x: Tensor, factor: int, out: int) -> None:
    """A product that is :func:`settled`, of frames as they lie; the others are addresses."""
    flat = rows_of(x)
    product(*_rows(flat), sign_of(x), flat.data_ptr(), factor, out)


def sign_of(x: Tensor) -> int:
    """What the kernels exchange the sign of bytes by."""
    return 128 if x.dtype is torch.int8 else 0


def _queue(x: Tensor) -> Queue:
    return _driver.launcher().queue(x.device)


def _sizes(x: Tensor, factor: Tensor) -> Sizes:
    num_neuron, index = x.shape[2] if x.ndim == 4 else 1, x.device.index or 0
    return Sizes(x.shape[0] * x.shape[1], x.shape[-1], factor.shape[-1], num_neuron, holds_bytes(x), index)


def _rows(flat: Tensor) -> tuple[int, int, int]:
    """Steps of a sample, and how far samples and steps lie apart; rows in one piece are one sample's."""
    batch, num_steps, _ = flat.shape
    of_sample, of_step, _ = flat.stride()
    if num_steps == 1:
        return batch, 0, of_sample
    in_one_piece = batch * num_steps < 2**31 and (batch == 1 or of_sample == num_steps * of_step)
    return max(batch * num_steps if in_one_piece else num_steps, 1), of_sample, of_step


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
        return run_traced("cuda.frames", [x, table], x.shape[:2], ())[0].view(*x.shape[:-1], table.shape[-1])
    projected: Tensor = _Projection.apply(x, table)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return projected
