"""Our neurons as norse's: ``out, state = neuron(x, state=None)``, time first, any number of batch dimensions, times in
seconds.

norse knows a stateful module by a parameter named `state` in its ``forward``, not by its class. The faces here have
one, and stand in ``norse.torch.SequentialState`` and ``RecurrentSequential``, inside ``Lift`` (the cells) and beside
it, like norse's own.

- **Times are seconds**, as everywhere in norse: `dt`, and also `tau_s`, `tau_m_init`, `tau_m_bounds`, `tau_v`, `tau_a`
  and `latency`. The rest of elm_neuro counts milliseconds; so does the wrapped neuron, `face.core`.
- **Layouts**: a layer takes ``[T, *batch, input_size]`` and gives ``[T, *batch, output_size]``, a cell the same without
  T. A cell cannot know that an axis is time: use a layer, or ``Lift(cell)``, for sequences.
- **State** is a plain named tuple of tensors ``[*batch, ...]`` with the membrane or readout as `v`, zeros by default.
  Hand it on to go on; :func:`detach` it between the pieces of a long sequence; start with None where the batch changes.
- ``cell.compile()`` compiles in place; the wrapper that ``torch.compile(cell)`` returns hides `state` from norse. In a
  compiled network a layer on `native` or `cuda` is one operator of the graph; a reset breaks the graph, and with
  `record_states` the steps are unrolled.
- norse's surrogates fit:
  ``surrogate=functools.partial(norse.torch.functional.threshold.threshold, method="super", alpha=100.0)``.

Longer than most modules: one file a host, and half of it is docstrings.

>>> import norse.torch as norse
>>> from elm_neuro.adapters.norse import ELM
>>> net = norse.SequentialState(ELM(700, 1, num_memory=10, num_neuron=32), norse.LIFRecurrent(32, 16), norse.LI())
>>> out, state = net(torch.zeros(50, 8, 700))
>>> out.shape, state[0].v.shape
(torch.Size([50, 8, 16]), torch.Size([8, 32]))
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Unpack

import torch
from torch import Tensor
from typing_extensions import TypeVar  # with a default; torch needs it too

from elm_neuro import nn
from elm_neuro.adapters._face import (
    check_single_steps,
    check_version,
    elm_of,
    made_to_spike,
    no_spike_keywords,
    split_keywords,
    state_sizes,
)
from elm_neuro.backends.parts._untraced import compilable
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import Surrogate
from elm_neuro.nn import ALIFConfig, ALIFState, ELMConfig, SpikeOutput, SpikingELMState, output_shape
from elm_neuro.nn._alif_config import ALIFEquationOptions
from elm_neuro.nn._config import BranchOptions, EquationOptions, RunOptions
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import AnyLayer, step_by_call
from elm_neuro.nn._spike_output import SpikeOptions

try:
    import norse as _norse
    import norse.torch
except ImportError as error:
    raise ImportError('elm_neuro.adapters.norse needs norse: pip install "elm-neuro[norse]"') from error

__all__ = [
    "ALIF",
    "ELM",
    "ALIFCell",
    "ALIFState",
    "BranchELM",
    "Cell",
    "ELMCell",
    "Layer",
    "SpikingELMState",
    "detach",
    "suggest",
]

OLDEST = "1.1"  # of norse
INSTALLED = getattr(_norse, "__version__", OLDEST)  # a checkout that was never installed has none
check_version("norse", INSTALLED, OLDEST)

TIMES = (
    "tau_s",
    "tau_m_init",
    "tau_m_bounds",
    "tau_v",
    "tau_a",
    "latency",
)  # keywords in seconds here, in ms in elm_neuro.nn
DECIDED = ("delta_t", "batch_first", "flatten_output")  # keywords of elm_neuro.nn that a face does not take

State = TypeVar("State", bound=tuple[Tensor, ...], default=Any)


def _scaled(value: Any, factor: float) -> Any:
    """A time or several in another unit, rounded to 12 digits so that 0.07 s are 70 ms."""
    return (
        tuple(_scaled(part, factor) for part in value)
        if isinstance(value, Iterable)
        else float(f"{value * factor:.12g}")
    )


# the defaults of elm_neuro.nn as they are here, for the signatures
SECONDS = {
    name: _scaled(getattr(config, name), 0.001)
    for config in (ELMConfig(input_size=1, output_size=1), ALIFConfig(input_size=1, output_size=1))
    for name in TIMES
    if getattr(config, name, None) is not None
}


class BranchELMOptions(EquationOptions, RunOptions, SpikeOptions, total=False):
    """Keywords of :class:`BranchELM` beside those that it names."""

    routing: str | Tensor | None
    dt: float
    spiking: bool
    record_states: bool
    spike_generator: torch.Generator | None


class ELMOptions(EquationOptions, BranchOptions, RunOptions, SpikeOptions, total=False):
    """Keywords of :class:`ELM` and :class:`ELMCell` beside those that they name."""


class ALIFOptions(ALIFEquationOptions, total=False):
    """Keywords of :class:`ALIF` and :class:`ALIFCell` beside those that they name."""

    surrogate: Surrogate | None
    generator: torch.Generator | None
    backend: str


class _Face(torch.nn.Module, Generic[State]):
    """What cells and layers share: the layer they wrap, its time step, and states with any number of batch
    dimensions.
    """

    time_axes = 0  # axes of x before the batch

    @spelled_out(SpikeOptions, SpikeOutput, core=torch.nn.Module)
    def __init__(self, core: AnyLayer, *, spiking: bool = True, **output: Unpack[SpikeOptions]) -> None:
        super().__init__()
        check_keywords(self, output, SpikeOptions, _Face.__init__)
        core = made_to_spike(core, sequences=bool(self.time_axes), spiking=spiking, output=output)
        self.core = core
        self.dt, self.spiking = _scaled(core.delta_t, 0.001), spiking
        self.input_size = core.input_size
        self.output_size = math.prod(output_shape(core))  # of the whole population
        self._sizes = state_sizes(core)

    def initial_state(self, x: Tensor | SpikeEvents) -> State:
        """Zeros for an input `x`, [*batch, ...], in the parameters' dtype and on their device: what None stands for."""
        dims = self._batch_dims(x)
        zeros: State = self.core.initial_state(math.prod(dims))
        return self._split(zeros, dims)

    def _batch_dims(self, x: Tensor | SpikeEvents) -> tuple[int, ...]:
        layout = f"[{'T, ' * self.time_axes}*batch, {self.input_size}]"
        if self.time_axes and isinstance(x, SpikeEvents):
            return (x.shape[0],)
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            raise TypeError(
                f"x must be a dense tensor {layout}, got {x.layout if isinstance(x, Tensor) else type(x).__name__}"
            )
        if x.ndim < self.time_axes + 1 or x.shape[-1] != self.input_size:
            raise ValueError(f"x must have shape {layout}, got {tuple(x.shape)}")
        return tuple(x.shape[self.time_axes : -1])

    def _joined(self, state: State | None, dims: tuple[int, ...], x: Tensor | SpikeEvents) -> State | None:
        """`state` with one batch axis, its shapes checked (the core checks the rest); None stays, for zeros."""
        if state is None:
            return None
        kind: Any = self.core.state_type
        names: tuple[str, ...] = kind._fields
        if not isinstance(state, tuple) or len(state) != len(names) or getattr(state, "_fields", names) != names:
            raise TypeError(f"state must be {kind.__name__}({', '.join(names)}), got {type(state).__name__}")
        parts, flat = [], (math.prod(dims),)
        for name, part, size in zip(names, state, self._sizes, strict=True):
            if not isinstance(part, Tensor):
                raise TypeError(f"state.{name} must be a tensor, got {type(part).__name__}")
            if tuple(part.shape) != dims + size:
                rule = f"must have shape {dims + size} for x of shape {tuple(x.shape)}"
                message = f"state.{name} {rule}, got {tuple(part.shape)}"
                if self.time_axes and dims and part.ndim > len(size) and part.shape[0] == x.shape[0] != dims[0]:
                    message += "; the state's batch is the first axis of x: x must be time first, [T, *batch, features]"
                raise ValueError(message)
            parts.append(part if len(dims) == 1 else part.reshape(flat + size))
        return self._named(parts)

    def _split(self, state: State, dims: tuple[int, ...]) -> State:
        """`state` of one batch axis with the batch dimensions `dims`."""
        if len(dims) == 1:
            return state
        parts: Iterable[Tensor] = state
        return self._named(part.reshape(dims + size) for part, size in zip(parts, self._sizes, strict=True))

    def _named(self, parts: Iterable[Tensor]) -> State:
        state: State = self.core.state_type(*parts)
        return state

    def _step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One step of the core, (batch, features)."""
        core: Any = self.core
        before = core.initial_state(x.shape[0]) if state is None else state
        out, after = step_by_call(core)(x, before) if self.spiking else core.readout_step(x, before)
        return out, after

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.output_size}, dt={self.dt}" + ("" if self.spiking else ", spiking=False")


class Cell(_Face[State]):
    """One time step of any layer, whoever wrote it: ``out, state = cell(x, state)``.

    Args:
        core: a layer or cell that keeps the protocol :class:`elm_neuro.nn.Layer`; `dt` is its time step in seconds.
        spiking: False gives its output as it is, as a current for another layer; `state.v` holds it in either case.
        output: keywords of :class:`elm_neuro.nn.SpikeOutput`, the threshold behind a core that does not spike by
            itself: such a core is wrapped in :class:`elm_neuro.nn.SpikingELM`, whose state the face has.

    Shapes: x [*batch, input_size]; out [*batch, output_size], flat for a population; state the named tuple of the core,
    tensors of [*batch, ...], None for its start.

    Raises:
        TypeError: `core` lacks a part of the protocol, or spikes by itself and keywords of spikes are given.
        ValueError: `core` takes sequences time first.

    >>> spikes, state = Cell(nn.ALIFCell(3, 2))(torch.zeros(5, 3))
    >>> spikes.shape, state.v.shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        dims = self._batch_dims(x)
        batch = math.prod(dims)
        flat = x if len(dims) == 1 else x.reshape(batch, self.input_size)
        out, after = self._step(flat, self._joined(state, dims, x))
        return out.reshape(*dims, self.output_size), self._split(after, dims)


class Layer(_Face[State]):
    """Any layer over sequences, on its fast backends: ``out, state = layer(x, state)``.

    Args:
        core: a layer that keeps the protocol :class:`elm_neuro.nn.Layer`.
        spiking: as in :class:`Cell`.
        record_states: give the states of all steps, [T, *batch, ...], as norse's layers do; step by step, hence slower.
        output: as in :class:`Cell`.

    Shapes: x [T, *batch, input_size] or :class:`elm_neuro.SpikeEvents`; out [T, *batch, output_size]; state and errors
    as in :class:`Cell`; also a ValueError where `core` is a cell.

    >>> layer = Layer(nn.BranchELM(700, 3, num_branch=10, num_synapse_per_branch=140), threshold=0.5)
    >>> spikes, state = layer(torch.zeros(50, 8, 700))
    >>> spikes.shape, state.v.shape
    (torch.Size([50, 8, 3]), torch.Size([8, 3]))
    """

    time_axes = 1

    @spelled_out(SpikeOptions, SpikeOutput, core=torch.nn.Module)
    def __init__(
        self, core: AnyLayer, *, spiking: bool = True, record_states: bool = False, **output: Unpack[SpikeOptions]
    ) -> None:
        super().__init__(core, spiking=spiking, **output)
        self.record_states = record_states

    @compilable
    def forward(self, x: Tensor | SpikeEvents, state: State | None = None) -> tuple[Tensor, State]:
        dims = self._batch_dims(x)
        before = self._joined(state, dims, x)
        if isinstance(x, Tensor):
            x = (x if len(dims) == 1 else x.reshape(x.shape[0], math.prod(dims), self.input_size)).transpose(0, 1)
        if self.record_states:
            frames = x.to_dense(self.core.initial_state(0)[0].dtype) if isinstance(x, SpikeEvents) else x
            return self._recorded(frames, before, dims)
        out, after = self._sequence(x, before)
        out = out.transpose(0, 1)
        shape = (out.shape[0], *dims, self.output_size)
        return (out if out.shape == shape else out.reshape(shape)).contiguous(), self._split(after, dims)

    def _sequence(self, x: Tensor | SpikeEvents, state: State | None) -> tuple[Tensor, State]:
        """A sequence of the core, (batch, time, features)."""
        core: Any = self.core
        out, after = core(x, state) if self.spiking else core.readout(x, state)
        return out, after

    def _recorded(self, x: Tensor, state: State | None, dims: tuple[int, ...]) -> tuple[Tensor, State]:
        """Step by step, with the states of all steps, as ``norse.torch.module.snn.SNN`` gives them."""
        if x.shape[1] == 0:
            raise ValueError("x must have at least one step with record_states=True, got 0")
        check_single_steps(self.core, "record_states=True")
        outs: list[Tensor] = []
        states: list[State] = []
        for x_t in x.unbind(1):
            out, state = self._step(x_t, state)
            outs.append(out.reshape(*dims, self.output_size))
            states.append(self._split(state, dims))
        return torch.stack(outs), self._named(torch.stack(parts) for parts in zip(*states, strict=True))

    def extra_repr(self) -> str:
        return super().extra_repr() + (", record_states=True" if self.record_states else "")


class ELMCell(Cell[SpikingELMState]):
    """One time step of a spiking ELM neuron, or of a population: ``spikes, state = cell(x, state)``.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of a neuron.
        num_memory: number of memory units; 100 by default, 20 with branches.
        dt: time step in seconds.
        spiking: False gives the readout itself, to drive another layer as a current; `state.v` holds it in either case.
        spike_generator: source of the random spikes of ``stochastic=True``; torch's global one by default.
        options: the keywords of :class:`elm_neuro.nn.ELM`, times in seconds (`num_branch` and `routing` make a
            Branch-ELM, `num_neuron` a population), and those of :class:`elm_neuro.nn.SpikeOutput`: `threshold`,
            `surrogate`, `reset`, `stochastic`...

    Shapes: x [*batch, input_size], which all neurons of a population share; out [*batch, output_size], or
    [*batch, num_neuron * output_size]; state :class:`SpikingELMState` of [*batch, ...], None for zeros.

    Raises:
        TypeError: an unknown keyword, or `delta_t`, `batch_first`, `flatten_output`, which this face decides; wrong
            dtype of x or state; a surrogate that changes the dtype.
        ValueError: wrong shape or device of x or state, a value out of its range.

    >>> cell = ELMCell(3, 1, num_memory=4, num_neuron=6, threshold=0.0, dt=0.001)
    >>> spikes, state = cell(torch.ones(5, 3))
    >>> spikes.shape, state.m.shape, cell.core.core.config.delta_t
    (torch.Size([5, 6]), torch.Size([5, 6, 4]), 1.0)
    """

    @spelled_out(ELMOptions, SECONDS, nn.ELM, ELMConfig, SpikeOutput)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_memory: int | None = None,
        *,
        dt: float = 0.001,
        spiking: bool = True,
        spike_generator: torch.Generator | None = None,
        **options: Unpack[ELMOptions],
    ) -> None:
        _check_options(self, options, ELMOptions, ELMCell.__init__)
        core = _spiking_elm((input_size, output_size), num_memory, dt, spiking, spike_generator, options)
        super().__init__(core, spiking=spiking)
        self.dt = float(dt)


class ELM(Layer[SpikingELMState]):
    """A spiking ELM neuron, or a population, over sequences and on the fast backends:
    ``spikes, state = neuron(x, state)``.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of a neuron.
        num_memory: number of memory units; 100 by default, 20 with branches.
        dt: time step in seconds.
        spiking: as in :class:`ELMCell`.
        record_states: give the states of all steps, [T, *batch, ...], as norse's layers do; step by step, hence slower.
        spike_generator: as in :class:`ELMCell`.
        options: as for :class:`ELMCell`, and `backend`, `recompute_every` and `sparse_input`.

    Shapes: x [T, *batch, input_size] or :class:`elm_neuro.SpikeEvents`; out [T, *batch, output_size], or
    [T, *batch, num_neuron * output_size]; state and errors as in :class:`ELMCell`.

    >>> neuron = ELM(700, 20, num_memory=10, **suggest(dt=0.01, num_steps=100), spiking=False)
    >>> readout, state = neuron(torch.zeros(100, 8, 700))
    >>> readout.shape, bool((state.v == readout[-1]).all())
    (torch.Size([100, 8, 20]), True)
    """

    @spelled_out(ELMOptions, SECONDS, nn.ELM, ELMConfig, SpikeOutput)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_memory: int | None = None,
        *,
        dt: float = 0.001,
        spiking: bool = True,
        record_states: bool = False,
        spike_generator: torch.Generator | None = None,
        **options: Unpack[ELMOptions],
    ) -> None:
        _check_options(self, options, ELMOptions, ELM.__init__)
        core = _spiking_elm((input_size, output_size), num_memory, dt, spiking, spike_generator, options)
        super().__init__(core, spiking=spiking, record_states=record_states)
        self.dt = float(dt)


class BranchELM(ELM):
    """:class:`ELM` whose inputs are routed to synapses that are summed on branches: far fewer weights.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of a neuron.
        num_memory: number of memory units.
        num_branch: number of branches.
        num_synapse_per_branch: synapses on each.
        options: the other keywords of :class:`ELM`; `routing` is "neuronio" by default, as in
            :class:`elm_neuro.nn.BranchELM`.

    >>> neuron = BranchELM(700, 1, num_branch=10, num_synapse_per_branch=70, num_neuron=32)
    >>> neuron(torch.zeros(50, 8, 700))[0].shape
    torch.Size([50, 8, 32])
    """

    @spelled_out(BranchELMOptions, SECONDS, nn.BranchELM, ELM)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_memory: int = 20,
        *,
        num_branch: int,
        num_synapse_per_branch: int,
        **options: Unpack[BranchELMOptions],
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            num_memory,
            num_branch=num_branch,
            num_synapse_per_branch=num_synapse_per_branch,
            **options,
        )


class ALIFCell(Cell[ALIFState]):
    """One time step of a layer of adaptive LIF neurons: ``spikes, state = cell(x, state)``.

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        dt: time step in seconds.
        options: the other keywords of :class:`elm_neuro.nn.ALIF`, times in seconds; ``adaptive=False`` makes it a LIF.

    Shapes: x [*batch, input_size]; spikes [*batch, output_size]; state :class:`ALIFState` of [*batch, ...]; errors as
    in :class:`ELMCell`.

    >>> spikes, state = ALIFCell(3, 2, dt=0.001, tau_v=0.02)(torch.zeros(5, 3))
    >>> spikes.shape, state.v.shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    @spelled_out(ALIFOptions, SECONDS, nn.ALIF, ALIFConfig)
    def __init__(self, input_size: int, output_size: int, *, dt: float = 0.001, **options: Unpack[ALIFOptions]) -> None:
        _check_options(self, options, ALIFOptions, ALIFCell.__init__)
        super().__init__(nn.ALIF(input_size, output_size, **_milliseconds(dt, options)))
        self.dt = float(dt)


class ALIF(Layer[ALIFState]):
    """Adaptive LIF neurons over sequences, ``spikes, state = layer(x, state)``; `record_states` as in :class:`ELM`, the
    rest as in :class:`ALIFCell`.

    Shapes: x [T, *batch, input_size] or :class:`elm_neuro.SpikeEvents`; spikes [T, *batch, output_size].

    >>> ALIF(700, 128, dt=0.01)(torch.zeros(50, 2, 700))[0].shape
    torch.Size([50, 2, 128])
    """

    @spelled_out(ALIFOptions, SECONDS, nn.ALIF, ALIFConfig)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        dt: float = 0.001,
        record_states: bool = False,
        **options: Unpack[ALIFOptions],
    ) -> None:
        _check_options(self, options, ALIFOptions, ALIF.__init__)
        core = nn.ALIF(input_size, output_size, **_milliseconds(dt, options))
        super().__init__(core, record_states=record_states)
        self.dt = float(dt)


def detach(state: Any) -> Any:
    """A state cut off from the gradient, for truncated backpropagation through time.

    Args:
        state: of a face, of a norse module or of a network of them: tensors in tuples, named tuples and lists; None
            stays.

    >>> from elm_neuro.adapters import norse as faces
    >>> layer = faces.ELM(3, 1, num_memory=2)
    >>> state = faces.detach(layer(torch.ones(4, 3))[1])
    >>> state.m.requires_grad
    False
    """
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple) and hasattr(state, "_make"):
        return type(state)(*map(detach, state))
    return type(state)(map(detach, state)) if isinstance(state, tuple | list) else state


def suggest(dt: float, num_steps: int) -> dict[str, Any]:
    """:func:`elm_neuro.suggest` for these faces: keywords in seconds that suit sequences of `num_steps` steps of `dt`
    s.

    >>> suggest(dt=0.01, num_steps=100)
    {'dt': 0.01, 'tau_s': 0.01, 'tau_m_init': (0.01, 1.0), 'tau_m_spacing': 'log', 'tau_m_bounds': (0.001, 2.0),
    'lambda_': 5.0}
    """
    keywords = nn.suggest(num_steps=num_steps, **_milliseconds(dt, {}))
    del keywords["delta_t"]
    return {"dt": dt} | {name: _scaled(value, 0.001) if name in TIMES else value for name, value in keywords.items()}


def _check_options(face: _Face[Any], options: Mapping[str, object], allowed: type[Any], constructor: Any) -> None:
    """Refuse unknown keywords; those that a face decides are refused below, each with its reason."""
    others = {name: value for name, value in options.items() if name not in DECIDED}
    check_keywords(face, others, allowed, constructor)


def _spiking_elm(
    sizes: tuple[int, int],
    num_memory: int | None,
    dt: float,
    spiking: bool,
    spike_generator: torch.Generator | None,
    options: Any,
) -> nn.SpikingELM[nn.ELM]:
    for name, rule in (("batch_first", "is time first"), ("flatten_output", "flattens populations")):
        if name in options:
            raise TypeError(f"{name} must not be given: a norse face {rule}, got {name}={options[name]}")
    output, neuron = split_keywords(options, SpikeOptions)
    if "generator" in output:  # the one of the weights
        neuron["generator"] = output.pop("generator")
    no_spike_keywords(spiking, output)
    flat = neuron.get("num_neuron") is not None
    core = elm_of(*sizes, num_memory, flatten_output=flat, **_milliseconds(dt, neuron))
    return nn.SpikingELM(core, generator=spike_generator, **output)


def _milliseconds(dt: float, options: Any) -> dict[str, Any]:
    """The keywords of our neurons for those of a face."""
    if "delta_t" in options:
        raise TypeError(
            f"delta_t must be given as dt, in seconds like all times of a norse face, got delta_t={options['delta_t']}"
        )
    if not (isinstance(dt, float | int) and dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt must be a time in seconds above 0, got {dt!r}")
    times = {name: options[name] for name in TIMES if options.get(name) is not None}
    for name, value in times.items():
        shortest = min(value) if isinstance(value, Iterable) else value
        if shortest < 0:
            raise ValueError(f"{name} must be a time in seconds, not negative, got {value!r}")
        if shortest >= 1.0 and dt < 0.1:
            warnings.warn(
                f"{name}={value} is {shortest / dt:.0f} steps or more: times of a norse face are seconds, not ms",
                stacklevel=4,
            )
    scaled = {name: _scaled(value, 1000.0) for name, value in times.items()}
    return {**options, **scaled, "delta_t": _scaled(dt, 1000.0)}
