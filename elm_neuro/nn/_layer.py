"""The protocol that every layer of neurons keeps: ours and anyone's, by what it has and not by what it inherits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Protocol, TypeGuard, TypeVar

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from elm_neuro import backends
from elm_neuro.events import SpikeEvents

State = TypeVar("State", bound=tuple[Tensor, ...])
PARTS = ("input_size", "output_size", "delta_t", "config", "state_type", "initial_state", "check_state", "step")
METHODS = ("initial_state", "check_state", "step")
FORWARD = ("state", "lengths")  # what forward takes after x


class Config(Protocol):
    """What defines a layer apart from its weights: a frozen dataclass, of which the class also has ``from_dict``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON holds them."""
        ...


class Layer(Protocol[State]):
    """An ``nn.Module`` that :class:`elm_neuro.SpikingELM`, the faces in ``elm_neuro.adapters``, training, saving and
    export take, whoever wrote it. Nothing is inherited: what counts is that these parts are there.

    A layer may also have

    - ``output_shape``, a tuple: the shape of one sample's output in one step, where it is not ``(output_size,)``;
    - ``emits_spikes = True`` where its output is spikes already, so that nobody puts a threshold behind it;
    - ``is_cell = True`` where its ``forward`` takes one step, as ``step`` does; `lengths` are then 0 or 1;
    - ``backend``, the name of the backend that it runs on;
    - ``core``, the layer that it wraps;
    - ``forward_spiking(x, state, lengths, rule, *, last_readout)``, beside its ``forward``: spikes, output and state at
      once, by the threshold and surrogate of a :class:`elm_neuro.backends.SpikeRule`; with `last_readout` the output of
      each sample's last valid step alone, (batch, *output_shape), 0 for a sample without any;
    - ``config_type`` and ``from_config``, to be saved: :func:`elm_neuro.pretrained.register`.
    """

    @property
    def input_size(self) -> int:
        """Number of inputs."""
        ...

    @property
    def output_size(self) -> int:
        """Number of outputs; in a population, of each neuron."""
        ...

    @property
    def delta_t(self) -> float:
        """Time step in ms."""
        ...

    @property
    def config(self) -> Config:
        """What defines the layer apart from its weights: a frozen dataclass with ``to_dict`` and ``from_dict``."""
        ...

    @property
    def state_type(self) -> type[State]:
        """The state's class: a NamedTuple of tensors, batch first in each."""
        ...

    def initial_state(self, batch: int) -> State:
        """The state before a sequence, in the parameters' dtype and on their device."""
        ...

    def check_state(self, state: State, batch: int) -> State:
        """`state` where it fits the layer and a batch of `batch`; else a TypeError or ValueError that says why."""
        ...

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x_t (batch, input_size); output (batch, *output_shape) and the state after it."""
        ...

    def __call__(
        self, x: Tensor | SpikeEvents, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """``forward``: x (batch, time, input_size) or events; output (batch, time, *output_shape), zero past `lengths`,
        and the state after each sample's last valid step. `state` None is :meth:`initial_state`.
        """
        ...


AnyLayer = Layer[Any]


def check_layer(module: object, name: str = "core") -> None:
    """Refuse a module that lacks a part of the protocol :class:`Layer`.

    Args:
        module: what was given as a layer.
        name: of the argument, for the message.

    Raises:
        TypeError: it is no ``nn.Module``, or lacks a part, or one is something else; the message names all that are.
        ValueError: it takes sequences time first.

    >>> check_layer(nn.Tanh())
    Traceback (most recent call last):
    TypeError: core must be a layer as elm_neuro.nn.Layer describes it, got Tanh without input_size, output_size, ...
    """
    if missing := _missing(module):
        kind = type(module).__name__
        raise TypeError(
            f"{name} must be a layer as elm_neuro.nn.Layer describes it, got {kind} without {', '.join(missing)}"
        )
    if wrong := _wrong(module):
        raise TypeError("; ".join(f"{name}.{rule}" for rule in wrong))
    if not getattr(module.config, "batch_first", True):  # type: ignore[attr-defined]  # it has one
        raise ValueError(f"{name} must be batch first, got batch_first=False")


def is_layer(module: object) -> TypeGuard[AnyLayer]:
    """Whether a module has all parts of the protocol :class:`Layer`, as it describes them.

    >>> is_layer(nn.LSTM(3, 2))
    False
    """
    return not _missing(module) and not _wrong(module)


def output_shape(module: AnyLayer) -> tuple[int, ...]:
    """Shape of one sample's output in one step: what the layer says, else ``(output_size,)``."""
    shape: tuple[int, ...] | None = getattr(module, "output_shape", None)
    return (module.output_size,) if shape is None else tuple(shape)


def forward_spiking(core: Any) -> Callable[..., tuple[Tensor, Tensor, Any]] | None:
    """The core's way to fire inside its own pass, where it has one that its call would not differ from.

    It does differ where someone hangs a hook on the core or gives it another forward.
    """
    owner = next((kind for kind in type(core).__mro__ if "forward" in vars(kind)), None)
    if owner is None or "forward_spiking" not in vars(owner) or "forward" in vars(core) or has_hooks(core):
        return None
    inside: Callable[..., tuple[Tensor, Tensor, Any]] = core.forward_spiking
    return inside


def step_by_call(core: Any) -> Callable[..., tuple[Tensor, Any]]:
    """The core's step; where someone hangs a hook on its call or gives it another, a call for a sequence of one.

    A subclass that has its own ``forward`` and its parent's ``step`` is called too.
    """
    plain = _steps_itself(type(core)) and "forward" not in vars(core) and not has_hooks(core)
    if plain or getattr(core, "is_cell", False):
        found: Callable[..., tuple[Tensor, Any]] = core.step
        return found

    def call(x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = core(x_t.unsqueeze(1), state)
        return y.squeeze(1), after

    return call


def _steps_itself(kind: type[Any]) -> bool:
    """Whether the class that has the ``forward`` of `kind` has its ``step`` too, or one that derives from it has."""
    for one in kind.__mro__:
        if "step" in vars(one):
            return True
        if "forward" in vars(one):
            return False
    return True


def has_hooks(module: nn.Module) -> bool:
    """Whether anyone hangs on a module's call."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks  # on every module; torch 2.6 has no function that asks for all of them
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


class _HasConfig(Protocol):
    @property
    def config(self) -> Any: ...


class Configured:
    """Sizes and time step of a layer, as its `config` says."""

    @property
    def input_size(self: _HasConfig) -> int:
        """Number of inputs."""
        size: int = self.config.input_size
        return size

    @property
    def output_size(self: _HasConfig) -> int:
        """Number of outputs of a neuron; of neurons, where each has one."""
        size: int = self.config.output_size
        return size

    @property
    def delta_t(self: _HasConfig) -> float:
        """Time step in ms."""
        step: float = self.config.delta_t
        return step


class BackendName:
    """The attribute `backend` of a layer: a name is checked where it is assigned.

    Args:
        operator: whose backends the layer runs on.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it cannot run here.
    """

    def __init__(self, operator: str) -> None:
        self.operator = operator

    def __get__(self, layer: nn.Module | None, owner: type[nn.Module] | None = None) -> str:
        name: str = "auto" if layer is None else layer._backend  # type: ignore[assignment]  # of __set__
        return name

    def __set__(self, layer: nn.Module, name: str) -> None:
        backends.resolve(name, operator=self.operator)
        layer.__dict__["_backend"] = name  # under "backend" the compiler of torch 2.12 and older would ask for itself


def backend_shown(layer: Any, like: Tensor, operator: str) -> str:
    """What the repr of a layer says of its backend: the one that runs, or its own word where none can.

    Args:
        layer: it has a `backend`.
        like: a parameter of it.
        operator: whose backends the layer runs on.
    """
    name: str = layer.backend
    try:
        return backends.resolve(name, like, operator=operator)
    except (ValueError, RuntimeError):  # withdrawn, or missing where this was unpickled: to run it says so
        return name


def _missing(module: object) -> list[str]:
    """Names of the parts of the protocol that are not there."""
    if not isinstance(module, nn.Module):
        return ["being an nn.Module"]
    missing = [part for part in PARTS if not hasattr(module, part)]
    for part, inner in (("config", "to_dict"), ("state_type", "_fields")):
        if part not in missing and not hasattr(getattr(module, part), inner):
            missing.append(f"{part}.{inner}")
    if "forward" in vars(module):  # put there by others, as by torch.compile
        return missing
    if type(module).forward is nn.Module.forward:
        return [*missing, "forward"]
    known = {one.name for one in _taken(module)}
    return missing + [f"{keyword} in forward" for keyword in FORWARD if known and keyword not in known]


def _wrong(module: Any) -> list[str]:
    """What the parts of a layer that are there must be and are not."""
    wrong = [
        f"{name} must be an integer of at least 1, got {size!r:.60}"
        for name, size in (("input_size", module.input_size), ("output_size", module.output_size))
        if not isinstance(size, Tensor) and not (hasattr(size, "__index__") and size >= 1)  # also NumPy's
    ]
    delta_t = module.delta_t
    if not isinstance(delta_t, Tensor) and not (isinstance(delta_t, Real) and 0 < float(delta_t) < math.inf):
        wrong.append(f"delta_t must be a finite number above 0, got {delta_t!r:.60}")
    if isinstance(module.state_type, tuple):
        wrong.append("state_type must be the class of the states, got one of them")
    methods = {name: getattr(module, name) for name in METHODS}
    wrong += [f"{name} must be callable, got {one!r:.60}" for name, one in methods.items() if not callable(one)]
    if "forward" not in vars(module) and inspect.isfunction(type(module).forward):
        taken = _taken(module)
        by_place = tuple(one.name for one in taken if one.kind is not one.KEYWORD_ONLY)[1:]
        if taken and by_place[1:3] != FORWARD:
            wrong.append(f"forward must take x, state, lengths in this order, got {', '.join(by_place)} by place")
    return wrong


def _taken(module: nn.Module) -> list[inspect.Parameter]:
    """Parameters of the forward of a layer's class; none where it hands on what it is given."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())
    return [] if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters) else parameters
