"""What defines a recurrent layer of ELM neurons apart from its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from elm_neuro.functional import FastSigmoid, NetworkRule, Surrogate
from elm_neuro.functional._network import NETWORK_ACTIVATIONS, NETWORK_OUTPUTS
from elm_neuro.functional._spike import surrogate_from_dict, surrogate_to_dict
from elm_neuro.functional._wiring import WIRINGS
from elm_neuro.nn._config import (
    SPACINGS,
    VARIANTS,
    check_fields,
    check_flag,
    check_integer,
    check_surrogate,
    is_number,
    set_plain_floats,
    several,
)

SIZES = ("input_size", "output_size", "num_memory", "num_branch", "num_synapse_per_branch")
CHOICES: dict[str, Iterable[str]] = {
    "variant": VARIANTS,
    "tau_m_spacing": SPACINGS,
    "activation": NETWORK_ACTIVATIONS,
    "output": NETWORK_OUTPUTS,
    "wiring": (*WIRINGS, "index"),
}


@dataclass(frozen=True, kw_only=True)
class ELMNetworkConfig:
    """Sizes, time constants and switches of a recurrent layer of ELM neurons; times in ms. :class:`ELMNetwork` explains
    each.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of its range; the message names it, the rule and what came.

    >>> ELMNetworkConfig(input_size=700, output_size=96).hidden_size
    10
    """

    input_size: int
    output_size: int
    num_memory: int = 5
    num_branch: int = 30
    num_synapse_per_branch: int = 10
    wiring: str = "random"
    recurrent_fraction: float | None = 0.25
    rewiring: float = 0.1
    delta_t: float = 1.0
    tau_m_init: tuple[float, float] = (1.0, 500.0)
    tau_m_spacing: str = "log"
    tau_m_bounds: tuple[float, float] | None = None
    learn_tau_m: bool = False
    tau_b: float | None = None
    tau_high_pass: float | None = 5.0
    variant: str = "v2"
    lambda_: float = 5.0
    num_mlp_layers: int = 1
    mlp_hidden_size: int | None = None
    activation: str = "relu_squared"
    output: str = "relu"
    surrogate: Surrogate = FastSigmoid(100.0)  # noqa: RUF009  # it is frozen
    input_scale: float = 10.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    binarize: bool | None = None

    def __post_init__(self) -> None:
        set_plain_floats(self)
        for name in (*SIZES, "num_mlp_layers", "mlp_hidden_size"):
            size = getattr(self, name)
            if size is not None or name != "mlp_hidden_size":
                check_integer(name, size, minimum=0 if name == "num_mlp_layers" else 1)
        for name, choices in CHOICES.items():
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {list(choices)}, got {getattr(self, name)!r}")
        self._check_numbers()
        self._check_tau_m()
        check_flag("learn_tau_m", self.learn_tau_m)
        if self.binarize is not None and not isinstance(self.binarize, bool):
            raise TypeError(f"binarize must be True, False or None, got {self.binarize!r}")
        check_surrogate(self.surrogate)

    def _check_numbers(self) -> None:
        for name in ("delta_t", "tau_b", "tau_high_pass", "lambda_"):
            value = getattr(self, name)
            optional = name in ("tau_b", "tau_high_pass")
            if not (value is None and optional) and not (is_number(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0{' or None' * optional}, got {value!r}")
        if not is_number(self.input_scale):
            raise ValueError(f"input_scale must be a finite number, got {self.input_scale!r}")
        for name in ("recurrent_fraction", "rewiring"):
            value = getattr(self, name)
            if not (value is None and name == "recurrent_fraction") and not (is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
        for name in ("input_dropout", "recurrent_dropout"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value < 1):
                raise ValueError(f"{name} must be in [0, 1), got {value!r}")

    def _check_tau_m(self) -> None:
        for name in ("tau_m_init", "tau_m_bounds"):
            given = getattr(self, name)
            if given is None and name == "tau_m_bounds":
                continue
            pair = several(given) or (given,)
            if len(pair) != 2 or not all(is_number(end) for end in pair) or not 0 <= pair[0] <= pair[1]:
                raise ValueError(f"{name} must be two times in ms, (low, high) with 0 <= low <= high, got {given!r}")
            object.__setattr__(self, name, (float(pair[0]), float(pair[1])))
        low, high = self.bounds
        if self.tau_m_init[0] == 0 or not low <= self.tau_m_init[0] <= self.tau_m_init[1] <= high or low == high:
            rule = f"a range that includes tau_m_init {self.tau_m_init}, which begins above 0 ms"
            raise ValueError(f"tau_m_bounds must be {rule}, got {self.bounds}")

    @property
    def hidden_size(self) -> int:
        """Width of the MLPs' hidden layers."""
        return 2 * self.num_memory if self.mlp_hidden_size is None else self.mlp_hidden_size

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of tau_m in ms. Where none are given: a tenth of the lowest to the square root of ten times the
        highest initial value, as published.
        """
        low, high = self.tau_m_init
        return (low / 10, high * math.sqrt(10)) if self.tau_m_bounds is None else self.tau_m_bounds

    @property
    def fraction(self) -> float:
        """Expected share of synapses that read the layer itself; by default its share of the sources."""
        share = self.output_size / (self.input_size + self.output_size)
        return share if self.recurrent_fraction is None else float(self.recurrent_fraction)

    @property
    def index_shape(self) -> tuple[int, int, int]:
        """(num_neuron, num_branch, num_synapse_per_branch)."""
        return self.output_size, self.num_branch, self.num_synapse_per_branch

    def rule(self, surrogate: Surrogate) -> NetworkRule:
        """What the neurons compute alike."""
        return NetworkRule(self.activation, self.output, surrogate, float(self.input_scale))

    def __setstate__(self, values: dict[str, Any]) -> None:
        """From a pickle, which may be a stranger's: checked as when it is made."""
        vars(self).update(values)
        self.__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON holds them.

        Raises:
            TypeError: the surrogate is none of :mod:`elm_neuro.functional`.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return values | {"surrogate": surrogate_to_dict(self.surrogate)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ELMNetworkConfig:
        """Inverse of :meth:`to_dict`.

        >>> config = ELMNetworkConfig(input_size=3, output_size=2, output="spike")
        >>> ELMNetworkConfig.from_dict(config.to_dict()) == config
        True
        """
        check_fields(cls, values)
        named = {"surrogate": surrogate_from_dict(values["surrogate"])} if "surrogate" in values else {}
        return cls(**values | named)

    def check_size(self, num_tensors: int) -> None:
        """Refuse a made-up configuration that asks for more layers than a file has tensors."""
        if self.num_mlp_layers > num_tensors:
            raise ValueError(
                f"num_mlp_layers must be below the number of tensors, {num_tensors}, got {self.num_mlp_layers}"
            )


class ELMNetworkOptions(TypedDict, total=False):
    """Keywords of :class:`ELMNetwork` beside those that it names."""

    num_branch: int
    num_synapse_per_branch: int
    recurrent_fraction: float | None
    rewiring: float
    delta_t: float
    tau_m_init: tuple[float, float]
    tau_m_spacing: str
    tau_m_bounds: tuple[float, float] | None
    learn_tau_m: bool
    tau_b: float | None
    tau_high_pass: float | None
    variant: str
    lambda_: float
    num_mlp_layers: int
    mlp_hidden_size: int | None
    activation: str
    output: str
    input_scale: float
    input_dropout: float
    recurrent_dropout: float
    binarize: bool | None
