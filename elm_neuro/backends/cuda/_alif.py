"""A layer of adaptive LIF neurons: one launch a direction, a block a sample and a thread a neuron."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import structure
from elm_neuro.backends.cuda._compile import Program

MAX_NEURON = 1024  # threads of a block
MAX_SHARED_BYTES = 48 * 1024  # what every device gives
MAX_CHUNK = 32  # steps between barriers
WARP = 32

FORWARD, _FORWARD_BYTES = structure(
    "num_steps num_neuron history chunk blocks lengths current beta p b by_sender v_0 a_0 s_0 blocked "
    "spikes v_last a_last membrane adaptation open"
)
BACKWARD, _BACKWARD_BYTES = structure(
    "num_steps num_neuron history chunk through_reset lengths beta p b w_rec v_0 spikes membrane adaptation open "
    "grad_spikes grad_v_last grad_a_last grad_current grad_v_0 grad_a_0 grad_beta grad_p grad_b "
    "scale factor side_scale side_factor mean"
)


def threads_for(num_neuron: int) -> int:
    """Threads of a block: the power of two from 32 on that holds the neurons."""
    return max(WARP, 1 << (num_neuron - 1).bit_length())


def chunk_of(history: int) -> int:
    """Steps between barriers, where a state remembers the spikes of `history` steps."""
    return min(history, MAX_CHUNK)


def shared_bytes(num_neuron: int, history: int) -> int:
    """Of a recurrent layer: a bit for each neuron in each step that is remembered or is being run."""
    return (history + chunk_of(history)) * threads_for(num_neuron) // 8


def max_history(num_neuron: int) -> int:
    """Steps of spikes that a recurrent layer may remember.

    >>> max_history(1024), max_history(256)
    (352, 1504)
    """
    return MAX_SHARED_BYTES * 8 // threads_for(num_neuron) - MAX_CHUNK


@cache
def program(dtype: torch.dtype, threads: int, surrogate: int) -> Program:
    """The source for these numbers and this kind of surrogate, numbered as in native/api.h."""
    double = dtype == torch.float64
    return Program(
        "alif.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_THREADS", threads),
            ("ELM_SURROGATE", surrogate),
            ("ELM_BYTES_ALIF", _FORWARD_BYTES),
            ("ELM_BYTES_ALIFBACKWARD", _BACKWARD_BYTES),
        ),
    )


def launch(kernel: str, code: Program, batch: int, threads: int, shared_bytes: int, args: bytes, like: Tensor) -> None:
    """A block for each of `batch` samples, on the current stream of `like`'s device."""
    _driver.launch(code, kernel, (batch, 1), threads, shared_bytes, args, like.device)


def expect(kernel: str, surrogate: int, current: Tensor) -> None:
    """Have a kernel of the backward pass compiled beside the forward pass, where it is not."""
    code = program(current.dtype, threads_for(current.shape[-1]), surrogate)
    _driver.expect(current.device, (code, kernel))
