"""Spikes from a readout: threshold, surrogate, reset, chance."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from elm_neuro.backends import SpikeRule, untraced
from elm_neuro.functional import ATan, Surrogate, bernoulli_spike
from elm_neuro.nn._config import check_flag, check_generator, check_surrogate
from elm_neuro.nn._drawn import draw_anew
from elm_neuro.nn._meaning import Meaning

RESETS = ("none", "subtract", "zero")
Numbers = float | tuple["Numbers", ...]


class SpikeOptions(TypedDict, total=False):
    """Keywords of :class:`SpikeOutput`, which explains each."""

    threshold: float | Tensor
    learn_threshold: bool
    surrogate: Surrogate | None
    reset: str
    stochastic: bool
    graded_factor: float | Tensor
    learn_graded_factor: bool
    generator: torch.Generator | None


class SpikeOutput(Meaning, nn.Module):
    r"""Spikes from the readout y of a neuron.

    .. math::
        v_t &= y_t \quad\text{or}\quad y_t - \theta s_{t-1} \quad\text{or}\quad y_t (1 - s_{t-1}) \qquad\text{(reset
        none, subtract, zero)} \\ s_t &= [v_t > \theta] \quad\text{or}\quad s_t \sim \text{Bernoulli}(\sigma(v_t -
        \theta))

    The ELM itself has no reset; here it touches the readout of the next step only, and passes no gradient.

    Args:
        threshold: :math:`\theta`, a number or (output_size,); infinite only where no reset subtracts it.
        learn_threshold: train it.
        surrogate: called on :math:`v - \theta`, gives spikes of the same dtype; :class:`ATan` by default.
        reset: "none", "subtract" or "zero".
        stochastic: draw the spikes, with a straight-through gradient.
        graded_factor: spikes leave multiplied by this.
        learn_graded_factor: train it.
        generator: source of the random spikes; torch's global one by default.

    Raises:
        TypeError: a threshold or factor is no number, a flag no boolean, the surrogate not callable.
        ValueError: a threshold or factor is not finite; `reset` is none of them.

    >>> output = SpikeOutput(threshold=1.0, reset="subtract")
    >>> spikes, v, s = output(torch.full((1, 3, 1), 1.5))
    >>> spikes.flatten(), v.flatten()
    (tensor([1., 0., 1.]), tensor([1.5000, 0.5000, 1.5000]))
    """

    without_decay = ("threshold", "graded_factor")  # parameters that weight decay would turn into others

    def __init__(
        self,
        *,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = False,
        surrogate: Surrogate | None = None,
        reset: str = "none",
        stochastic: bool = False,
        graded_factor: float | Tensor = 1.0,
        learn_graded_factor: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if reset not in RESETS:
            raise ValueError(f"reset must be one of {list(RESETS)}, got {reset!r}")
        flags = {"learn_threshold": learn_threshold, "stochastic": stochastic}
        for name, flag in (flags | {"learn_graded_factor": learn_graded_factor}).items():
            check_flag(name, flag)
        if surrogate is not None:
            check_surrogate(surrogate)
        check_generator(generator)
        self._initial = {
            name: numbers(name, value) for name, value in (("threshold", threshold), ("graded_factor", graded_factor))
        }
        _check_finite("threshold", self._initial["threshold"], infinite=reset != "subtract")
        _check_finite("graded_factor", self._initial["graded_factor"], infinite=False)
        self.surrogate = ATan() if surrogate is None else surrogate
        self.reset, self.stochastic, self.generator = reset, stochastic, generator
        self.threshold: Tensor
        self.graded_factor: Tensor | None
        for name, value, learn in (
            ("threshold", threshold, learn_threshold),
            ("graded_factor", graded_factor, learn_graded_factor),
        ):
            tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).clone()
            if name == "graded_factor" and not learn and set(_flat(self._initial[name])) == {1.0}:
                self.register_buffer(name, None)
            elif learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def reset_parameters(self) -> None:
        """Threshold and factor as they were at the start of training."""
        options: dict[str, Any] = {
            f"learn_{name}": isinstance(self._parameters.get(name), nn.Parameter) for name in self._initial
        }
        draw_anew(self, lambda: SpikeOutput(**options | self._initial))

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's keywords, threshold and factor as numbers at the start of training; not the generator."""
        return self._initial | {
            "learn_threshold": isinstance(self.threshold, nn.Parameter),
            "surrogate": self.surrogate,
            "reset": self.reset,
            "stochastic": self.stochastic,
            "learn_graded_factor": isinstance(self.graded_factor, nn.Parameter),
        }

    @property
    def may_be_infinite(self) -> tuple[str, ...]:
        """Tensors that a file may hold so: the threshold of what never spikes, or always."""
        return ("threshold",) if any(map(math.isinf, _flat(self._initial["threshold"]))) else ()

    def meaning(self) -> dict[str, Any]:
        """What the numbers of the state dict are of."""
        return {"reset": self.reset, "stochastic": self.stochastic}

    def fire(self, v: Tensor) -> Tensor:
        """Spikes, 0 or 1, of readouts `v` of any shape ending in the threshold's.

        Raises:
            TypeError: the surrogate gives no tensor, or another dtype.
            ValueError: it gives another shape.
        """
        if self.stochastic:
            return bernoulli_spike(v - self.threshold, self.generator)
        return SpikeRule(self.threshold, self.surrogate).fire(v)

    @property
    def rule(self) -> SpikeRule | None:
        """Threshold and surrogate where a spike depends on its readout alone: no reset, no chance."""
        plain = self.reset == "none" and not self.stochastic
        return SpikeRule(self.threshold, self.surrogate) if plain else None

    def reset_readout(self, y: Tensor, s: Tensor) -> Tensor:
        """Readout of one step after the reset by the last step's spikes."""
        if self.reset == "subtract":
            return y - self.threshold.detach() * s.detach()
        return y * (1.0 - s.detach()) if self.reset == "zero" else y

    def forward(self, y: Tensor, s: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes times the graded factor, readout after reset and spikes, each the shape of `y`, (batch, time, ...).

        Args:
            y: readout, (batch, time, ...).
            s: spikes before the first step, (batch, ...); none by default.
        """
        if self.reset == "none":
            v, spikes = y, self.fire(y)
        else:
            v, spikes = self._fire_with_reset(y, y.new_zeros(y.shape[0], *y.shape[2:]) if s is None else s)
        return self.grade(spikes), v, spikes

    @untraced
    def _fire_with_reset(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        pairs = []
        for y_t in y.unbind(1):
            v_t = self.reset_readout(y_t, s)
            s = self.fire(v_t)
            pairs.append((v_t, s))
        if not pairs:
            return y, y
        readouts, spikes = zip(*pairs, strict=True)
        return torch.stack(readouts, dim=1), torch.stack(spikes, dim=1)

    def grade(self, spikes: Tensor) -> Tensor:
        """Spikes times the graded factor, where there is one."""
        return spikes if self.graded_factor is None else spikes * self.graded_factor

    def extra_repr(self) -> str:
        return f"reset={self.reset!r}, stochastic={self.stochastic}, surrogate={self.surrogate}"


def check_fits(output: SpikeOutput, shape: tuple[int, ...]) -> None:
    """Refuse a threshold or factor that would give the output of a layer another shape.

    Args:
        output: what fires.
        shape: of one sample's output in one step.

    Raises:
        ValueError: it would.
    """
    one = (1, *shape)  # a batch of one
    for name, part in (("threshold", output.threshold), ("graded_factor", output.graded_factor)):
        sizes = () if part is None else part.shape
        fits = len(sizes) <= len(one) and all(a in (1, b) for a, b in zip(reversed(sizes), reversed(one), strict=False))
        if not fits:
            raise ValueError(f"{name} must be a number or have shape {shape}, got {tuple(sizes)}")


def numbers(name: str, value: Any) -> Numbers:
    """A number, or numbers in tuples, of a number or a tensor."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a tensor of numbers, got {value}")
    if isinstance(value, int | float):
        return float(value)
    try:
        listed = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().tolist()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or a tensor of numbers, got {value!r:.100}") from error
    nested: Numbers = _tuples(listed)
    return nested


def _check_finite(name: str, values: Numbers, *, infinite: bool) -> None:
    for value in _flat(values):
        if math.isnan(value) or (math.isinf(value) and not infinite):
            raise ValueError(f"{name} must be {'a number' if math.isnan(value) else 'finite'}, got {value}")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _flat(value: Any) -> list[float]:
    return [number for part in value for number in _flat(part)] if isinstance(value, tuple) else [value]
