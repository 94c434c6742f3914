"""Our neurons as spikingjelly's: ``spikes = neuron(x)``, states inside, one step or whole sequences by `step_mode`.

:class:`Layer` is the face of any layer that keeps the protocol :class:`elm_neuro.nn.Layer`; :class:`ELM`,
:class:`BranchELM` and :class:`ALIF` make the layer too. They are ``MemoryModule``s of spikingjelly 2: ``reset_net``,
``detach_net``, ``set_step_mode``, ``to_functional_forward``, monitors, containers and checkpointing take them like its
own. What differs from its neurons:

- **Weights**: a neuron of ours holds its input weights, so that x has `input_size` channels; no Linear goes before it.
- **Times** are milliseconds, with the time step `delta_t`; spikingjelly counts steps.
- **Threshold**: a neuron fires above it, one of spikingjelly at it too. The surrogate decides: by default that of
  :mod:`elm_neuro.functional`; spikingjelly's fit, and then it fires at the threshold as well.
- **Batch**: another size of batch than the states have is refused until ``functional.reset_net(net)``; spikingjelly's
  own forget without a word.

Longer than most modules: one file a host, and half of it is docstrings.

>>> from spikingjelly.activation_based import functional, layer, neuron
>>> from elm_neuro.adapters.spikingjelly import ELM
>>> net = torch.nn.Sequential(ELM(700, 1, num_memory=10, num_neuron=32), layer.Linear(32, 20), neuron.LIFNode())
>>> functional.set_step_mode(net, "m")
>>> net(torch.zeros(50, 8, 700)).shape
torch.Size([50, 8, 20])
>>> functional.reset_net(net)
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from elm_neuro import nn
from elm_neuro.adapters._face import check_single_steps, check_version, elm_of, made_to_spike, split_keywords
from elm_neuro.backends.parts._lengths import cut_at, valid
from elm_neuro.events import SpikeEvents
from elm_neuro.nn import ALIFConfig, ELMConfig, SpikeOutput, output_shape
from elm_neuro.nn._alif_config import ALIFEquationOptions
from elm_neuro.nn._checks import checked_lengths
from elm_neuro.nn._config import BranchOptions, EquationOptions, RunOptions
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import AnyLayer, has_hooks, step_by_call
from elm_neuro.nn._lengths import step_where_valid
from elm_neuro.nn._narrow import as_stored, wide
from elm_neuro.nn._spiking import free_names

OLDEST = "2.0"  # the first with functional forwards
try:
    INSTALLED = metadata.version("spikingjelly")
except metadata.PackageNotFoundError:
    INSTALLED = OLDEST  # none, which the import says, or a checkout that was never installed
check_version("spikingjelly", INSTALLED, OLDEST)  # before the import: old ones fail there with the numpy of today
try:
    from spikingjelly.activation_based import base
except ImportError as error:
    raise ImportError(
        'elm_neuro.adapters.spikingjelly needs spikingjelly: pip install "elm-neuro[spikingjelly]"'
    ) from error
if not hasattr(base.MemoryModule, "functional_forward"):
    check_version("spikingjelly", "one without functional forwards", OLDEST)

__all__ = ["ALIF", "ELM", "BranchELM", "Layer"]

RENAMED = {"v_threshold": "threshold", "surrogate_function": "surrogate", "spike_generator": "generator"}


class ModeOptions(TypedDict, total=False):
    """Keywords of every face that say how it is run."""

    step_mode: str
    store_v_seq: bool


class SpikeOptions(TypedDict, total=False):
    """Keywords of the threshold, by spikingjelly's names where it has them; :class:`Layer` explains each."""

    v_threshold: float | Tensor
    surrogate_function: Callable[[Tensor], Tensor] | None
    reset: str
    learn_threshold: bool
    stochastic: bool
    graded_factor: float | Tensor
    learn_graded_factor: bool
    spike_generator: torch.Generator | None


DEFAULTS: dict[str, Any] = {
    "v_threshold": 1.0,
    "surrogate_function": None,
    "spike_generator": None,
    "spiking": True,
    "step_mode": "s",
    "store_v_seq": False,
}


class LayerOptions(SpikeOptions, ModeOptions, total=False):
    """Keywords of :class:`Layer` beside those that it names."""


class BranchELMOptions(LayerOptions, EquationOptions, RunOptions, total=False):
    """Keywords of :class:`BranchELM` beside those that it names."""

    spiking: bool
    routing: str | Tensor | None
    delta_t: float
    flatten_output: bool


class ELMOptions(LayerOptions, EquationOptions, BranchOptions, RunOptions, total=False):
    """Keywords of :class:`ELM` beside those that it names."""

    spiking: bool
    delta_t: float
    flatten_output: bool


class ALIFOptions(ModeOptions, ALIFEquationOptions, total=False):
    """Keywords of :class:`ALIF` beside those that it names."""

    delta_t: float
    generator: torch.Generator | None
    backend: str


class Layer(base.MemoryModule):  # type: ignore[misc]  # spikingjelly has no types
    """Any layer, whoever wrote it, as a neuron of spikingjelly.

    A core that does not spike by itself gets a threshold: it is wrapped in :class:`elm_neuro.nn.SpikingELM`, whose
    state the face keeps. Its tensors are the face's memories, by their names: ``face.v`` is the readout that the
    threshold sees. A fresh memory is 0.0, which stands for the core's start.

    Args:
        core: a layer or cell that keeps the protocol :class:`elm_neuro.nn.Layer`; the face has it as `core`.
        spiking: False gives its output as it is, as a current for another neuron; ``face.v`` holds it in either case.
        step_mode: "s", one step a call, or "m", whole sequences, which run on the fast backends; with a cell as core
            they are stepped through.
        store_v_seq: keep `v` of all steps as `v_seq`, as spikingjelly's neurons do. Sequences of a core that spikes by
            itself are stepped through for it, hence slower.
        v_threshold: of the output, a number or one per output.
        surrogate_function: called on ``v - v_threshold``; :class:`elm_neuro.functional.ATan` by default, whose gradient
            is that of ``surrogate.ATan()``.
        reset: "none", "subtract" or "zero": what the last spike does to the readout of the next step. It passes no
            gradient, as ``detach_reset=True`` there.
        learn_threshold: train it.
        stochastic: draw the spikes, with a straight-through gradient.
        graded_factor: spikes leave multiplied by this.
        learn_graded_factor: train it.
        spike_generator: source of the random spikes; torch's global one by default.

    Shapes:
        - x (batch, input_size) in mode "s", (time, batch, input_size) in mode "m" or
          :class:`elm_neuro.SpikeEvents`, which are always batch-major.
        - lengths (batch,), in mode "m": number of valid steps; past them spikes are zero and states stay.
        - spikes (batch, *output_shape), or (time, batch, *output_shape).

    Raises:
        TypeError: `core` lacks a part of the protocol, or spikes by itself and keywords of spikes are given; no tensor;
            wrong dtype.
        ValueError: wrong shape or device; another batch than the states have.

    >>> layer = Layer(nn.LIF(700, 20), step_mode="m")
    >>> layer(torch.zeros(100, 8, 700)).shape, layer.v.shape
    (torch.Size([100, 8, 20]), torch.Size([8, 20]))
    """

    core: Any
    v_seq: Tensor | None

    @spelled_out(LayerOptions, DEFAULTS, SpikeOutput, core=torch.nn.Module)
    def __init__(self, core: AnyLayer, *, spiking: bool = True, **options: Unpack[LayerOptions]) -> None:
        super().__init__()
        check_keywords(self, options, LayerOptions, Layer.__init__)
        mode, output = split_keywords(options, ModeOptions)
        self.core = made_to_spike(core, sequences=False, spiking=spiking, output=output, renamed=RENAMED)
        self.spiking = spiking
        names = self.core.state_type._fields
        for name in free_names(names, lambda name: hasattr(self, name)):
            self.register_memory(name, 0.0)
        self._has_v = "v" in names
        size, neuron = self.core.input_size, getattr(core.config, "num_neuron", None)
        self._inputs = ((size,), (neuron, size))  # shapes of one sample in one step
        self.step_mode = mode.get("step_mode", "s")
        self.store_v_seq = mode.get("store_v_seq", False)

    @property
    def store_v_seq(self) -> bool:
        """Whether `v` of all steps is kept as `v_seq`."""
        return self._store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, store: bool) -> None:
        if store and not self._has_v:
            raise TypeError(f"store_v_seq must be left out: the state of {type(self.core).__name__} has no v")
        self._store_v_seq, self.v_seq = store, None

    @property
    def v_threshold(self) -> Tensor:
        """The threshold; what is assigned is copied into it."""
        threshold: Tensor = self.core.output.threshold
        return threshold

    @v_threshold.setter
    def v_threshold(self, value: float | Tensor) -> None:
        threshold = self.v_threshold
        threshold.detach().copy_(torch.as_tensor(value, dtype=threshold.dtype, device=threshold.device))

    @property
    def surrogate_function(self) -> Callable[[Tensor], Tensor]:
        """What gives spikes of the distance to threshold."""
        surrogate: Callable[[Tensor], Tensor] = self._firing().surrogate
        return surrogate

    def _firing(self) -> Any:
        """The part of the core that has a surrogate."""
        parts = (getattr(self.core, "output", None), getattr(self.core, "cell", None), self.core)
        for part in parts:
            if hasattr(part, "surrogate"):
                return part
        raise AttributeError(f"{type(self.core).__name__} has no surrogate")

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "surrogate_function":
            super().__setattr__(name, value)
            return
        firing = self._firing()  # torch would take a module that is assigned for one of our own
        if "surrogate" in firing._modules:
            del firing.surrogate
        firing.surrogate = value

    def reset(self) -> None:
        """Forget the states."""
        super().reset()
        if self.v_seq is not None:  # to assign asks torch and the host; this is called before every batch
            self.v_seq = None

    def detach(self) -> None:
        """Cut the states from the graph, for truncated backpropagation; not in place, for they may be views."""
        for name, part in self._memories.items():
            self._memories[name] = part.detach() if isinstance(part, Tensor) else part
        self.v_seq = None if self.v_seq is None else self.v_seq.detach()

    def materialize_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Tensor, ...]:
        """`states` as tensors for these inputs: 0.0 is the core's start, another number fills the tensor."""
        batch = self._batch_of(inputs[0], step_mode)
        if all(isinstance(part, Tensor) for part in states):
            if states and states[0].ndim and states[0].shape[0] != batch:
                raise ValueError(
                    f"x must have the states' batch of {states[0].shape[0]} until they are reset, got {batch}: "
                    "functional.reset_net(net) before every batch forgets the states of all neurons in net"
                )
            return states
        start = self.core.initial_state(batch)
        return tuple(
            part if isinstance(part, Tensor) else zero if part == 0.0 else torch.full_like(zero, part)
            for part, zero in zip(states, start, strict=True)
        )

    def _batch_of(self, x: Any, step_mode: str) -> int:
        """Size of the batch of an input of the right shape."""
        if isinstance(x, SpikeEvents) and step_mode == "m":
            return int(x.shape[0])
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        sequence, shape = step_mode == "m", x.shape
        if len(shape) > 1 + sequence and shape[1 + sequence :] in self._inputs:
            return shape[sequence]
        size = self.core.input_size
        layout = f"({'time, ' if sequence else ''}batch, {size})"
        other = {2: ', a step: set_step_mode(net, "s")', 3: ', a sequence: set_step_mode(net, "m")'}
        hint = other.get(x.ndim, "") if x.ndim and x.shape[-1] == size and x.ndim != 2 + sequence else ""
        raise ValueError(f"x must have shape {layout} with step_mode={step_mode!r}, got {tuple(x.shape)}{hint}")

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor], tuple[Tensor, ...]]:
        """Output and states after one step."""
        (x,) = inputs
        core = self.core
        y, after = (step_by_call(core) if self.spiking else core.readout_step)(x, core.state_type(*states))
        return (y,), tuple(after)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor | SpikeEvents, ...], states: tuple[Tensor, ...], lengths: Tensor | None = None
    ) -> tuple[tuple[Tensor], tuple[Tensor, ...]]:
        """Outputs of a sequence, time first, and states after it."""
        (x,) = inputs
        y, _, after = self._sequence(x, states, lengths, with_v=False)
        return (y,), after

    def single_step_forward(self, x: Tensor, *args: Any) -> Tensor:
        """One step on the states inside."""
        y: Tensor = super().single_step_forward(x, *args)
        if self._store_v_seq:
            v = self.v.unsqueeze(0)
            before = self.v_seq
            self.v_seq = v if before is None or before.shape[1:] != v.shape[1:] else torch.cat([before, v])
        return y

    def multi_step_forward(self, x: Tensor | SpikeEvents, lengths: Tensor | None = None) -> Tensor:
        """A sequence on the states inside."""
        memories, states = tuple(self._memories.values()), None
        for part in memories:
            if isinstance(part, Tensor) or part != 0.0:
                states = self.materialize_states((x,), memories, "m")
                break
        else:  # of fresh ones the core knows that they are zeros
            self._batch_of(x, "m")
        y, v, after = self._sequence(x, states, lengths, with_v=self._store_v_seq)
        if self._store_v_seq:
            self.v_seq = v
        self._memories.update(zip(self._memories, after, strict=True))
        return y

    def _sequence(
        self, x: Tensor | SpikeEvents, states: tuple[Tensor, ...] | None, lengths: Tensor | None, *, with_v: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Output of all steps, `v` of all steps where it is asked for, and the states after them; None is the start."""
        core = self.core
        hidden = with_v and self.spiking and (not hasattr(core, "forward_with_readout") or has_hooks(core))
        is_cell = getattr(core, "is_cell", False)
        if hidden and not is_cell:
            check_single_steps(core, "store_v_seq=True")
        if hidden or is_cell:
            return self._stepped(x, states, lengths)
        x = x.transpose(0, 1) if isinstance(x, Tensor) else x
        before = None if states is None else core.state_type(*states)
        v: Tensor | None = None
        if with_v and self.spiking:
            y, v, after = core.forward_with_readout(x, before, lengths)
            ends = None if lengths is None else torch.as_tensor(lengths, device=y.device).long()
            v = cut_at(ends, v).transpose(0, 1)
        else:
            y, after = (core if self.spiking else core.readout)(x, before, lengths)
        y = y.transpose(0, 1).contiguous()
        return y, y.to(after[0].dtype) if with_v and v is None else v, tuple(after)

    def _stepped(
        self, x: Tensor | SpikeEvents, states: tuple[Tensor, ...] | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """:meth:`_sequence`, step by step."""
        if isinstance(x, SpikeEvents):
            x = x.to_dense(self.core.initial_state(0)[0].dtype).transpose(0, 1)
        if lengths is not None:
            lengths = checked_lengths(lengths, x.shape[1], len(x), x.device)
            x = torch.where(valid(lengths, x.transpose(0, 1)).transpose(0, 1), x, 0.0)
        kind = self.core.state_type
        state: tuple[Tensor, ...] = self.core.initial_state(x.shape[1]) if states is None else states
        place = kind._fields.index("v") if self._has_v else 0
        outputs, seen = [], []
        for t, x_t in enumerate(x):
            (y,), after = self.single_step_functional_forward((x_t,), state)
            if lengths is not None:
                y, after = step_where_valid(y, kind(*after), state, lengths > t)
            state = after
            outputs.append(y)
            seen.append(state[place])
        if outputs:
            return torch.stack(outputs), torch.stack(seen), tuple(state)
        y = as_stored(state[0].new_zeros(0, x.shape[1], *output_shape(self.core)), next(self.core.parameters()))
        return y, state[place].new_zeros(0, *state[place].shape), tuple(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As torch; states go where the parameters go, in the dtype that the core keeps states in."""
        torch.nn.Module._apply(self, fn, recurse)
        for memories in (self._memories, self._memories_rv):
            for name, part in memories.items():
                memories[name] = wide(fn(part)) if isinstance(part, Tensor) else part
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, which refuse a tensor inside a graph."""
        memories = {name: part.detach() if isinstance(part, Tensor) else part for name, part in self._memories.items()}
        v_seq = None if self.v_seq is None else self.v_seq.detach()
        return self.__dict__ | {"_memories": memories, "v_seq": v_seq}

    def extra_repr(self) -> str:
        return f"step_mode={self.step_mode}" + ("" if self.spiking else ", spiking=False")


class ELM(Layer):
    """An ELM neuron that spikes, or a population of them, as a neuron of spikingjelly.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of each neuron.
        num_memory: number of memory units; 100 by default, 20 with branches.
        spiking: as in :class:`Layer`.
        options: the other keywords of :class:`Layer` and those of :class:`elm_neuro.nn.ELM`, times in ms; `num_branch`
            makes it a :class:`BranchELM`; with `num_neuron` the outputs are flattened, unless told otherwise.

    Shapes and errors: as :class:`Layer`; memories `b`, `m`, `v` and `s` as in
    :class:`elm_neuro.nn.SpikingELMState`.

    >>> neuron = ELM(700, 1, num_memory=10, num_neuron=32, v_threshold=0.5)
    >>> neuron(torch.zeros(8, 700)).shape, neuron.m.shape
    (torch.Size([8, 32]), torch.Size([8, 32, 10]))
    """

    @spelled_out(ELMOptions, DEFAULTS, nn.ELM, ELMConfig, SpikeOutput)
    def __init__(
        self, input_size: int, output_size: int, num_memory: int | None = None, **options: Unpack[ELMOptions]
    ) -> None:
        if "batch_first" in options:
            raise TypeError("batch_first must be left out: spikingjelly's sequences are (time, batch, channel)")
        check_keywords(self, options, ELMOptions, ELM.__init__)
        host, neuron = split_keywords(options, LayerOptions)
        spiking = neuron.pop("spiking", True)
        if neuron.get("num_neuron") is not None:
            neuron.setdefault("flatten_output", True)
        super().__init__(elm_of(input_size, output_size, num_memory, **neuron), spiking=spiking, **host)


class BranchELM(ELM):
    """:class:`ELM` whose inputs are routed to synapses that are summed on branches.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of each neuron.
        num_memory: number of memory units.
        num_branch: number of branches.
        num_synapse_per_branch: synapses on each.
        options: the other keywords of :class:`ELM` here and of :class:`elm_neuro.nn.BranchELM`.

    >>> BranchELM(700, 20, num_branch=10, num_synapse_per_branch=140, step_mode="m")(torch.zeros(5, 8, 700)).shape
    torch.Size([5, 8, 20])
    """

    @spelled_out(BranchELMOptions, DEFAULTS, nn.BranchELM, SpikeOutput)
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
        branches = {"num_branch": num_branch, "num_synapse_per_branch": num_synapse_per_branch}
        super().__init__(input_size, output_size, num_memory, **branches, **options)


class ALIF(Layer):
    """A layer of adaptive LIF neurons; ``adaptive=False`` makes it a LIF. Unlike spikingjelly's it holds its input
    weights; its threshold starts at 1, and a spike sets `v` to zero.

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        surrogate_function: :class:`elm_neuro.functional.FastSigmoid` by default.
        options: `step_mode` and `store_v_seq` of :class:`Layer`, and the other keywords of :class:`elm_neuro.nn.ALIF`,
            times in ms.

    Shapes and errors: as :class:`Layer`; memories `v`, `a` and `s` as in :class:`elm_neuro.nn.ALIFState`.

    >>> ALIF(700, 128, tau_a=200.0)(torch.zeros(8, 700)).shape
    torch.Size([8, 128])
    """

    @spelled_out(ALIFOptions, DEFAULTS, nn.ALIF, ALIFConfig)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        **options: Unpack[ALIFOptions],
    ) -> None:
        check_keywords(self, options, ALIFOptions, ALIF.__init__)
        mode, neuron = split_keywords(options, ModeOptions)
        super().__init__(nn.ALIF(input_size, output_size, surrogate=surrogate_function, **neuron), **mode)
