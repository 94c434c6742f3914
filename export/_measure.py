"""How far an output of a model is from the module's: in full precision value by value, in a lower one as a user sees
it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from elm_neuro.export._model import Built

# Error allowed relative to the largest value: sums of about a thousand terms in another order.
TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-13}
NEAR = 20.0  # tolerances from its threshold within which a spike may fall either way


FIRST_STEPS = 4  # in lower precision a spike falls otherwise now and then, and soon nothing is as it was


class Bounds(NamedTuple):
    """What a lower precision may cost; a matrix that is wrong costs more, the error of a random one is about 1."""

    smooth: float  # values that no spike has touched
    spikes: float
    states: float  # after spikes: one that falls otherwise changes them by a whole spike
    outputs: float  # sums of spikes that may fall otherwise
    argmax: float


BOUNDS = {
    "float16": Bounds(smooth=0.02, spikes=0.1, states=0.15, outputs=0.5, argmax=0.1),
    "bfloat16": Bounds(smooth=0.1, spikes=0.15, states=0.2, outputs=0.6, argmax=0.2),
    "int8": Bounds(smooth=0.25, spikes=0.15, states=0.2, outputs=0.6, argmax=0.2),
}
LEAST_SPREAD = 1e-4  # of an output, relative to its largest value, by which its error is divided
LEAST_SPREAD_OF_SPIKES = 0.5  # the same of a sum of spikes, relative to its root mean square: there may be few spikes
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
    """As a user sees it: the error by the spread of the output, or the share of spikes that differ, and how often
    another output is the largest. Behind spikes, over the first steps from where the module is.
    """

    def __init__(self, built: Built, name: str) -> None:
        self.timed, self.bounds = built.timed(name), BOUNDS[built.options.precision]
        output, state = built.outputs.get(name), built.states.get(name.removesuffix("_next"))
        self.spikes = output.spikes if output is not None else state is not None and state.spikes
        self.is_state = output is None
        self.looks_at_largest = output is not None and not self.spikes and output.shape[-1:] > (1,)
        self.num_compared = self.num_values = self.undecided = 0
        self.touched = self.spikes
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(self, got: Tensor, want: Tensor, other: Tensor, margin: Tensor) -> None:
        touched = self.spikes or bool(margin.isfinite().any())
        self.touched |= touched
        if touched and self.timed:
            got, want = got[:, :FIRST_STEPS], want[:, :FIRST_STEPS]
        elif touched and self.is_state and margin.shape[1] > FIRST_STEPS:
            self.undecided += len(want)
            return
        axes = 2 if self.timed else 1
        rows = want.shape[:axes].numel()
        self._rows.append((got.reshape(rows, -1), want.reshape(rows, -1)))
        self.num_compared += rows
        self.num_values += want.numel()

    @property
    def _values(self) -> tuple[Tensor, Tensor]:
        if not self._rows:
            return torch.zeros(0, 1), torch.zeros(0, 1)
        got, want = zip(*self._rows, strict=True)
        return torch.cat(got), torch.cat(want)

    @property
    def error(self) -> float:
        got, want = self._values
        if not want.numel():
            return 0.0
        if self.spikes and _binary(want):
            either = int(((got != 0) | (want != 0)).sum())
            return int((got != want).sum()) / either if either >= MIN_SPIKES else 0.0
        spread = float((want - want.mean(0)).square().mean().sqrt())
        least = LEAST_SPREAD * max(1.0, float(want.abs().max()))
        if self.touched and not self.is_state:
            least = max(least, LEAST_SPREAD_OF_SPIKES * float(want.square().mean().sqrt()))
        return float((got - want).square().mean().sqrt()) / max(spread, least)

    @property
    def tolerance(self) -> float:
        if self.spikes:
            return self.bounds.spikes
        if not self.touched:
            return self.bounds.smooth
        return self.bounds.states if self.is_state else self.bounds.outputs

    @property
    def argmax(self) -> float | None:
        got, want = self._values
        if not self.looks_at_largest or not want.numel():
            return None
        return float((got.argmax(1) != want.argmax(1)).double().mean())

    def wrong(self, name: str) -> str:
        words = []
        if not self.error <= self.tolerance:
            what = "of its spikes" if self.spikes else "of its spread"
            words.append(f"{name} {self.error:.1%} {what} (allowed {self.tolerance:.1%})")
        if self.argmax is not None and not self.argmax <= self.bounds.argmax:
            words.append(f"{name} {self.argmax:.1%} of its largest outputs (allowed {self.bounds.argmax:.1%})")
        return ", ".join(words)


def _binary(values: Tensor) -> bool:
    """Each channel (row, channel) holds zeros and one other number."""
    highest = values.abs().amax(0) if len(values) else values.new_zeros(values.shape[1:])
    return bool(((values == 0) | (values.abs() == highest)).all())
