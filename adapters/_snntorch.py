"""What snnTorch expects of a neuron, for the faces in snntorch.py: its keywords, hidden and explicit states, firing,
reset.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor

from elm_neuro.adapters._face import check_version, state_sizes
from elm_neuro.functional import ATan
from elm_neuro.nn import output_shape
from elm_neuro.nn._checks import check_tensor
from elm_neuro.nn._config import check_flag, check_surrogate
from elm_neuro.nn._layer import AnyLayer
from elm_neuro.nn._narrow import state_dtype, wide
from elm_neuro.nn._spike_output import numbers

try:
    import snntorch
    from snntorch import SpikingNeuron, utils
except ImportError as error:
    raise ImportError('elm_neuro.adapters.snntorch needs snntorch: pip install "elm-neuro[snntorch]"') from error

OLDEST = "0.9.4"  # the oldest that the tests pass with
check_version("snntorch", snntorch.__version__, OLDEST)

__all__ = ["DEFAULTS", "HostOptions", "Neuron", "SpikingNeuron", "same_dtype", "utils"]

RESETS = ("subtract", "zero", "none")  # in the order of snnTorch's reset_mechanism_val


class HostOptions(TypedDict, total=False):
    """snnTorch's keywords of a neuron, in its order; :class:`elm_neuro.adapters.snntorch.Cell` explains each."""

    threshold: float | Tensor
    spike_grad: Any
    surrogate_disable: bool
    init_hidden: bool
    inhibition: bool
    learn_threshold: bool
    reset_mechanism: str
    state_quant: Any
    output: bool
    graded_spikes_factor: float | Tensor
    learn_graded_spikes_factor: bool


DEFAULTS: dict[str, Any] = {
    "threshold": 1.0,
    "spike_grad": None,
    "surrogate_disable": False,
    "init_hidden": False,
    "inhibition": False,
    "learn_threshold": False,
    "reset_mechanism": "none",
    "state_quant": False,
    "output": False,
    "graded_spikes_factor": 1.0,
    "learn_graded_spikes_factor": False,
}
FLAGS = tuple(name for name, default in DEFAULTS.items() if default is False and name != "state_quant")


class Neuron(SpikingNeuron):  # type: ignore[misc]  # snnTorch has no types
    """What the faces share: hidden and explicit states, and staying out of snnTorch's list that keeps every neuron
    alive.
    """

    state_names: tuple[str, ...]  # in the order of the call, the membrane last
    core: Any  # a layer of elm_neuro.nn, or another that keeps its protocol
    threshold: Tensor
    graded_spikes_factor: Tensor
    without_decay = ("threshold", "graded_spikes_factor")  # parameters that weight decay would turn into others
    _alive: ClassVar[weakref.WeakSet[Neuron]] = weakref.WeakSet()

    def __init__(self, core: AnyLayer, **host: Unpack[HostOptions]) -> None:
        keywords = {**DEFAULTS, **host}
        if keywords["reset_mechanism"] not in RESETS:
            raise ValueError(f"reset_mechanism must be one of {list(RESETS)}, got {keywords['reset_mechanism']!r}")
        for name in FLAGS:
            check_flag(name, keywords[name])
        shape = output_shape(core)
        # snnTorch would keep an integer as such, and the caller's own tensor
        for name in ("threshold", "graded_spikes_factor"):
            numbers(name, keywords[name])  # which refuses what is none
            value = torch.as_tensor(keywords[name], dtype=torch.get_default_dtype()).detach().clone()
            if value.shape not in ((), shape[-1:], shape):
                raise ValueError(f"{name} must be a number or have shape {shape}, got {tuple(value.shape)}")
            keywords[name] = value
        if keywords["spike_grad"] is None:
            keywords["spike_grad"] = ATan()
        check_surrogate(keywords["spike_grad"], "spike_grad")
        try:
            super().__init__(**keywords)
        finally:
            SpikingNeuron.instances[:] = [other for other in SpikingNeuron.instances if other is not self]
        self.core, self.output_shape = core, shape
        self._core_sizes = state_sizes(core)
        size, neuron = core.input_size, getattr(core.config, "num_neuron", None)
        self._inputs = ((size,), (neuron, size))  # shapes of one sample in one step
        Neuron._alive.add(self)

    def _name_states(self, names: tuple[str, ...]) -> None:
        """Say what the states are called, and keep empty ones.

        Unlike snnTorch's they are no buffers: those are broadcast by DistributedDataParallel before each call, and
        averaged by an average of buffers.
        """
        self.state_names = names
        for name in names:
            self.__dict__[name] = torch.zeros(0)

    def reset_mem(self) -> tuple[Tensor, ...]:
        """Forget the hidden states. Returns fresh ones in the order of the call, membrane last: empty, which is zeros
        for any batch.
        """
        self._keep(tuple(part.new_zeros(0) for part in self._hidden()))
        return self._hidden()

    def detach_mem(self) -> None:
        """Cut the hidden states from the graph, for truncated backpropagation."""
        self._keep(tuple(part.detach() for part in self._hidden()))

    @classmethod
    def reset_hidden(cls) -> None:
        """:meth:`reset_mem` of every neuron of this class in the process, as snnTorch defines it; :func:`reset` is for
        one network.
        """
        for neuron in tuple(Neuron._alive):
            if isinstance(neuron, cls):
                neuron.reset_mem()

    @classmethod
    def detach_hidden(cls) -> None:
        """:meth:`detach_mem` of every neuron of this class in the process, as snnTorch defines it."""
        for neuron in tuple(Neuron._alive):
            if isinstance(neuron, cls):
                neuron.detach_mem()

    def _hidden(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.state_names)

    def _keep(self, states: tuple[Tensor, ...]) -> None:
        for name, part in zip(self.state_names, states, strict=True):
            self.__dict__[name] = part  # setattr would cost a tenth of the step

    def __getattr__(self, name: str) -> Any:
        """As torch; snnTorch's ``AttributeMonitor`` asks this for states, which are buffers in its own neurons."""
        if name in self.__dict__.get("state_names", ()):
            return self.__dict__[name]
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name in self.state_names:  # they go where the parameters go, and in the dtype that the core keeps states in
            part = fn(self.__dict__[name])
            self.__dict__[name] = wide(part)
        return self

    def _shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Of the states."""
        raise NotImplementedError

    def _start(self, batch: int) -> tuple[Tensor, ...]:
        """The states before the first step."""
        raise NotImplementedError

    def _advance(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Spikes and states after one step."""
        raise NotImplementedError

    def _states_before(self, batch: int, passed: tuple[Tensor | None, ...]) -> tuple[Tensor, ...] | None:
        """The states passed, the hidden ones, or zeros where those are fresh; one that does not fit is never taken for
        zeros.
        """
        if self.init_hidden:
            if any(part is not None for part in passed):
                raise TypeError(
                    f"{', '.join(self.state_names)} must be left out with init_hidden=True: the neuron keeps them "
                    "itself"
                )
            passed = self._hidden()
            if passed[0].ndim > 1:
                if passed[0].shape[0] != batch:
                    raise ValueError(
                        f"x must have the hidden states' batch of {passed[0].shape[0]} until reset_mem(), got {batch}: "
                        "snntorch.utils.reset(net) before every batch forgets the states of all neurons in net"
                    )
                return self._hidden()
        shapes = self._shapes(batch)
        if all(part is None or (isinstance(part, Tensor) and part.shape == (0,)) for part in passed):
            return None
        states, like = [], next(self.core.parameters())
        for name, part, shape in zip(self.state_names, passed, shapes, strict=True):
            if not isinstance(part, Tensor):
                raise TypeError(
                    f"{', '.join(self.state_names)} must be given together, as tensors, got {type(part).__name__} "
                    f"for {name}"
                )
            if part.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(part.shape)}")
            check_tensor(name, part, like, state_dtype(like))
            states.append(part)
        return tuple(states)

    def _one_step(self, x: Tensor, *passed: Tensor | None) -> Any:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        batch = x.shape[0] if x.ndim else 0
        before = self._states_before(batch, passed)
        spk, states = self._advance(x, self._start(batch) if before is None else before)
        if self.init_hidden:
            self._keep(states)
        return spk if self.init_hidden and not self.output else (spk, *states)

    def _spikes(self, distance: Tensor) -> Tensor:
        return same_dtype("spike_grad", self.spike_grad(distance), distance)

    @staticmethod
    def _surrogate_bypass(input_: Tensor) -> Tensor:
        return (input_ > 0).to(input_.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, which refuse a tensor inside a graph."""
        return self.__dict__ | {name: self.__dict__[name].detach() for name in self.state_names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        Neuron._alive.add(self)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        saved = state_dict.get(f"{prefix}reset_mechanism_val")
        if saved is not None and not saved.is_meta:
            self._reset_mechanism = RESETS[int(saved)]  # snnTorch goes on with the one of the constructor

    def extra_repr(self) -> str:
        return f"init_hidden={self.init_hidden}, output={self.output}, reset_mechanism={self.reset_mechanism!r}"


def same_dtype(name: str, after: Tensor, before: Tensor) -> Tensor:
    if after.dtype != before.dtype:
        raise TypeError(f"{name} must keep the dtype {before.dtype} of the neuron, got {after.dtype}")
    return after
