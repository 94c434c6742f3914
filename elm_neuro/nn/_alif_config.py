"""What defines a layer of adaptive LIF neurons apart from its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypedDict

import torch

from elm_neuro.functional import FastSigmoid, Surrogate
from elm_neuro.functional._spike import SurrogateStep, surrogate_from_dict, surrogate_to_dict
from elm_neuro.nn._config import check_fields, check_flag, check_size, check_surrogate, is_number, set_plain_floats

BETA_RANGE = (0.001, 0.999)  # ranges of the effective parameters, as in Blocks
P_RANGE = (0.0, 0.999)
B_RANGE = (0.001, 1.0)
GRADIENTS = ("loop", "blocks")
MOST_LATENCY = 1_000_000  # steps: the state remembers the spikes of so many


@dataclass(frozen=True, kw_only=True)
class ALIFConfig:
    """Sizes, time constants and switches of a layer of adaptive LIF neurons; times in ms. :class:`ALIF` explains each.

    Raises:
        ValueError: a value is out of its range; the message names it, the rule and what came.

    >>> ALIFConfig(input_size=700, output_size=20, latency=2.5).latency_steps
    2
    """

    input_size: int
    output_size: int
    delta_t: float = 1.0
    tau_v: float = 10.0
    tau_a: float = 100.0
    b_init: float = 0.5
    latency: float = 0.0
    adaptive: bool = True
    recurrent: bool = False
    surrogate: Surrogate = FastSigmoid()  # noqa: RUF009  # it is frozen
    detach_reset: bool = True
    detach_recurrent: bool = True
    gradient: str = "loop"

    def __post_init__(self) -> None:
        set_plain_floats(self)
        for name in ("input_size", "output_size"):
            check_size(name, getattr(self, name))
        for name in ("adaptive", "recurrent", "detach_reset", "detach_recurrent"):
            check_flag(name, getattr(self, name))
        for name in ("delta_t", "tau_v", "tau_a"):
            check_time(name, getattr(self, name))
        check_decay("tau_v", self.tau_v, self.delta_t, BETA_RANGE[1])
        if self.adaptive:
            check_decay("tau_a", self.tau_a, self.delta_t, P_RANGE[1])
        if not (is_number(self.b_init) and B_RANGE[0] <= self.b_init <= B_RANGE[1]):
            raise ValueError(f"b_init must be in [{B_RANGE[0]}, {B_RANGE[1]}], got {self.b_init!r}")
        if not (is_number(self.latency) and 0 <= self.latency / self.delta_t <= MOST_LATENCY):
            rule = f"must be a time in ms, not negative and at most {MOST_LATENCY:,} steps"
            raise ValueError(f"latency {rule}, got {self.latency!r} with delta_t {self.delta_t} ms")
        if not isinstance(self.gradient, str) or self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {self.gradient!r}")
        if self.gradient == "blocks" and not (self.detach_reset and self.detach_recurrent):
            flags = f"detach_reset {self.detach_reset} and detach_recurrent {self.detach_recurrent}"
            raise ValueError(f'gradient "blocks" needs detach_reset and detach_recurrent, got {flags}')
        check_surrogate(self.surrogate)

    @property
    def latency_steps(self) -> int:
        """Whole steps in which a neuron takes no input after a spike."""
        return math.floor(self.latency / self.delta_t + 1e-9)

    def check_single_steps(self, reason: str) -> None:
        """Refuse to take a sequence in calls of single steps, where each would be a block of its own.

        Raises:
            ValueError: the gradient is that of blocks of several steps; the message says the `reason` for the calls.
        """
        if self.gradient == "blocks" and self.latency_steps and torch.is_grad_enabled():
            raise ValueError(f'gradient "blocks" needs a block of steps at once, got calls of single steps: {reason}')

    def __setstate__(self, values: dict[str, Any]) -> None:
        """From a pickle, which may be a stranger's: checked as when it is made."""
        vars(self).update(values)
        self.__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as JSON holds them.

        Raises:
            TypeError: the surrogate is none of :mod:`elm_neuro.functional`.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"surrogate": surrogate_to_dict(self.surrogate)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ALIFConfig:
        """Inverse of :meth:`to_dict`.

        >>> config = ALIFConfig(input_size=3, output_size=1, surrogate=FastSigmoid(25.0))
        >>> ALIFConfig.from_dict(config.to_dict()) == config
        True
        """
        check_fields(cls, values)
        named = {"surrogate": surrogate_from_dict(values["surrogate"])} if "surrogate" in values else {}
        return cls(**values | named)


def check_time(name: str, time: Any) -> None:
    """Refuse what is no time above 0 ms."""
    if not (is_number(time) and time > 0):
        raise ValueError(f"{name} must be a time above 0 ms, got {time!r}")


def check_decay(name: str, time: float, delta_t: float, most: float) -> None:
    """Refuse a time constant whose decay per step is above its range; below it forgets within a step either way."""
    if math.exp(-delta_t / time) > most + 1e-6:
        raise ValueError(
            f"{name} must give a decay per step of at most {most}, got {time} ms with delta_t {delta_t} ms"
        )


class LIFEquationOptions(TypedDict, total=False):
    """Keywords of the equations of a LIF; :class:`ALIF` explains each."""

    tau_v: float
    tau_a: float
    b_init: float
    latency: float
    recurrent: bool
    detach_reset: bool
    detach_recurrent: bool
    gradient: str


class ALIFEquationOptions(LIFEquationOptions, total=False):
    """Keywords of the equations of an adaptive LIF; :class:`ALIF` explains each."""

    adaptive: bool


class ALIFCellOptions(ALIFEquationOptions, total=False):
    """Keywords of :class:`ALIFCell` beside those that it names."""

    delta_t: float


class ALIFOptions(ALIFCellOptions, total=False):
    """Keywords of :class:`ALIF` beside those that it names."""

    surrogate: SurrogateStep | Surrogate | None  # the first for recipes, which name a class
    generator: torch.Generator | None


class LIFOptions(LIFEquationOptions, total=False):
    """Keywords of :class:`LIF` beside those that it names."""

    delta_t: float
    surrogate: SurrogateStep | Surrogate | None  # the first for recipes, which name a class
    generator: torch.Generator | None
