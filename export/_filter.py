"""First-order filters along time as ONNX operators, without a loop, and the lengths of samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from elm_neuro.export._nodes import Nodes, Value

BLOCK = 32  # steps that the trace filter takes at once


class Filters(Nodes):
    """Nodes that know how time runs: in one step, in any number of steps, or in a fixed one.

    Args:
        form: "step", "sequence" or "unrolled".
        dtype: of the model.
        opset: version of the standard operators.
        num_steps: of the form "unrolled".
    """

    def __init__(self, form: str, dtype: torch.dtype, *, opset: int, num_steps: int | None = None) -> None:
        super().__init__(dtype, opset)
        self.form, self.num_steps = form, num_steps
        self.valid: str | None = None  # (time, batch): the step lies before its sample's end; None where all do
        self.lengths: str | None = None  # number of steps of each sample, (batch,)
        self._at_end: str | None = None  # (batch, time + 1, 1): 1 after as many steps as the sample has

    def cut(self, x: Value, lengths: str) -> Value:
        """`x` with zeros past the end of each sample; from here on states stop there.

        Args:
            x: the model's input.
            lengths: number of steps of each sample, (batch,), int64.
        """
        num_steps = self.add("Squeeze", self.size(x.name, 0 if x.time == "first" else 1), self.integers(0))
        steps = self.add("Range", self.number(0), self.add("Add", num_steps, self.number(1)), self.number(1))
        after = self.add("Unsqueeze", steps, self.integers(1))  # (time + 1, 1)
        before_end = self.add("Less", after, lengths)
        up_to_end = self.add("Less", after, self.add("Add", lengths, self.number(1)))
        at_end = self.add("Sub", *(self.add("Cast", mask, to=self.kind) for mask in (up_to_end, before_end)))
        self.lengths = lengths
        self._at_end = self.add("Unsqueeze", self.permuted(at_end, 1, 0), self.integers(2))
        self.valid = self.add("Slice", before_end, self.integers(0), self.integers(-1), self.integers(0))
        return self.masked(x)

    def masked(self, value: Value) -> Value:
        """`value` with zeros past the end of each sample."""
        if self.valid is None or value.time is None:
            return value
        mask = self.valid if value.time == "first" else self.permuted(self.valid, 1, 0)
        for axis in range(len(value.shape)):
            mask = self.add("Unsqueeze", mask, self.integers(2 + axis))
        return replace(value, name=self.add("Where", mask, value.name, self.zero()))

    @contextmanager
    def one_step(self, valid: str | None) -> Iterator[None]:
        """Within a loop's body the mask is that of the step, (batch,)."""
        whole, self.valid = self.valid, valid
        try:
            yield
        finally:
            self.valid = whole

    def at_end(self, lines: str, start: str, rank: int) -> str:
        r"""The value (..., batch, channel) after the last step of each sample.

        Args:
            lines: records with their time last, (..., batch, channel, time).
            start: value before the first step, (..., batch, channel, 1).
            rank: axes of `lines`.
        """
        if self._at_end is not None:
            records = self.add("Concat", start, lines, axis=rank - 1)
            return self.add("Squeeze", self.add("MatMul", records, self._at_end), self.integers(rank - 1))
        return self.add("Gather", lines, self.number(-1), axis=rank - 1)

    def leaky(self, name: str, u: Value, kappa: Tensor, start: str) -> tuple[Value, str]:
        r"""First-order filter :math:`b_t = \kappa b_{t-1} + u_t` along time, without a loop, and its last value.

        Within blocks of 32 steps it is the product with a triangular matrix of powers of kappa, and so is what a block
        hands on.

        Args:
            name: of the constants.
            u: what is filtered, (batch, time, channel) or (time, batch, channel); a population has an axis after the
                time, time first.
            kappa: one, or one per channel.
            start: b before the first step.
        """
        if self.form == "step":
            after = self.add("Add", self.add("Mul", start, self.constant(f"{name}.kappa", kappa)), u.name)
            return replace(u, name=after), after
        rank = 1 + u.lead + (len(u.shape) - 1)
        axis = 0 if u.time == "first" else 1
        others = [i for i in range(rank) if i != axis]
        lines = self.permuted(u.name, *others, axis)  # (..., batch, channel, time)
        size = BLOCK if self.num_steps is None else min(BLOCK, self.num_steps)
        num_blocks = None if self.num_steps is None else -(-self.num_steps // size)
        whole = self.num_steps is not None and self.num_steps % size == 0
        if not whole:
            lines = self.add("Pad", lines, self._padding(u.name, axis, rank, size))
        keep = [0] * (rank - 1)
        blocks = self.add("Reshape", lines, self.integers(*keep, -1, size))
        k = kappa.detach().double().cpu()
        per_channel = k.ndim > 0
        k = k[:, None, None] if per_channel else k
        i = torch.arange(size, dtype=torch.float64)
        within = torch.where(i[None, :] >= i[:, None], k ** (i[None, :] - i[:, None]).clamp(min=0), 0.0)  # [from, to]
        inside = self.add("MatMul", blocks, self.constant(f"{name}.within", within))
        first = self.add("Unsqueeze", start, self.integers(rank - 1))  # (..., channel, 1)
        entering = first
        if num_blocks != 1:
            ends = self.add("Gather", inside, self.number(size - 1), axis=rank)  # (..., channel, block)
            but_last = self.add("Slice", ends, self.integers(0), self.integers(-1), self.integers(rank - 1))
            entering = self.add("Concat", first, but_last, axis=rank - 1)
            across = self._across(name, k, size, num_blocks, ends, rank)
            if per_channel:
                entering = self.add("Unsqueeze", entering, self.integers(rank - 1))
                entering = self.add("Squeeze", self.add("MatMul", entering, across), self.integers(rank - 1))
            else:
                entering = self.add("MatMul", entering, across)
        powers = self.constant(f"{name}.powers", k ** (i + 1.0))
        faded = self.add("Mul", self.add("Unsqueeze", entering, self.integers(rank)), powers)
        lines = self.add("Reshape", self.add("Add", inside, faded), self.integers(*keep, -1))
        if not whole:
            length = self.size(u.name, axis) if self.num_steps is None else self.integers(self.num_steps)
            lines = self.add("Slice", lines, self.integers(0), length, self.integers(rank - 1))
        last = self.at_end(lines, first, rank)
        return replace(u, name=self.add("Transpose", lines, perm=[rank - 1, *range(rank - 1)]), time="first"), last

    def _padding(self, u: str, axis: int, rank: int, size: int) -> str:
        """Zeros after the end of the last axis, up to whole blocks."""
        if self.num_steps is not None:
            return self.integers(*[0] * (2 * rank - 1), -self.num_steps % size)
        # size - 1 - (T + size - 1) mod size, without a remainder of negative numbers, on which runtimes differ
        later = self.add("Add", self.size(u, axis), self.integers(size - 1))
        missing = self.add("Sub", self.integers(size - 1), self.add("Mod", later, self.integers(size)))
        return self.add("Concat", self.integers(*[0] * (2 * rank - 1)), missing, axis=0)

    def _across(self, name: str, k: Tensor, size: int, number: int | None, ends: str, rank: int) -> str:
        """What is left of a block's start (row) at the start of later blocks (column)."""
        if number is not None:
            i = torch.arange(number, dtype=torch.float64)
            return self.constant(
                f"{name}.across",
                torch.where(i[None, :] >= i[:, None], k ** (size * (i[None, :] - i[:, None]).clamp(min=0)), 0.0),
            )
        count = self.add("Squeeze", self.size(ends, rank - 1))
        steps = self.add("Range", self.number(0), count, self.number(1))
        later = self.add(
            "Sub", self.add("Unsqueeze", steps, self.integers(0)), self.add("Unsqueeze", steps, self.integers(1))
        )
        distance = self.add("Cast", self.add("Mul", later, self.number(size)), to=self.kind)
        left = self.add("Pow", self.constant(f"{name}.kappa", k), self.add("Max", distance, self.zero()))
        return self.add("Where", self.add("Less", later, self.number(0)), self.zero(), left)

    def discounted_sum(self, name: str, x: Value, kappa: Tensor) -> tuple[str, str]:
        r"""The sum over time :math:`\sum_t \kappa^{T-1-t} x_t`, (batch, channel), and :math:`\kappa^T`."""
        frames = x.name if x.time == "after" else self.add("Transpose", x.name, perm=[1, 0, 2])
        if self.num_steps is not None:
            left = torch.arange(self.num_steps, -1, -1, dtype=torch.float64)
            weights = self.constant(f"{name}.discount", (kappa.detach().double().cpu() ** left[1:])[None])
            rest = self.constant(f"{name}.left", kappa.detach().double().cpu() ** left[0])
        else:
            count = self.add("Squeeze", self.size(frames, 1))
            base = self.constant(f"{name}.kappa", kappa)
            later = self.add("Range", self.add("Sub", count, self.number(1)), self.number(-1), self.number(-1))
            weights = self.add(
                "Unsqueeze", self.add("Pow", base, self.add("Cast", later, to=self.kind)), self.integers(0)
            )
            rest = self.add("Pow", base, self.add("Cast", count, to=self.kind))
        return self.add("Squeeze", self.add("MatMul", weights, frames), self.integers(1)), rest
