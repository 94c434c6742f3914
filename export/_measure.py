"""How far an output of a model is from the module's: in full precision value by value, in a lower one as a user sees
it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from elm_neuro.export._model import Built

# Error allowed relative to the largest value: sums of about a thousand terms in another order.
TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-13}
NEAR = 20.0  # tolerances from its threshold within which a spike may fall either way


class Bounds:
    """What a lower precision may cost; a matrix that is wrong costs about 1."""

    def __init__(self, smooth: float, spiking: float, argmax: float) -> None:
        self.smooth = smooth  # of values that no spike has touched
        self.spiking = (
            spiking  # of spikes, and of values after them: a spike that falls otherwise changes them by a spike
        )
        self.argmax = argmax


BOUNDS = {"float16": Bounds(0.01, 0.1, 0.05), "bfloat16": Bounds(0.05, 0.3, 0.2), "int8": Bounds(0.1, 0.4, 0.25)}
LEAST_SPREAD = 1e-4  # of an output by which its error is divided
MIN_SPIKES = 10  # below them a share of spikes says nothing


class Measure(Protocol):
    """What has been seen of one output."""

    num_compared: int  # steps, or samples of an output without time
    num_values: int
    undecided: int  # steps, or samples, left out

    @property
    def error(self) -> float:
        """What is judged."""

    @property
    def tolerance(self) -> float:
        """What is allowed."""

    @property
    def argmax(self) -> float | None:
        """Share of steps with another largest output, where that is looked at."""

    def add(self, got: Tensor, want: Tensor, other: Tensor, margin: Tensor) -> None:
        """Take in one chunk.

        Args:
            got: what the model gives, (batch, [time,] ...).
            want: what the module gives.
            other: the same in another precision.
            margin: the least distance of a spike so far from its threshold, (batch, time).
        """

    def wrong(self, name: str) -> str:
        """What is off, by how much; empty where nothing is."""


class Exact:
    """The largest difference, over steps at which rounding decides no spike."""

    def __init__(self, built: Built, name: str) -> None:
        self.timed, self.relative = built.timed(name), TOLERANCES[built.dtype]
        other = torch.float64 if built.dtype == torch.float32 else torch.float32
        self.share = min(1.0, torch.finfo(built.dtype).eps / torch.finfo(other).eps)
        self._error, self._tolerance = 0.0, self.relative
        self.num_compared = self.num_values = self.undecided = 0

    def add(self, got: Tensor, want: Tensor, other: Tensor, margin: Tensor) -> None:
        decided = (margin > NEAR * self.relative).cumprod(1).bool()
        mask = decided if self.timed else decided.all(1)
        self.undecided += int((~mask).sum())
        if not bool(mask.any()) or not want.numel():
            self.num_compared += int(mask.sum())
            return
        want_ = want[mask]
        error = float((got[mask] - want_).abs().max())
        self._error = error if error > self._error or error != error else self._error  # a NaN stays
        own = self.share * float((other[mask] - want_).abs().max())  # where a neuron amplifies rounding errors
        self._tolerance = max(self._tolerance, self.relative * max(1.0, float(want_.abs().max())) + 10.0 * own)
        self.num_compared += int(mask.sum())
        self.num_values += want_.numel()

    @property
    def error(self) -> float:
        return self._error

    @property
    def tolerance(self) -> float:
        return self._tolerance

    @property
    def argmax(self) -> None:
        return None

    def wrong(self, name: str) -> str:
        if self.error <= self.tolerance:
            return ""
        return f"{name} {self.error:.2e} (allowed {self.tolerance:.2e})"


class Rounded:
    """As a user sees it, over all steps: the error by the spread of the output, or the share of spikes that differ, and
    how often another output is the largest.
    """

    def __init__(self, built: Built, name: str) -> None:
        self.timed, self.bounds = built.timed(name), BOUNDS[built.options.precision]
        self.spikes = name in built.outputs and built.outputs[name].spikes
        self.spikes |= name.removesuffix("_next") in built.states and built.states[name.removesuffix("_next")].spikes
        self.largest = name in built.outputs and not self.spikes and built.outputs[name].shape[-1:] > (1,)
        self.num_compared = self.num_values = self.undecided = 0
        self._touched = False
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(self, got: Tensor, want: Tensor, other: Tensor, margin: Tensor) -> None:
        axes = 2 if self.timed else 1
        self._touched |= bool(margin.isfinite().any())
        self._rows.append((got.flatten(0, axes - 1).flatten(1), want.flatten(0, axes - 1).flatten(1)))
        self.num_compared += want.shape[:axes].numel()
        self.num_values += want.numel()

    @property
    def _values(self) -> tuple[Tensor, Tensor]:
        got, want = zip(*self._rows, strict=True)
        return torch.cat(got), torch.cat(want)

    @property
    def error(self) -> float:
        got, want = self._values
        if self.spikes:
            either = (got != 0) | (want != 0)
            number = int(either.sum())
            return int((got != want).sum()) / number if number >= MIN_SPIKES else 0.0
        spread = (want - want.mean(0)).square().mean().sqrt()
        least = LEAST_SPREAD * max(1.0, float(want.abs().max())) if want.numel() else 1.0
        return float((got - want).square().mean().sqrt() / spread.clamp(min=least))

    @property
    def tolerance(self) -> float:
        return self.bounds.spiking if self._touched or self.spikes else self.bounds.smooth

    @property
    def argmax(self) -> float | None:
        if not self.largest:
            return None
        got, want = self._values
        return float((got.argmax(1) != want.argmax(1)).double().mean())

    def wrong(self, name: str) -> str:
        words = []
        if not self.error <= self.tolerance:
            what = "of its spikes" if self.spikes else "of its spread"
            words.append(f"{name} {self.error:.1%} {what} (allowed {self.tolerance:.1%})")
        if self.argmax is not None and not self.argmax <= self.bounds.argmax:
            words.append(f"{name} {self.argmax:.1%} of its largest outputs (allowed {self.bounds.argmax:.1%})")
        return ", ".join(words)
