"""What defines an ELM neuron apart from its weights; what `save_pretrained` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Real
from typing import Any, TypedDict

import torch
from torch import Tensor

from elm_neuro.functional._elm import ACTIVATIONS, BRANCH_ACTIVATIONS
from elm_neuro.functional._routing import ROUTINGS

VARIANTS = ("v1", "v2")
SPACINGS = ("log", "linear")


class EquationOptions(TypedDict, total=False):
    """Keywords of the neuron's equations; :class:`elm_neuro.nn.ELM` explains each."""

    variant: str
    shuffle_routing: bool
    tau_s: float | tuple[float, ...]
    tau_m_init: tuple[float, float]
    tau_m_spacing: str
    tau_m_bounds: tuple[float, float] | None
    learn_tau_m: bool
    lambda_: float
    w_s_init: float
    learn_w_s: bool
    num_mlp_layers: int
    mlp_hidden_size: int | None
    activation: str
    branch_activation: str | None
    num_neuron: int | None


class RunOptions(TypedDict, total=False):
    """Keywords that say how a neuron is made and run; none of them is saved."""

    generator: torch.Generator | None
    backend: str
    recompute_every: int | None
    sparse_input: str


class BranchOptions(TypedDict, total=False):
    """Keywords of a neuron's branches; :class:`elm_neuro.nn.BranchELM` explains each."""

    num_branch: int | None
    num_synapse_per_branch: int
    routing: str | Tensor | None


class PlainOptions(EquationOptions, total=False):
    """Keywords that every shell of the neuron has."""

    delta_t: float
    flatten_output: bool
    batch_first: bool


class ELMCellOptions(PlainOptions, total=False):
    """Keywords of :class:`elm_neuro.nn.ELMCell` beside those that it names."""

    num_branch: int | None
    num_synapse_per_branch: int


class ELMOptions(PlainOptions, BranchOptions, total=False):
    """Keywords of :class:`elm_neuro.nn.ELM` beside those that it names."""


class BranchELMOptions(PlainOptions, RunOptions, total=False):
    """Keywords of :class:`elm_neuro.nn.BranchELM` beside those that it names."""


@dataclass(frozen=True, kw_only=True)
class ELMConfig:
    """Sizes, time constants and switches of an ELM neuron; times in ms. :class:`elm_neuro.nn.ELM` explains each.

    Raises:
        ValueError: a value is out of its range; the message names it, the rule and what came.

    >>> ELMConfig(input_size=700, output_size=20).hidden_size
    200
    """

    input_size: int
    output_size: int
    num_memory: int = 100
    variant: str = "v1"
    num_branch: int | None = None
    num_synapse_per_branch: int = 1
    routing: str | None = None
    shuffle_routing: bool = False
    delta_t: float = 1.0
    tau_s: float | tuple[float, ...] = 5.0
    tau_m_init: tuple[float, float] = (1.0, 150.0)
    tau_m_spacing: str = "log"
    tau_m_bounds: tuple[float, float] | None = None
    learn_tau_m: bool = True
    lambda_: float = 5.0
    w_s_init: float = 0.5
    learn_w_s: bool = True
    num_mlp_layers: int = 1
    mlp_hidden_size: int | None = None
    activation: str = "relu"
    branch_activation: str | None = None
    num_neuron: int | None = None
    flatten_output: bool = False
    batch_first: bool = True

    def __post_init__(self) -> None:
        set_plain_floats(self)
        for name in ("input_size", "output_size", "num_memory", "num_synapse_per_branch"):
            check_size(name, getattr(self, name))
        for name in ("num_branch", "mlp_hidden_size", "num_neuron"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        for name in ("shuffle_routing", "learn_tau_m", "learn_w_s", "flatten_output", "batch_first"):
            check_flag(name, getattr(self, name))
        check_integer("num_mlp_layers", self.num_mlp_layers, minimum=0)
        _one_of("variant", self.variant, VARIANTS)
        _one_of("tau_m_spacing", self.tau_m_spacing, SPACINGS)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("branch_activation", self.branch_activation, (None, *BRANCH_ACTIVATIONS))
        _one_of("routing", self.routing, (None, *ROUTINGS, "index"))
        _positive("delta_t", self.delta_t)
        _positive("lambda_", self.lambda_)
        if not (is_number(self.w_s_init) and self.w_s_init >= 0):
            raise ValueError(
                "w_s_init must be a finite number, not negative (synaptic weights are rectified), got "
                f"{self.w_s_init!r}"
            )
        taus = several(self.tau_s)
        for tau in (self.tau_s,) if taus is None else taus:
            _positive("tau_s", tau)
        if taus is not None:
            object.__setattr__(self, "tau_s", tuple(float(tau) for tau in taus))
            if len(taus) != self.branches:
                raise ValueError(f"tau_s must be one time or one per branch, {self.branches}, got {len(taus)}")
        if self.num_branch is None and (self.num_synapse_per_branch != 1 or self.routing is not None):
            raise ValueError("num_branch must be given with routing or several synapses per branch, got None")
        self._check_tau_m()

    def _check_tau_m(self) -> None:
        for name in ("tau_m_init", "tau_m_bounds"):
            pair = getattr(self, name)
            if pair is None and name == "tau_m_bounds":
                continue
            pair = several(pair) or (pair,)
            if len(pair) != 2 or not all(is_number(end) for end in pair) or not 0 <= pair[0] <= pair[1]:
                raise ValueError(
                    f"{name} must be two times in ms, (low, high) with 0 <= low <= high, got {getattr(self, name)!r}"
                )
            object.__setattr__(self, name, (float(pair[0]), float(pair[1])))
        if self.tau_m_init[0] == 0:
            raise ValueError(f"tau_m_init must be above 0 ms, got {self.tau_m_init}")
        low, high = self.bounds
        if not low <= self.tau_m_init[0] <= self.tau_m_init[1] <= high:
            raise ValueError(f"tau_m_bounds must include tau_m_init {self.tau_m_init}, got {self.tau_m_bounds}")
        if low == high and self.learn_tau_m:
            raise ValueError(
                f"tau_m_bounds must be a range where tau_m is learned, got {self.bounds}; give bounds or "
                "learn_tau_m=False"
            )

    @property
    def branches(self) -> int:
        """Number of branches; without `num_branch` every input is its own."""
        return self.input_size if self.num_branch is None else self.num_branch

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output in one step: ([num_neuron,] output_size), or flat."""
        if self.num_neuron is None:
            return (self.output_size,)
        return (self.num_neuron * self.output_size,) if self.flatten_output else (self.num_neuron, self.output_size)

    @property
    def hidden_size(self) -> int:
        """Width of the MLP's hidden layers."""
        return 2 * self.num_memory if self.mlp_hidden_size is None else self.mlp_hidden_size

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of tau_m in ms. Where none are given: a tenth of the lowest to ten times the highest initial value, or
        just these if fixed.
        """
        if self.tau_m_bounds is not None:
            return self.tau_m_bounds
        low, high = self.tau_m_init
        return (low / 10, 10 * high) if self.learn_tau_m else (low, high)

    def __setstate__(self, values: dict[str, Any]) -> None:
        """From a pickle, which may be a stranger's: checked as when it is made."""
        vars(self).update(values)
        self.__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ELMConfig:
        """Inverse of :meth:`to_dict`.

        >>> config = ELMConfig(input_size=3, output_size=1, tau_m_init=(1, 20))
        >>> ELMConfig.from_dict(config.to_dict()) == config
        True
        """
        check_fields(cls, values)
        return cls(**values)

    def check_size(self, num_tensors: int) -> None:
        """Refuse a made-up configuration that asks for more layers than a file has tensors."""
        if self.num_mlp_layers > num_tensors:
            raise ValueError(
                f"num_mlp_layers must be below the number of tensors, {num_tensors}, got {self.num_mlp_layers}"
            )


def check_fields(kind: type[Any], values: dict[str, Any]) -> None:
    """Refuse the values of a configuration of the dataclass `kind` that are unknown, or missing and have no default."""
    known = {field.name: field.default is MISSING for field in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"config must hold only the fields of {kind.__name__}, got also {unknown}")
    needed = [name for name, is_needed in known.items() if is_needed]
    if missing := sorted(set(needed) - set(values)):
        raise ValueError(f"config must hold {' and '.join(needed)}, missing {missing}")


def suggest(delta_t: float, num_steps: int) -> dict[str, Any]:
    """Time constants that suit sequences of `num_steps` steps of `delta_t` ms, as keywords for
    :class:`elm_neuro.nn.ELM`.

    Memory from the time step to the length of the data, log-spaced, free to move in a wider range (advice of table S1
    of arXiv:2306.16922); synapses of 5 ms, longer for coarse steps and for long data (150 ms served 16,384 steps,
    figure S6).

    Args:
        delta_t: time step in ms.
        num_steps: number of steps of a typical sequence.

    >>> suggest(delta_t=10.0, num_steps=100)
    {'delta_t': 10.0, 'tau_s': 10.0, 'tau_m_init': (10.0, 1000.0), 'tau_m_spacing': 'log', 'tau_m_bounds': (1.0,
    2000.0), 'lambda_': 5.0}
    """
    _positive("delta_t", delta_t)
    check_size("num_steps", num_steps)
    delta_t = plain(delta_t)
    duration = delta_t * num_steps
    return {
        "delta_t": float(delta_t),
        "tau_s": max(5.0, float(delta_t), duration / 100),
        "tau_m_init": (float(delta_t), float(duration)),
        "tau_m_spacing": "log",
        "tau_m_bounds": (delta_t / 10, 2.0 * duration),
        "lambda_": 5.0,
    }


def is_number(value: object) -> bool:
    """Whether it is a finite number, of Python or NumPy, and no boolean."""
    value = plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def several(value: Any) -> tuple[Any, ...] | None:
    """The numbers that came as a list, tuple, array or tensor; None where one came, or what has no order.

    >>> several([1.0, 2.0]), several("12"), several(torch.tensor([3.0]))
    ((1.0, 2.0), None, (3.0,))
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    unordered = str, bytes, Mapping, Set
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, unordered) else None


def plain(value: Any) -> Any:
    """A float of a number that is none of Python's, such as NumPy's float32; anything else as it is."""
    return float(value) if not isinstance(value, int | float) and isinstance(value, Real) else value


def set_plain_floats(config: Any) -> None:
    """Make floats of the other libraries' numbers where a configuration has floats: JSON holds no others."""
    for field in fields(config):
        if "float" in str(field.type):
            object.__setattr__(config, field.name, plain(getattr(config, field.name)))


LARGEST_SIZE = 2**31 - 1  # kernels number inputs and units in 32 bits


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Refuse what is no integer from `minimum` to :data:`LARGEST_SIZE`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r:.100}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if value > LARGEST_SIZE:
        came = value if value.bit_length() <= 128 else f"one of {value.bit_length()} bits"
        raise ValueError(f"{name} must be at most {LARGEST_SIZE}, got {came}")


def check_size(name: str, value: object) -> None:
    """Refuse what is no integer of at least 1, or too large a one."""
    check_integer(name, value, minimum=1)


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r:.100}")


def check_config(config: object, kind: type) -> None:
    """Refuse what is no configuration of this kind."""
    if not isinstance(config, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise TypeError(f"config must be {article} {kind.__name__}, got {type(config).__name__}")


def check_surrogate(surrogate: object, name: str = "surrogate") -> None:
    """Refuse what cannot be called on distances to a threshold: also a class in place of one of its objects."""
    if isinstance(surrogate, type):
        raise TypeError(f"{name} must be an object, got the class itself: {surrogate.__name__}()")
    if not callable(surrogate):
        raise TypeError(f"{name} must be called on the distance to threshold, got {surrogate!r:.100}")


def check_generator(generator: object) -> None:
    """Refuse what torch does not draw from."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r:.100}")


def _positive(name: str, value: Any) -> None:
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def _one_of(name: str, value: object, allowed: Iterable[str | None]) -> None:
    if value not in (choices := list(allowed)):
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
