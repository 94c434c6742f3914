"""The neurons of elm_neuro as snnTorch neurons: one step at a time, or whole sequences at once.

:class:`Cell` and :class:`Layer` are the faces of any layer that keeps the protocol :class:`elm_neuro.nn.Layer`;
:class:`ELM`, :class:`BranchELM`, :class:`ALIF` and :class:`ELMSequence` make the layer too. Each keeps the layer that
it wraps as `core`; weights have the same names in a step and in a sequence. Importing this module teaches snnTorch's
own helpers, ``snntorch.utils.reset`` and ``snntorch.backprop``, our neurons (:func:`patch`; not with
``ELM_NEURO_PATCH_SNNTORCH=0`` in the environment, and :func:`unpatch` undoes it). Times are milliseconds.
Longer than most modules: one file a host, and half of it is docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from elm_neuro import nn as neurons
from elm_neuro.adapters._face import checked_core, elm_of, spikes_by_itself, split_keywords
from elm_neuro.adapters._snntorch import DEFAULTS, HostOptions, Neuron, same_dtype
from elm_neuro.adapters._snntorch_patch import patch, reset, unpatch
from elm_neuro.backends import SpikeRule
from elm_neuro.backends.parts._lengths import cut_at
from elm_neuro.backends.parts._plain import may_look
from elm_neuro.backends.parts._untraced import compilable, untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional._spike import SURROGATES
from elm_neuro.nn import ALIFConfig, ELMConfig
from elm_neuro.nn._alif_config import ALIFEquationOptions
from elm_neuro.nn._config import BranchOptions, EquationOptions, RunOptions
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import AnyLayer, forward_spiking, step_by_call
from elm_neuro.nn._narrow import as_stored
from elm_neuro.nn._spiking import free_names

__all__ = ["ALIF", "ELM", "BranchELM", "Cell", "ELMSequence", "Layer", "patch", "reset", "unpatch"]

# keywords that a core which spikes by itself leaves nothing to do for
THRESHOLD_OPTIONS = (
    "threshold", "spike_grad", "surrogate_disable", "inhibition", "learn_threshold", "reset_mechanism", "state_quant",
)  # fmt: skip


class BranchELMOptions(HostOptions, EquationOptions, RunOptions, total=False):
    """Keywords of :class:`BranchELM` beside those that it names."""

    routing: str | Tensor | None
    delta_t: float
    flatten_output: bool


class ELMOptions(HostOptions, EquationOptions, BranchOptions, RunOptions, total=False):
    """Keywords of :class:`ELM` and :class:`ELMSequence` beside those that they name."""

    delta_t: float
    flatten_output: bool


class ALIFOptions(ALIFEquationOptions, total=False):
    """Keywords of :class:`ALIF` beside those that it names."""

    delta_t: float
    generator: torch.Generator | None
    backend: str


class Cell(Neuron):
    r"""One step of any layer, whoever wrote it, as an snnTorch neuron: ``spk, *states = neuron(x, *states)``.

    A core that does not spike by itself gets a threshold: the membrane `mem` is its output, and the states are its own,
    in their order, then `mem`. The states of a core that spikes are its own, with the membrane (its field `v`, or else
    the last one) behind the others. They have the names of the core's fields, with ``core_`` before one that snnTorch
    uses otherwise.

    The reset, none by default, acts on the output of the next step alone, as in :class:`elm_neuro.nn.SpikeOutput`; the
    core itself has none. As in snnTorch it asks whether the last `mem` lies above the threshold: below a negative
    threshold, the zeros at the start count as a spike.

    Args:
        core: a layer or cell that keeps the protocol :class:`elm_neuro.nn.Layer`.
        threshold: of the output, a number or one per output.
        spike_grad: surrogate, called on ``mem - threshold``; :class:`elm_neuro.functional.ATan` by default, which has
            the numbers of snnTorch's default and also pickles and keeps float64. snnTorch's own give float32.
        surrogate_disable: a plain step, no gradient.
        init_hidden: keep the states in the neuron; the call takes x alone and returns the spikes.
        inhibition: only the output furthest above its threshold spikes.
        learn_threshold: train the threshold.
        reset_mechanism: "none", "subtract" or "zero".
        state_quant: called on each state after the step, as from ``snntorch.functional.quant.state_quant``.
        output: return the states too where `init_hidden` keeps them.
        graded_spikes_factor: spikes leave multiplied by this.
        learn_graded_spikes_factor: train it.

    Shapes: x (batch, input_size); spk, mem (batch, *output_shape); states as the core has them, batch first. All of
    them None, or what :meth:`reset_mem` returns, for the start.

    Raises:
        TypeError: `core` lacks a part of the protocol, or spikes by itself and a keyword of the threshold is given;
            states with `init_hidden`, not all of them, or of the wrong dtype; a surrogate or quantiser that changes the
            dtype.
        ValueError: wrong shape or device; another batch than the hidden states have.

    >>> neuron = Cell(neurons.ELM(3, 2, num_memory=4), threshold=0.1)
    >>> spk, b, m, mem = neuron(torch.ones(8, 3))
    >>> neuron.state_names, spk.shape
    (('b', 'm', 'mem'), torch.Size([8, 2]))
    """

    core_fields: ClassVar[tuple[str, ...]] = ()  # of the core's state, in the order of the call; () is any core's
    names: ClassVar[tuple[str, ...]] = ()  # of the states; () is those of the fields
    takes_sequences = False

    @spelled_out(HostOptions, DEFAULTS, core=torch.nn.Module)
    def __init__(self, core: AnyLayer, **host: Unpack[HostOptions]) -> None:
        check_keywords(self, host, HostOptions, Cell.__init__)
        core = checked_core(core, sequences=self.takes_sequences)
        emits = spikes_by_itself(core)
        if emits and not self.names and (wrong := [name for name in THRESHOLD_OPTIONS if name in host]):
            raise TypeError(f"{wrong[0]} must be left out: {type(core).__name__} spikes by itself")
        super().__init__(core, **host)
        self._emits = emits
        fields: tuple[str, ...] = core.state_type._fields
        membrane = "v" if "v" in fields else fields[-1]
        ordered = sorted(fields, key=lambda name: name == membrane) if emits else fields
        order = self.core_fields or tuple(ordered)
        self._order = tuple(fields.index(name) for name in order)
        self._places = tuple(order.index(name) for name in fields)
        names = free_names(order, lambda name: name == "mem" or hasattr(self, name))
        self._name_states(self.names or (*names, *(() if emits else ("mem",))))

    def forward(self, x: Tensor, *states: Tensor | None) -> Any:
        return self._one_step(x, *(states or (None,) * len(self.state_names)))

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes times the graded factor; with inhibition only the output furthest above its threshold spikes."""
        distance = mem - self.threshold
        spikes = self._spikes(distance)
        if self.inhibition:
            flat = distance.flatten(-len(self.output_shape))
            winner = torch.zeros_like(flat).scatter(-1, flat.argmax(-1, keepdim=True), 1.0)
            spikes = spikes * winner.view_as(spikes)
        return self._graded(spikes)

    def _graded(self, spikes: Tensor) -> Tensor:
        """Spikes times the graded factor."""
        factor = self.graded_spikes_factor
        fixed = factor.ndim == 0 and not factor.requires_grad and may_look(factor)
        if fixed and factor.item() == 1.0:
            return spikes  # the product over a sequence costs as much as the threshold
        return spikes * factor

    def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
        """As snnTorch calls it: :meth:`fire` of a neuron with inhibition."""
        return self.fire(mem)

    def mem_reset(self, mem: Tensor) -> Tensor:
        """Whether each membrane has spiked, 0 or 1; passes no gradient."""
        return (mem > self.threshold).to(mem.dtype)

    def _after_reset(self, readout: Tensor, mem: Tensor) -> Tensor:
        """Readout of this step, less the reset by the spikes of the last."""
        if self.reset_mechanism == "subtract":
            return readout - self.threshold.detach() * self.mem_reset(mem)
        return readout * (1.0 - self.mem_reset(mem)) if self.reset_mechanism == "zero" else readout

    def _shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        own = [(batch, *self._core_sizes[place]) for place in self._order]
        return tuple(own if self._emits else [*own, (batch, *self.output_shape)])

    def _start(self, batch: int) -> tuple[Tensor, ...]:
        inner = self.core.initial_state(batch)
        own = [inner[place] for place in self._order]
        return tuple(own if self._emits else [*own, inner[0].new_zeros(batch, *self.output_shape)])

    def _core_state(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The core's own state among those of the call."""
        state: tuple[Tensor, ...] = self.core.state_type(*(states[place] for place in self._places))
        return state

    def _advance(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, inner = step_by_call(self.core)(x, self._core_state(states))
        if self._emits:
            return self._graded(y), tuple(inner[place] for place in self._order)
        after = (*inner, self._after_reset(y.to(inner[0].dtype), states[-1]))
        if self.state_quant:
            after = tuple(same_dtype("state_quant", self.state_quant(part), part) for part in after)
        return as_stored(self.fire(after[-1]), self.threshold), after


class Layer(Cell):
    """Any layer over whole sequences, time first, on its fast backends: ``spk = neuron(x)``.

    Every call starts from zeros, or with `init_hidden` where the last one ended. `state_quant` is refused: the backends
    do not stop between steps.

    Args:
        core: a layer that keeps the protocol :class:`elm_neuro.nn.Layer`.
        output: return ``spk, mem``, the core's output beside the spikes; not with a core that spikes by itself.
        host: the other keywords of :class:`Cell`.

    Shapes:
        - x (time, batch, input_size), or :class:`elm_neuro.SpikeEvents`, which are always batch-major.
        - lengths (batch,): number of valid steps; spikes and readout are zero past them. Not with `init_hidden`.
        - spk, mem (time, batch, *output_shape).

    Raises:
        TypeError: as :class:`Cell`; wrong dtype.
        ValueError: wrong shape or device; lengths out of range; sequences that are batch-first, where their shape shows
            it; a core that is a cell.

    >>> Layer(neurons.LIF(700, 20))(torch.zeros(100, 8, 700)).shape
    torch.Size([100, 8, 20])
    """

    takes_sequences = True

    @spelled_out(HostOptions, DEFAULTS, core=torch.nn.Module)
    def __init__(self, core: AnyLayer, **host: Unpack[HostOptions]) -> None:
        check_keywords(self, host, HostOptions, Layer.__init__)
        _no_quantiser(host.get("state_quant"))
        super().__init__(core, **host)
        if self._emits and self.output:
            raise TypeError(f"output must be left out: {type(core).__name__} gives spikes only over a sequence")

    @compilable
    def forward(self, x: Tensor | SpikeEvents, lengths: Tensor | None = None) -> Any:  # type: ignore[override]  # a sequence, not a step
        batch = self._batch_of(x, lengths)
        states = self._states_before(batch, (None,) * len(self.state_names))
        x = x.transpose(0, 1) if isinstance(x, Tensor) else x
        if self._emits:
            spk, inner = self.core(x, None if states is None else self._core_state(states), lengths)
            if self.init_hidden:
                self._keep(tuple(inner[place] for place in self._order))
            return self._graded(spk.transpose(0, 1))
        spk, readout, inner = self._fired(x, states, lengths)  # (time, batch, ...)
        if lengths is not None:
            ends = torch.as_tensor(lengths, device=readout.device).long()
            spk, readout = (cut_at(ends, part.transpose(0, 1)).transpose(0, 1) for part in (spk, readout))
        if self.init_hidden:
            last = readout[-1] if len(readout) else (self._start(batch) if states is None else states)[-1]
            self._keep((*inner, last))
        return (spk, readout) if self.output else spk

    def _fired(
        self, x: Tensor | SpikeEvents, states: tuple[Tensor, ...] | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Graded spikes and readout, time first, and the core's state after the sequence."""
        before = None if states is None else self._core_state(states)
        pass_that_fires = self._pass_that_fires()
        if pass_that_fires is not None:
            threshold = self.threshold
            spk, y, inner = pass_that_fires(x, before, lengths, SpikeRule(threshold, self.spike_grad))
            return as_stored(self._graded(spk.transpose(0, 1)), threshold), y.transpose(0, 1), inner
        y, inner = self.core(x, before, lengths)
        readout = y.to(inner[0].dtype).transpose(0, 1)
        if self.reset_mechanism != "none" and len(readout):
            readout = self._after_resets(readout, torch.zeros_like(readout[0]) if states is None else states[-1])
        return as_stored(self.fire(readout), self.threshold), readout, inner

    @untraced
    def _after_resets(self, readout: Tensor, mem: Tensor) -> Tensor:
        """The readout of every step, time first, after the reset by the one before it."""
        steps = []
        for y_t in readout.unbind(0):
            mem = self._after_reset(y_t, mem)
            steps.append(mem)
        return torch.stack(steps)

    def _pass_that_fires(self) -> Callable[..., tuple[Tensor, Tensor, Any]] | None:
        """The core's own pass with a threshold in it, where a spike depends on its readout alone and nobody has changed
        how it fires.
        """
        plain = self.reset_mechanism == "none" and not self.inhibition and not torch.compiler.is_compiling()
        ours = type(self.spike_grad) in SURROGATES.values() and type(self).fire is Cell.fire
        return forward_spiking(self.core) if plain and ours else None

    def _batch_of(self, x: Tensor | SpikeEvents, lengths: Tensor | None) -> int:
        """Size of the batch of a sequence that has the right shape."""
        if lengths is not None and self.init_hidden:
            raise ValueError(
                "lengths must be left out with init_hidden=True: the next call would go on behind the end of the "
                "shorter samples"
            )
        if isinstance(x, SpikeEvents):
            return int(x.shape[0])
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor or SpikeEvents, got {type(x).__name__}")
        size = self._inputs[0][0]
        if x.shape[2:] not in self._inputs:
            raise ValueError(f"x must have shape (time, batch, {size}), got {tuple(x.shape)}")
        num_step, batch = x.shape[:2]
        known = batch
        if self.init_hidden and self._hidden()[0].ndim > 1:
            known = self._hidden()[0].shape[0]
        elif lengths is not None and lengths.ndim:
            known = len(lengths)
        if known != batch and known == num_step:
            raise ValueError(
                f"x must be time-first, (time, batch, {size}), got {tuple(x.shape)} for a batch of {known}: "
                "batch-first?"
            )
        return batch


class ELM(Cell):
    r"""One step of an ELM that spikes, as an snnTorch neuron: ``spk, syn, memory, mem = neuron(x, syn, memory, mem)``.

    The membrane `mem` is the readout; :class:`Cell` says how it spikes and is reset.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of each neuron.
        num_memory: number of memory units; 100 by default, 20 with branches.
        options: the keywords of :class:`Cell` and those of :class:`elm_neuro.nn.ELM`; with `num_neuron` the outputs are
            flattened, unless told otherwise.

    Shapes:
        - x (batch, input_size), for a population also (batch, num_neuron, input_size).
        - spk, mem (batch, output_size), for a population (batch, num_neuron * output_size).
        - syn, the branch trace (batch, [num_neuron,] num_branch); memory (batch, [num_neuron,] num_memory). All three
          None, or what :meth:`reset_mem` returns, for zeros.

    Raises:
        TypeError: as :class:`Cell`; an unknown keyword.
        ValueError: as :class:`Cell`; a value out of its range.

    >>> layer = ELM(700, 1, num_memory=10, num_neuron=32)  # 32 neurons, each with a spike train of its own
    >>> spk, syn, memory, mem = layer(torch.zeros(8, 700), *layer.reset_mem())
    >>> spk.shape, syn.shape, memory.shape, mem.shape
    (torch.Size([8, 32]), torch.Size([8, 32, 700]), torch.Size([8, 32, 10]), torch.Size([8, 32]))
    >>> import snntorch
    >>> from torch import nn
    >>> net = nn.Sequential(ELM(700, 64, init_hidden=True), nn.Linear(64, 20), snntorch.Leaky(0.9, init_hidden=True))
    >>> torch.stack([net(x_t) for x_t in torch.zeros(100, 8, 700)]).shape
    torch.Size([100, 8, 20])
    """

    core_fields = ("b", "m")
    names = ("syn", "memory", "mem")

    @spelled_out(ELMOptions, DEFAULTS, neurons.ELM, ELMConfig)
    def __init__(
        self, input_size: int, output_size: int, num_memory: int | None = None, **options: Unpack[ELMOptions]
    ) -> None:
        if "batch_first" in options:
            raise TypeError("batch_first must be left out: snnTorch's sequences are (time, batch, channel)")
        check_keywords(self, options, ELMOptions, ELM.__init__)
        host, neuron = split_keywords(options, HostOptions)
        if neuron.get("num_neuron") is not None:
            neuron.setdefault("flatten_output", True)
        super().__init__(elm_of(input_size, output_size, num_memory, **neuron), **host)

    def forward(  # type: ignore[override]  # the same call, its states by name
        self, x: Tensor, syn: Tensor | None = None, memory: Tensor | None = None, mem: Tensor | None = None
    ) -> Any:
        return self._one_step(x, syn, memory, mem)


class BranchELM(ELM):
    """:class:`ELM` whose inputs are routed to synapses that are summed on branches.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of each neuron.
        num_memory: number of memory units.
        num_branch: number of branches.
        num_synapse_per_branch: synapses on each.
        options: the other keywords of :class:`ELM` here and of :class:`elm_neuro.nn.BranchELM`.

    >>> BranchELM(700, 20, num_branch=10, num_synapse_per_branch=140, init_hidden=True)(torch.zeros(8, 700)).shape
    torch.Size([8, 20])
    """

    @spelled_out(BranchELMOptions, DEFAULTS, neurons.BranchELM)
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


class ELMSequence(Layer, ELM):  # type: ignore[misc]  # the call is Layer's
    """:class:`ELM` over whole sequences, time first, on the fast backends: ``spk = neuron(x)``.

    The same neuron, weights and keywords, hence a ``state_dict`` of the one loads into the other; `num_branch` makes it
    a :class:`BranchELM`. States and lengths as in :class:`Layer`.

    Args:
        input_size: number of inputs.
        output_size: number of outputs of each neuron.
        num_memory: number of memory units; 100 by default, 20 with branches.
        options: the keywords of :class:`ELM`; `output` returns ``spk, mem``, the readout beside the spikes.

    Shapes:
        - x (time, batch, input_size), for a population also (time, batch, num_neuron, input_size), or
          :class:`elm_neuro.SpikeEvents`, which are always batch-major.
        - lengths (batch,): number of valid steps; spikes and readout are zero past them. Not with `init_hidden`.
        - spk, mem (time, batch, output_size), for a population (time, batch, num_neuron * output_size).

    >>> spk, mem = ELMSequence(700, 20, num_memory=10, output=True)(torch.zeros(100, 8, 700))
    >>> spk.shape, mem.shape
    (torch.Size([100, 8, 20]), torch.Size([100, 8, 20]))
    """

    @spelled_out(ELMOptions, DEFAULTS, neurons.ELM, ELMConfig)
    def __init__(
        self, input_size: int, output_size: int, num_memory: int | None = None, **options: Unpack[ELMOptions]
    ) -> None:
        _no_quantiser(options.get("state_quant"))
        ELM.__init__(self, input_size, output_size, num_memory, **options)


class ALIF(Cell):
    """One step of a layer of adaptive LIF neurons: ``spk, past, adaptation, mem = neuron(x, past, adaptation, mem)``.

    Unlike snnTorch's neurons it holds its input weights, and its threshold rises with every spike. It has the keywords
    of snnTorch that do not contradict its equations: the threshold starts at 1, the reset is to zero.

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        spike_grad: surrogate; :class:`elm_neuro.functional.ATan` by default, as in :class:`ELM`.
        surrogate_disable: a plain step, no gradient.
        init_hidden: keep the states in the neuron; the call takes x alone and returns the spikes.
        output: return the states too where `init_hidden` keeps them.
        graded_spikes_factor: spikes leave multiplied by this; a number or one per neuron.
        learn_graded_spikes_factor: train it.
        options: the other keywords of :class:`elm_neuro.nn.ALIF`, times in ms.

    Shapes: x (batch, input_size); spk, adaptation, mem (batch, output_size); past, the spikes of the last steps with
    the newest last, (batch, latency steps + 1, output_size). All three None, or what :meth:`reset_mem` returns, for
    zeros.

    Raises:
        TypeError: as :class:`ELM`.
        ValueError: as :class:`ELM`.

    >>> layer = ALIF(700, 128, tau_a=200.0)
    >>> spk, past, adaptation, mem = layer(torch.zeros(8, 700))
    >>> spk.shape
    torch.Size([8, 128])
    """

    core_fields = ("s", "a", "v")
    names = ("past", "adaptation", "mem")

    @spelled_out(ALIFOptions, neurons.ALIF, ALIFConfig)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        **options: Unpack[ALIFOptions],
    ) -> None:
        if wrong := sorted(
            {"threshold", "inhibition", "learn_threshold", "reset_mechanism", "state_quant", "surrogate"} & set(options)
        ):
            raise TypeError(
                f"{wrong[0]} must be left out: an ALIF's threshold starts at 1, its reset is to zero, spike_grad "
                "is its surrogate"
            )
        check_keywords(self, options, ALIFOptions, ALIF.__init__)
        super().__init__(
            neurons.ALIF(input_size, output_size, **options),
            spike_grad=spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            reset_mechanism="zero",
            output=output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
        )
        self.core.cell.surrogate = self.spike_grad

    def forward(  # type: ignore[override]  # the same call, its states by name
        self, x: Tensor, past: Tensor | None = None, adaptation: Tensor | None = None, mem: Tensor | None = None
    ) -> Any:
        return self._one_step(x, past, adaptation, mem)


def _no_quantiser(state_quant: Any) -> None:
    if state_quant:
        raise ValueError(
            "state_quant must be False for whole sequences, whose states are not seen between steps: use ELM"
        )
