"""Layers that spike: any layer's readout against a threshold."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar  # with a default; torch needs it too

from elm_neuro import pretrained
from elm_neuro.backends.parts._lengths import cut_at, where_running
from elm_neuro.backends.parts._plain import may_look
from elm_neuro.backends.parts._untraced import compilable
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ATan, ELMState, Surrogate
from elm_neuro.functional._spike import surrogate_from_dict, surrogate_to_dict
from elm_neuro.nn._checks import check_batch, check_part, check_parts, checked_lengths, fits
from elm_neuro.nn._config import check_config, check_fields, check_flag
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import AnyLayer, Config, check_layer, forward_spiking, has_hooks, output_shape, step_by_call
from elm_neuro.nn._lengths import last_or_before, step_where_valid, where_any
from elm_neuro.nn._narrow import as_stored
from elm_neuro.nn._spike_output import Numbers, SpikeOptions, SpikeOutput, check_fits, numbers

Core = TypeVar("Core", bound=AnyLayer, default=Any)


class SpikingELMState(NamedTuple):
    """What a spiking ELM carries from step to step; zeros at the start."""

    b: Tensor  # (batch, [num_neuron,] num_branch)  branch trace
    m: Tensor  # (batch, [num_neuron,] num_memory)  memory
    v: Tensor  # (batch, [num_neuron,] output_size)  readout after reset
    s: Tensor  # (batch, [num_neuron,] output_size)  spikes, 0 or 1


_SPIKING_STATES: dict[Any, type[Any]] = {ELMState: SpikingELMState}


def spiking_state(inner: Any) -> type[Any]:
    """The state of a layer made to spike: the fields of its own state `inner`, then v, the readout after reset, and s,
    the spikes.

    A field of `inner` that has one of these names is called ``core_v`` or ``core_s`` (:func:`free_names`). One class
    for each `inner`; its states pickle.

    >>> spiking_state(ELMState) is SpikingELMState
    True
    """
    if inner in _SPIKING_STATES:
        return _SPIKING_STATES[inner]
    make: Any = namedtuple  # type checkers want to know the fields beforehand
    names = free_names(inner._fields, ("v", "s").__contains__)
    kind = make(f"Spiking{inner.__name__}", [*names, "v", "s"], module=inner.__module__)
    own, times = getattr(inner, "_made_of", (inner, 0))
    kind._made_of = own, times + 1
    kind.__reduce__ = lambda state: (restored, (own, tuple(state), times + 1))  # its class stands in no module
    return _SPIKING_STATES.setdefault(inner, kind)


def free_names(names: Sequence[str], is_taken: Callable[[str], bool]) -> list[str]:
    """`names`, with ``core_`` before one that is taken, as often as it takes to have it to itself.

    >>> free_names(("core_v", "v"), ("v", "s").__contains__)
    ['core_v', 'core_core_v']
    """
    free: list[str] = []
    for name in names:
        new = name
        while is_taken(new) or new in free or (new != name and new in names):
            new = f"core_{new}"
        free.append(new)
    return free


def restored(inner: Any, parts: tuple[Tensor, ...], times: int = 1) -> Any:
    """A state of :func:`spiking_state` from a pickle: of a layer that was made to spike so many times."""
    for _ in range(times):
        inner = spiking_state(inner)
    return inner(*parts)


@dataclass(frozen=True, kw_only=True)
class SpikingELMConfig:
    """The configuration of a layer and the keywords of its :class:`SpikeOutput`."""

    core: Config  # of the layer that spikes
    core_class: str  # the name under which that layer's class is saved
    threshold: Numbers = 1.0
    learn_threshold: bool = False
    surrogate: Surrogate = ATan()  # noqa: RUF009  # it is frozen
    reset: str = "none"
    stochastic: bool = False
    graded_factor: Numbers = 1.0
    learn_graded_factor: bool = False

    @property
    def output(self) -> dict[str, Any]:
        """The keywords of :class:`SpikeOutput`."""
        return {name: value for name, value in vars(self).items() if name not in ("core", "core_class")}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON holds them.

        Raises:
            TypeError: the surrogate is none of :mod:`elm_neuro.functional`.
        """
        core = {"class": self.core_class, "config": self.core.to_dict()}
        return {"core": core, **self.output, "surrogate": surrogate_to_dict(self.surrogate)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SpikingELMConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: a field is unknown, or the class of the core is none that can be saved.
        """
        values = dict(values)
        kind, core = pretrained.described(values.pop("core", None), "core")
        values |= {"core": core, "core_class": kind.name}
        check_fields(cls, values)
        for name in ("learn_threshold", "stochastic", "learn_graded_factor"):
            check_flag(name, values.get(name, False))
        for name in ("threshold", "graded_factor"):
            if name in values:
                values[name] = numbers(name, values[name])
        if "surrogate" in values:
            values["surrogate"] = surrogate_from_dict(values["surrogate"])
        return cls(**values)

    def check_size(self, num_tensors: int) -> None:
        """Refuse a made-up configuration that asks for more layers than a file has tensors."""
        check = getattr(self.core, "check_size", None)
        if check is not None:
            check(num_tensors)


@pretrained.register
class SpikingELM(pretrained.Saved, nn.Module, Generic[Core]):
    """An ELM neuron, a population of them, or any other layer, whose readout spikes.

    Args:
        core: the layer: :class:`ELM`, :class:`BranchELM`, or another that keeps the protocol :class:`Layer`.
        output: keywords of :class:`SpikeOutput`.

    Shapes: x and lengths as for `core`; spikes like its output, (batch, time, [num_neuron,] output_size) or flattened
    as `core` does; state :class:`SpikingELMState` for an ELM, for another layer its own with v and s behind
    (:attr:`state_type`), None for zeros.

    Raises:
        TypeError: `core` lacks a part of the protocol, or a keyword is unknown.
        ValueError: `core` takes sequences time first; a threshold or factor does not fit its output.

    >>> from elm_neuro import BranchELM
    >>> branches = {"num_branch": 10, "num_synapse_per_branch": 70, "num_neuron": 32, "flatten_output": True}
    >>> spiking = SpikingELM(BranchELM(700, 1, **branches), threshold=0.5)
    >>> spikes, state = spiking(torch.zeros(2, 50, 700))
    >>> spikes.shape
    torch.Size([2, 50, 32])
    """

    config_type = SpikingELMConfig
    emits_spikes = True

    @spelled_out(SpikeOptions, SpikeOutput, core=nn.Module)
    def __init__(self, core: Core, **output: Unpack[SpikeOptions]) -> None:
        super().__init__()
        check_keywords(self, output, SpikeOptions, SpikingELM.__init__)
        check_layer(core)
        self.core: Core = core
        self.output = SpikeOutput(**output)
        check_fits(self.output, self.output_shape)
        spiking_state(core.state_type)  # made here, not inside compiled code

    @classmethod
    def from_config(cls, config: SpikingELMConfig) -> SpikingELM:
        """A layer of this configuration with new weights."""
        check_config(config, SpikingELMConfig)
        core: Any = pretrained.kind_of(config.core_class).build(config.core)
        return cls(core, **config.output)

    @property
    def config(self) -> SpikingELMConfig:
        core = self.core
        return SpikingELMConfig(core=core.config, core_class=type(core).__name__, **self.output.options)

    @property
    def input_size(self) -> int:
        return self.core.input_size

    @property
    def output_size(self) -> int:
        """Number of outputs of a neuron."""
        return self.core.output_size

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's spikes in one step."""
        return output_shape(self.core)

    @property
    def delta_t(self) -> float:
        """Time step in ms."""
        return self.core.delta_t

    @property
    def is_cell(self) -> bool:
        """Whether the call takes one step, as that of the core."""
        return getattr(self.core, "is_cell", False)

    @property
    def state_type(self) -> type[Any]:
        """:class:`SpikingELMState` for an ELM; for another layer its own fields, then v and s."""
        return spiking_state(self.core.state_type)

    def initial_state(self, batch: int) -> Any:
        """The core's, and zeros for v and s, in the same dtype and on the same device."""
        check_batch(batch)
        inner = self.core.initial_state(batch)
        v, s = (inner[0].new_zeros(batch, *self.output_shape) for _ in range(2))
        return self.state_type(*inner, v, s)

    def check_state(self, state: Any, batch: int) -> Any:
        """`state` where it fits this layer and a batch of `batch`.

        Raises:
            TypeError: `state` is not the tensors of :attr:`state_type`, in the parameters' dtype.
            ValueError: a tensor has the wrong shape or device.
        """
        inner, v, s = self._split(state, batch)
        return self.state_type(*inner, v, s)

    def step(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One time step: x_t (batch, input_size), or what else the core takes; spikes (batch, *output_shape)."""
        y, inner, v, s = self._core_step(x_t, state)
        output = self.output
        if has_hooks(output) or type(output).forward is not SpikeOutput.forward:
            spikes, v, s = (part.squeeze(1) for part in output(y.unsqueeze(1), s))
        else:
            v = output.reset_readout(y, s)
            s = output.fire(v)
            spikes = output.grade(s)
        return as_stored(spikes, output.threshold), self.state_type(*inner, v, s)

    @compilable
    def forward(self, x: Tensor | SpikeEvents, state: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        if self.is_cell:
            return self._step_with_lengths(self.step, x, state, lengths)
        spikes, _, after = self._sequence(x, state, lengths, last_readout=True)
        return spikes, after

    @compilable
    def forward_with_readout(
        self, x: Tensor | SpikeEvents, state: Any = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """A sequence as the call takes it: spikes, the readout after reset at every step, which is not cut at
        `lengths`, and the state; not of a cell.
        """
        return self._sequence(x, state, lengths, last_readout=False)

    def _sequence(
        self, x: Tensor | SpikeEvents, state: Any, lengths: Tensor | None, *, last_readout: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """Spikes, the readout after reset, which may be that of each sample's last valid step alone, and the state."""
        output = self.output
        rule = output.rule if type(output) is SpikeOutput and not has_hooks(output) else None
        inside = None if rule is None or torch.compiler.is_compiling() else forward_spiking(self.core)
        if rule is not None and inside is not None:
            inner, v, s = (None, None, None) if state is None else self._split(state, x.shape[0])
            s_all, v_all, inner = inside(x, inner, lengths, rule, last_readout=last_readout)
            spikes, s_all = output.grade(s_all), s_all.to(v_all.dtype)
        else:
            y, inner, v, s = self._core_sequence(x, state, lengths)
            spikes, v_all, s_all = output(y, s)
            last_readout = False
        lengths = None if lengths is None else torch.as_tensor(lengths, device=v_all.device).long()
        v = where_any(v_all, s_all.shape[1], lengths, v) if last_readout else last_or_before(v_all, lengths, v)
        after = self.state_type(*inner, v, last_or_before(s_all, lengths, s))
        return cut_at(lengths, as_stored(spikes, output.threshold)), v_all, after

    def readout_step(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step of the core: its output in place of spikes; state.v holds it, state.s stays."""
        y, inner, _, s = self._core_step(x_t, state)
        return as_stored(y, self.output.threshold), self.state_type(*inner, y, s)

    def readout(self, x: Tensor | SpikeEvents, state: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """A sequence of the core: its outputs in place of spikes; state.v holds the last one, state.s stays."""
        if self.is_cell:
            return self._step_with_lengths(self.readout_step, x, state, lengths)
        y, inner, v, s = self._core_sequence(x, state, lengths)
        lengths = None if lengths is None else torch.as_tensor(lengths, device=y.device).long()
        s = y.new_zeros(y.shape[0], *y.shape[2:]) if s is None else s
        return as_stored(y, self.output.threshold), self.state_type(*inner, last_or_before(y, lengths, v), s)

    def _split(self, state: Any, batch: int) -> tuple[Any, Tensor, Tensor]:
        """State of the core, checked by it, and v and s."""
        core = self.core
        check_parts(self.state_type, state)
        inner = core.check_state(core.state_type(*state[:-2]), batch)
        like, shape = inner[0], (batch, *output_shape(core))
        for name, part in (("state.v", state[-2]), ("state.s", state[-1])):
            if not fits(part, shape, like.dtype, like.device):  # of the core's state
                check_part(name, part, shape, like)
        self._refuse_spikes_without_numbers(state[-1])
        return inner, state[-2], state[-1]

    def _refuse_spikes_without_numbers(self, s: Tensor) -> None:
        """A reset takes the threshold times these spikes away: a NaN among them would silence its neuron."""
        if getattr(self.output, "reset", "none") == "none" or not may_look(s):
            return
        from elm_neuro.backends.native._sums import sum_of  # brings the kernels

        if not math.isfinite(sum_of(s)):
            wrong = int((~torch.isfinite(s)).sum())
            raise ValueError(f"state.s must be spikes, 0 or 1, got {wrong} of {s.numel()} that are not finite")

    def _core_step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any, Tensor, Tensor]:
        """Readout and state of the core after one step, and v and s before it."""
        batch = x_t.shape[0] if isinstance(x_t, Tensor) and x_t.ndim else 0
        if state is None:
            state = self.initial_state(batch)
            inner, v, s = self.core.state_type(*state[:-2]), state[-2], state[-1]
        else:
            inner, v, s = self._split(state, batch)
        y, after = step_by_call(self.core)(x_t, inner)
        return y.to(after[0].dtype), after, v, s  # autocast narrows the readout, not the state

    def _core_sequence(
        self, x: Tensor | SpikeEvents, state: Any, lengths: Tensor | None
    ) -> tuple[Tensor, Any, Tensor | None, Tensor | None]:
        """Readout and state of the core after a sequence, and v and s before it: None for zeros."""
        inner, v, s = (None, None, None) if state is None else self._split(state, x.shape[0])
        y, after = self.core(x, inner, lengths)
        return y.to(after[0].dtype), after, v, s

    def _step_with_lengths(
        self, step: Callable[..., tuple[Tensor, Any]], x: Any, state: Any, lengths: Tensor | None
    ) -> tuple[Tensor, Any]:
        if lengths is None:
            return step(x, state)
        lengths = checked_lengths(lengths, x.shape[0], 1, x.device)
        out, after = step(where_running(lengths > 0, x, torch.zeros_like(x)), state)
        return step_where_valid(out, after, self.initial_state(x.shape[0]) if state is None else state, lengths)
