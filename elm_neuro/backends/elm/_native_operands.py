"""What the native pass works with: its tensors, how it runs, what it gives and what it leaves for its backward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.elm._learned import Timescales
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._rows import rows, with_padded_rows


class Operands(NamedTuple):
    """The tensors of a pass.

    What arrives is the filtered sum of the events' rows of `table`, or the product of `frames` with it, or `dense` as
    it is. The events' fields stand here one by one, because torch watches over every tensor that is saved for the
    backward pass.
    """

    begin: Tensor | None  # of Events
    end: Tensor | None
    channel: Tensor | None
    value: Tensor | None
    lengths: Tensor | None  # valid steps of each sample, (batch,), int64; past them y is 0 and the memory stays
    kappa_b: Tensor | None  # decay of what has arrived, (); None where `dense` is integrated already
    frames: Tensor | None  # (batch, time, [num_neuron,] input_size); the fields from here on are differentiated
    table: Tensor | None  # (num_neuron or 1, input_size, hidden)
    dense: Tensor | None  # (batch, time, [num_neuron,] hidden)
    f_0: Tensor | None  # what has arrived before the first step, (batch, [num_neuron,] hidden); None for zeros
    bias: Tensor | None  # of the first layer, ([num_neuron,] hidden); None where `dense` has it already
    m_0: Tensor | None  # memory before the first step, (batch, [num_neuron,] num_memory); None for zeros
    kappa: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor
    w_m: Tensor  # the memory's part of the first layer's weight, ([num_neuron,] hidden, num_memory); to `run` with a
    # FirstLayer all of it, ([num_neuron,] hidden, num_branch + num_memory)
    w_y: Tensor  # ([num_neuron,] output_size, num_memory)
    b_y: Tensor  # ([num_neuron,] output_size)
    threshold: Tensor | None  # of the spikes, (), or shape of b_y; None where there are none
    layers: tuple[Tensor, ...]  # weight and bias of each layer after the first


FIRST_DIFFERENTIATED = Operands._fields.index("frames")
NUM_FIXED = Operands._fields.index("layers")


class Plan(NamedTuple):
    """How a pass runs."""

    batch: int
    num_steps: int
    silu: bool
    tile: int  # samples that one task takes at most
    part: int  # steps whose activations are saved together; of all but the last part they are computed again
    lowered: torch.dtype | None = None  # of the product with the frames, under autocast
    surrogate: int = 0  # whose derivative stands for that of the spikes, as in native/api.h
    slope: float = 0.0  # its alpha, or its scale
    time_first: bool = False  # how the readout lies in memory
    last_readout: bool = False  # give that of each sample's last step only
    timescales: Timescales | None = None  # by which what a neuron learns becomes effective; None: it is already
    num_input: int = 0  # where the pass itself adds up what arrives
    one_step: bool = False  # of few samples, for which no table is made

    @property
    def rectifies(self) -> bool:
        """Whether the synaptic weights come as they are learned."""
        return self.timescales is not None

    def parts(self) -> list[tuple[int, int]]:
        """First step and number of steps of each part."""
        if self.part == self.num_steps:
            return [(0, self.num_steps)]
        return [(start, min(self.part, self.num_steps - start)) for start in range(0, self.num_steps, self.part)]


def tile_for(batch: int, kappa: Tensor) -> int:
    """Samples that one task takes: fewer where there would be fewer tasks than threads."""
    tile, threads = _library.tile(kappa.dtype), torch.get_num_threads()
    num_neuron = kappa.shape[0] if kappa.ndim == 2 else 1
    while tile > 1 and num_neuron * -(-batch // tile) < threads:
        tile //= 2
    return tile


class Saved(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    activations: Tensor  # where there is one part
    m_starts: tuple[Tensor, ...]  # memory and what has arrived before each part but the first
    f_starts: tuple[Tensor, ...]


class Outputs(NamedTuple):
    """What a pass gives."""

    y: Tensor  # (batch, time, [num_neuron,] output_size), or of the last step alone, without `time`
    spikes: Tensor | None  # (batch, time, [num_neuron,] output_size), where there is a threshold
    m_last: Tensor  # (batch, [num_neuron,] num_memory), after each sample's last step
    b: Tensor | None  # branch traces likewise, (batch, [num_neuron,] num_branch), where there is a FirstLayer


class Incoming(NamedTuple):
    """Gradients of the outputs; None for zeros."""

    y: Tensor | None
    spikes: Tensor | None
    m_last: Tensor | None
    b: Tensor | None

    def laid_out(self) -> Incoming:
        """As the kernels read them."""
        y, spikes, m_last, b = self
        return Incoming(
            None if y is None else rows(y),
            None if spikes is None else rows(spikes),
            None if m_last is None else m_last.contiguous(),
            None if b is None else b.contiguous(),
        )


class Wanted(NamedTuple):
    """Which of those gradients are asked for that may be left out."""

    frames: bool
    table: bool
    dense: bool
    f_0: bool
    m_0: bool
    kappa: bool
    gain: bool
    threshold: bool

    @classmethod
    def among(cls, flags: tuple[bool, ...]) -> Wanted:
        """From a flag for each operand from `frames` on."""
        return cls(*[flags[at] for at in WANTED_AT])


WANTED_AT = tuple(Operands._fields.index(name) - FIRST_DIFFERENTIATED for name in Wanted._fields)


def one_or_all(threshold: Tensor, b_y: Tensor) -> Tensor:
    """The threshold as the kernels read it: one number, or one for each output of each neuron."""
    return threshold.expand(b_y.shape) if threshold.ndim else threshold


def laid_out(operands: Operands) -> Operands:
    """The operands as the kernels read them."""
    (begin, end, channel, value, lengths, kappa_b, frames, table, dense, f_0, bias, m_0, kappa, gain, w_m, w_y, b_y,
     threshold, layers) = operands  # fmt: skip
    return Operands(
        begin=None if begin is None else begin.contiguous(),
        end=None if end is None else end.contiguous(),
        channel=None if channel is None else channel.contiguous(),
        value=None if value is None else value.contiguous(),
        lengths=None if lengths is None else lengths.contiguous(),
        kappa_b=kappa_b,
        frames=frames,
        table=None if table is None else with_padded_rows(table),
        dense=None if dense is None else rows(dense),
        f_0=None if f_0 is None else f_0.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        m_0=None if m_0 is None else m_0.contiguous(),
        kappa=kappa.contiguous(),
        gain=gain.contiguous(),
        w_m=rows(w_m),
        w_y=w_y.contiguous(),
        b_y=b_y.contiguous(),
        threshold=None if threshold is None else threshold.contiguous(),
        layers=tuple([layer.contiguous() for layer in layers]),
    )  # fmt: skip


def lies_time_first(frames: Tensor) -> bool:
    """Whether a sequence (batch, time, ...) lies step by step in memory."""
    return frames.stride(0) < frames.stride(1)


def saved_size(operands: Operands, batch: int, num_steps: int) -> int:
    """Entries that the backward pass reads."""
    dtype, shape = operands.kappa.dtype, operands.kappa.shape
    num_rows = batch * shape[0] if len(shape) == 2 else batch
    return saved_entries(
        dtype, num_rows, num_steps, int(shape[-1]), int(operands.w_m.shape[-2]), len(operands.layers) // 2
    )


def saved_entries(
    dtype: torch.dtype, num_rows: int, num_steps: int, num_memory: int, hidden: int, num_layers: int
) -> int:
    """Hidden units and tanh of every step, and the memory before every chunk, of each neuron and sample. Rows and steps
    may be left open by compiled code, the neuron's own sizes are not.
    """
    chunk, num_memory = _library.chunk(dtype), _library.padded(dtype, num_memory)
    of_layers = num_layers * _library.padded(dtype, hidden)
    return num_rows * (num_steps * (of_layers + num_memory) + -(-num_steps // chunk) * num_memory)
