"""A layer of adaptive LIF neurons: one launch a direction, a block a sample and a thread a neuron."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch

from elm_neuro.backends.cuda._arguments import num_bytes
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._launch import Launch

MAX_NEURON = 1024  # threads of a block
MAX_SHARED_BYTES = 48 * 1024  # what every device gives
MAX_AHEAD = 16  # steps whose loads are under way at once
WARP = 32
MAX_BITS = 32  # steps of spikes in shared memory beyond those that a state remembers

_RANGES = "learned low_beta high_beta low_p high_p low_b high_b "
_FORWARD_BYTES = num_bytes(
    f"num_steps num_neuron history chunk blocks {_RANGES} lengths current bias beta p b by_sender v_0 a_0 s_0 blocked "
    "spikes v_last a_last s_last membrane adaptation open"
)
_BACKWARD_BYTES = num_bytes(
    f"num_steps num_neuron history chunk through_reset {_RANGES} lengths beta p b w_rec v_0 spikes membrane adaptation "
    "open grad_spikes grad_v_last grad_a_last grad_s_last grad_current grad_v_0 grad_a_0 grad_s_0 sums "
    "grad_batch grad_step grad_neuron scale factor side_scale side_factor mean"
)


def threads_for(num_neuron: int) -> int:
    """Threads of a block: the power of two from 32 on that holds the neurons."""
    return max(WARP, 1 << (num_neuron - 1).bit_length())


def steps_ahead(threads: int, dtype: torch.dtype) -> int:
    """Steps whose loads a thread has under way at once: as many as its registers hold.

    >>> steps_ahead(128, torch.float32), steps_ahead(1024, torch.float64)
    (16, 1)
    """
    return (MAX_AHEAD if threads <= 256 else 2048 // threads) * 4 // dtype.itemsize


def shared_bytes(num_neuron: int, history: int, chunk: int) -> int:
    """Of a recurrent layer: a bit for each neuron in each step that is remembered or is being run, and in none."""
    return (history + chunk + 1) * threads_for(num_neuron) // 8


def max_history(num_neuron: int) -> int:
    """Steps of spikes that a recurrent layer may remember.

    >>> max_history(1024), max_history(256)
    (352, 1504)
    """
    return MAX_SHARED_BYTES * 8 // threads_for(num_neuron) - MAX_BITS


@cache
def program(dtype: torch.dtype, threads: int, surrogate: int, ahead: int) -> Program:
    """The source for these numbers, this kind of surrogate, numbered as in native/api.h, and so many steps ahead."""
    double = dtype == torch.float64
    return Program(
        "alif.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_THREADS", threads),
            ("ELM_AHEAD", ahead),
            ("ELM_SURROGATE", surrogate),
            ("ELM_BYTES_ALIF", _FORWARD_BYTES),
            ("ELM_BYTES_ALIFBACKWARD", _BACKWARD_BYTES),
        ),
    )


class Sizes(NamedTuple):
    """Of a pass, and how it runs."""

    dtype: torch.dtype
    batch: int
    num_steps: int
    num_neuron: int
    history: int  # latency + 1
    surrogate: int  # its kind, as native/api.h numbers them
    blocks: bool  # the gradient of Blocks in place of the loop's
    ranges: tuple[int, ...]  # of what the parameters are as they are learned, as alif.cuh has them


@lru_cache(maxsize=256)
def forward(of: Sizes, recurrent: bool) -> Launch:
    """Spikes and state. Its addresses are those of the structure from `lengths` on."""
    threads = threads_for(of.num_neuron)
    ahead, chunk = _steps(of, recurrent)
    shared = shared_bytes(of.num_neuron, of.history, chunk) if recurrent else 0
    numbers = of.num_steps, of.num_neuron, of.history, chunk, int(of.blocks), *of.ranges
    code = program(of.dtype, threads, of.surrogate, ahead)
    return Launch(code, "elm_alif", (of.batch, 1), threads, _FORWARD_BYTES, numbers, shared)


@lru_cache(maxsize=256)
def backward(of: Sizes, feeds_back: bool, through_reset: bool) -> Launch:
    """Gradients. Its addresses are those of the structure from `lengths` on, then come strides and the words of the
    slope.
    """
    threads = threads_for(of.num_neuron)
    ahead, chunk = _steps(of, feeds_back)
    kernel = "elm_alif_blocks_backward" if of.blocks else "elm_alif_backward"
    numbers = of.num_steps, of.num_neuron, of.history, chunk, int(through_reset), *of.ranges
    code = program(of.dtype, threads, of.surrogate, ahead)
    return Launch(code, kernel, (of.batch, 1), threads, _BACKWARD_BYTES, numbers)


def _steps(of: Sizes, barriers: bool) -> tuple[int, int]:
    """Steps whose loads are under way at once, of which only whole chunks are used; and steps between barriers."""
    most = steps_ahead(threads_for(of.num_neuron), of.dtype)
    chunk = min(of.history, most) if barriers else most
    return most // chunk * chunk, chunk
