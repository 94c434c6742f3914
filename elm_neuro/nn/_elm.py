"""The ELM neuron over sequences.

Longer than most: a third is docstrings.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from elm_neuro import backends, pretrained
from elm_neuro.backends._select import choose
from elm_neuro.backends.elm import check_recompute_every, check_sparse_input
from elm_neuro.backends.elm._learned import Learned
from elm_neuro.backends.parts._lengths import cut_at, last_or_zeros
from elm_neuro.backends.parts._plain import may_look
from elm_neuro.backends.parts._untraced import compilable
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMState, branch_input, memory_proposal, memory_update, zero_state
from elm_neuro.functional._elm import linear
from elm_neuro.nn._cell import ELMCell, like_of
from elm_neuro.nn._checks import as_frames, check_sequence, checked_lengths, refuse_nan
from elm_neuro.nn._config import BranchELMOptions, ELMConfig, ELMOptions, RunOptions, check_config
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import BackendName, Configured, backend_shown
from elm_neuro.nn._narrow import as_stored, wide


class ELMTraces(NamedTuple):
    """What happens inside a neuron over a sequence, for figures; time is the second axis."""

    synapse: Tensor  # (batch, time, [num_neuron,] num_branch, num_synapse_per_branch)
    branch: Tensor  # (batch, time, [num_neuron,] num_branch)
    memory: Tensor  # (batch, time, [num_neuron,] num_memory)
    output: Tensor  # (batch, time, [num_neuron,] output_size)


@pretrained.register
class ELM(pretrained.Saved, Configured, nn.Module):
    r"""Expressive Leaky Memory neuron over sequences; every input is its own branch.

    .. math::
        b_t &= \kappa_b \odot b_{t-1} + \text{relu}(w_s) \odot x_t \\
        d_t &= 1.7159 \tanh(\tfrac23 \text{MLP}([b_t, \kappa_m \odot m_{t-1}])) \\
        m_t &= \kappa_m \odot m_{t-1} + \lambda (1 - \kappa_m) \odot d_t \\
        y_t &= W_y m_t + b_y

    with :math:`\kappa = \exp(-\Delta t / \tau)`. Source: Spieler et al., ICLR 2024, arXiv:2306.16922, with the scaled
    tanh of the authors' code. Called like ``nn.LSTM(batch_first=True)``:
    ``y, state = neuron(x, state=None, lengths=None)``.

    Args:
        input_size: number of inputs.
        output_size: number of outputs.
        num_memory: number of memory units.
        variant: "v1", or "v2" whose gain :math:`1 - \exp(-\lambda \Delta t / \tau_m)` replaces
            :math:`\lambda (1 - \kappa_m)`.
        delta_t: time step in ms.
        tau_s: time constant of the synapses in ms: one, or one per branch.
        tau_m_init: lowest and highest initial time constant of the memory in ms.
        tau_m_spacing: "log" or "linear", between the two.
        tau_m_bounds: range in ms that learning cannot leave; by default a tenth of the lowest to ten times the highest
            initial one. A unit that starts on a bound hardly learns.
        learn_tau_m: train the time constants of the memory.
        lambda_: gain on the memory's change, dimensionless.
        w_s_init: initial weight of the synapses.
        learn_w_s: train the weights of the synapses (the paper's ELM without branches does not).
        num_mlp_layers: hidden layers of the MLP; 0 makes the integration linear.
        mlp_hidden_size: their width, ``2 * num_memory`` by default.
        activation: of the hidden layers, "relu" or "silu".
        branch_activation: of the branch traces before the MLP: None, "relu", "silu" or "tanh" (the paper's ablation,
            figure S5).
        num_neuron: a population of this many neurons, each with its own weights; their axis precedes the last one
            everywhere.
        flatten_output: give a population's output as (..., num_neuron * output_size).
        batch_first: sequences are (batch, time, ...); False for (time, batch, ...). Events are always batch-major.
        generator: source of the random initial weights; torch's global one by default.
        backend: "auto" or a name of :func:`elm_neuro.backends.available`; not saved.
        recompute_every: keep the activations of this many steps only and recompute the others in the backward pass; not
            saved.
        sparse_input: turn dense frames into events on the CPU: "auto", where few of their entries are spikes and x
            needs no gradient; "on", always; "off", never. The numbers are the same but for rounding; not saved.

    Shapes:
        - x (batch, time, input_size), for a population also (batch, time, num_neuron, input_size), or
          :class:`SpikeEvents`.
        - state :class:`ELMState`, None for zeros; splitting a sequence and handing the state on changes nothing.
        - lengths (batch,): number of valid steps; past them y is 0 and the state keeps its value.
        - y (batch, time, [num_neuron,] output_size).

    Raises:
        TypeError: wrong dtype of x or state.
        ValueError: wrong shape or device, lengths out of range, NaN in x or state and numbers that overflow to it
            (checked on the CPU only: elsewhere it would wait for the device); ``sparse_input="on"`` and frames that
            need a gradient, are not on the CPU or differ between the neurons of a population.

    >>> from elm_neuro import suggest
    >>> neuron = ELM(700, 20, num_memory=10, **suggest(delta_t=10.0, num_steps=100))
    >>> y, state = neuron(torch.zeros(8, 100, 700))
    >>> y.shape
    torch.Size([8, 100, 20])
    """

    state_type = ELMState
    is_cell = False
    config_type = ELMConfig
    backend = BackendName("elm")

    @spelled_out(ELMOptions, ELMConfig)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_memory: int = 100,
        *,
        generator: torch.Generator | None = None,
        backend: str = "auto",
        recompute_every: int | None = None,
        sparse_input: str = "auto",
        **config: Unpack[ELMOptions],
    ) -> None:
        super().__init__()
        check_keywords(self, config, ELMOptions, ELM.__init__)
        self.backend = backend
        self.recompute_every = recompute_every
        self.sparse_input = sparse_input
        check_sparse_input(sparse_input)
        check_recompute_every(recompute_every)
        self.cell = ELMCell(input_size, output_size, num_memory=num_memory, generator=generator, **config)

    @classmethod
    def from_config(cls, config: ELMConfig, *, routing: Tensor | None = None, **run_time: Unpack[RunOptions]) -> ELM:
        """A neuron of this configuration with new weights: a :class:`BranchELM` where the configuration has branches,
        of a subclass one of it.

        Args:
            config: its configuration.
            routing: the index tensor; needed where the configuration's routing is "index".
            run_time: `backend`, `recompute_every` and `sparse_input`, as in the constructor.

        >>> branched = BranchELM(12, 1, 2, num_branch=3, num_synapse_per_branch=8)
        >>> type(ELM.from_config(branched.config)).__name__
        'BranchELM'
        """
        check_config(config, ELMConfig)
        own = ELM if config.num_branch is None else BranchELM
        kind = own if cls in (ELM, BranchELM) else cls
        values = vars(config) if routing is None else vars(config) | {"routing": routing}
        return kind(**values, **run_time)

    def reset_parameters(self) -> None:
        """Draw everything anew, as :meth:`ELMCell.reset_parameters`."""
        self.cell.reset_parameters()

    @property
    def config(self) -> ELMConfig:
        return self.cell.config

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output in one step."""
        return self.cell.config.output_shape

    @property
    def tau_m(self) -> Tensor:
        """Memory time constants in ms, ([num_neuron,] num_memory)."""
        return self.cell.tau_m

    @property
    def w_s(self) -> Tensor:
        """Synaptic weights, rectified, ([num_neuron,] num_branch, num_synapse_per_branch)."""
        return self.cell.w_s

    def initial_state(self, batch: int) -> ELMState:
        """Zeros, in the parameters' dtype but not narrower than float32, on their device."""
        return self.cell.initial_state(batch)

    def check_state(self, state: ELMState, batch: int) -> ELMState:
        """`state` where it fits, as :meth:`ELMCell.check_state`."""
        return self.cell.check_state(state, batch)

    def step(self, x_t: Tensor, state: ELMState | None = None) -> tuple[Tensor, ELMState]:
        """One step on the same parameters: the call of :class:`ELMCell`."""
        stepped: tuple[Tensor, ELMState] = self.cell(x_t, state)
        return stepped

    @compilable
    def forward(
        self, x: Tensor | SpikeEvents, state: ELMState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ELMState]:
        cell: Any = self._modules["cell"]  # torch's attributes take their time
        if (reason := _reason_to_call(cell)) is not None:
            y, after = self._by_calls(x, state, lengths, reason)
            return (y if self.config.batch_first else y.transpose(0, 1)), after
        x, learned, state, lengths = _prepared(cell, x, state, lengths)
        y, after = backends.elm.scan(
            x,
            learned,
            state,
            lengths=lengths,
            recompute_every=self.recompute_every,
            sparse_input=self.sparse_input,
            backend=self.backend,
        )
        if may_look(after.m):
            self._check_result(x, learned, state, lengths, y, after)
        config = cell.config
        if config.flatten_output and config.num_neuron is not None:
            y = y.flatten(-2)
        y = as_stored(y, like_of(cell))
        return (y if config.batch_first else y.transpose(0, 1)), after

    @compilable
    def forward_spiking(
        self,
        x: Tensor | SpikeEvents,
        state: ELMState | None,
        lengths: Tensor | None,
        rule: backends.SpikeRule,
        *,
        last_readout: bool = False,
    ) -> tuple[Tensor, Tensor, ELMState]:
        """As the call, batch first, and the spikes of the readout before it: in one pass where the backend can.

        With `last_readout` the readout is that of each sample's last valid step, (batch, *output_shape).
        """
        cell = self.cell
        if (reason := _reason_to_call(cell)) is not None:
            y, after = self._by_calls(x, state, lengths, reason)
            y = y.to(after.m.dtype)
            spikes = as_stored(cut_at(lengths, rule.fire(y)), like_of(cell))
            return spikes, last_or_zeros(y, lengths) if last_readout else y, after
        threshold, config, like = wide(rule.threshold), cell.config, like_of(cell)
        num_flattened = config.num_neuron if config.flatten_output else None
        if num_flattened is not None and threshold.ndim:
            threshold = threshold.expand(1, *self.output_shape).view(num_flattened, -1)
        x, learned, state, lengths = _prepared(cell, x, state, lengths)
        spikes, y, after = backends.elm.spiking_scan(
            x,
            learned,
            state,
            backends.SpikeRule(threshold, rule.surrogate),
            lengths=lengths,
            recompute_every=self.recompute_every,
            sparse_input=self.sparse_input,
            backend=self.backend,
            last_readout=last_readout,
        )
        if may_look(after.m):
            self._check_result(x, learned, state, lengths, y, after, last_only=last_readout)
        if num_flattened is not None:
            spikes, y = spikes.flatten(-2), y.flatten(-2)
        return as_stored(spikes, like), y, after

    @backends.untraced
    def _by_calls(
        self, x: Tensor | SpikeEvents, state: ELMState | None, lengths: Tensor | None, reason: str
    ) -> tuple[Tensor, ELMState]:
        """The neuron as the loop over its cell that it stands for, batch first."""
        choose(backends.elm.OPERATOR, self.backend, lambda candidate: reason if candidate.name != "reference" else None)
        cell, (x, before) = self.cell, _checked(self.cell, x, state)
        if lengths is not None:
            lengths = checked_lengths(lengths, x.shape[0], x.shape[1], cell.tau_s.device)
        frames, outputs = as_frames(x, like_of(cell)), []
        after = before  # None: the cell makes its own, once its hooks have gathered what may be in shards
        for step, x_t in enumerate(frames.unbind(1)):
            y_t, after = cell(x_t, after, None if lengths is None else (step < lengths).long())
            outputs.append(y_t)
        if not outputs or after is None:
            return frames.new_zeros(x.shape[0], 0, *self.output_shape), before or cell.initial_state(x.shape[0])
        return torch.stack(outputs, dim=1), after

    def _check_result(
        self,
        x: Tensor | SpikeEvents,
        learned: Learned,
        state: ELMState | None,
        lengths: Tensor | None,
        y: Tensor,
        after: ELMState,
        *,
        last_only: bool = False,
    ) -> None:
        """Refuse what ended in NaN, of numbers that may be looked at."""
        from elm_neuro.backends.native._sums import sum_of, sum_of_last_step  # brings the kernels

        # what was read last has gone through the memory and all that reads it
        if lengths is None and (last_only or y.shape[1]):
            total = sum_of(y) if last_only else sum_of_last_step(y)
        else:
            params = learned.params
            total = sum_of(after.m) + sum_of(params.w_y) + sum_of(params.b_y)
        refuse_nan(self, x, state, lengths, total, y.dtype)

    def traces(self, x: Tensor | SpikeEvents, state: ELMState | None = None) -> ELMTraces:
        """Synapse, branch, memory and output records of a sequence, for figures.

        Args:
            x: as in the call. Records are (batch, time, ...) in either layout.
            state: before the first step; the branch traces of a state given here are laid on each branch's first
                synapse.

        >>> ELM(3, 1, num_memory=2).traces(torch.ones(1, 4, 3)).synapse.shape
        torch.Size([1, 4, 3, 1])
        """
        x, checked = _checked(self.cell, x, state)
        params = self.cell.effective_parameters()
        state_ = zero_state(params, x.shape[0]) if checked is None else checked
        x = as_frames(x, state_.m)
        if params.kappa_m.ndim == 2 and x.ndim == 3:
            x = x.unsqueeze(2).expand(-1, -1, params.kappa_m.shape[0], -1)
        w_s = params.w_s.flatten(-2)[..., None]  # every synapse its own branch
        routing = None if params.routing is None else params.routing.flatten(-2)[..., None]
        kappa_s = params.kappa_b.unsqueeze(-1) if params.kappa_b.ndim else params.kappa_b
        synapse, memory = state_.b.new_zeros(*state_.b.shape, params.w_s.shape[-1]), state_.m
        synapse[..., 0] = state_.b
        records: list[tuple[Tensor, ...]] = []
        for x_t in x.unbind(1):
            arrived = branch_input(x_t, w_s, routing).view(synapse.shape)
            synapse = kappa_s * synapse + arrived
            branch = synapse.sum(-1)
            memory = memory_update(memory, memory_proposal(branch, memory, params), params.kappa_m, params.gain)
            records.append((synapse, branch, memory, linear(memory, params.w_y, params.b_y)))
        if not records:
            raise ValueError("x must have at least one time step to be traced, got 0")
        return ELMTraces(*(torch.stack(record, dim=1) for record in zip(*records, strict=True)))

    def extra_repr(self) -> str:
        chosen = backend_shown(self, wide(self.cell._proto_tau_m), "elm")
        recompute = f", recompute_every={self.recompute_every}" if self.recompute_every else ""
        return f"backend={chosen!r}{recompute}" + (
            f", sparse_input={self.sparse_input!r}" if self.sparse_input != "auto" else ""
        )


@pretrained.register
class BranchELM(ELM):
    """ELM neuron whose inputs are routed to synapses that are summed on branches: far fewer weights.

    Args:
        input_size: number of inputs.
        output_size: number of outputs.
        num_memory: number of memory units.
        num_branch: number of branches (45 in the paper; every input should occur 2 to 5 times over all of them).
        num_synapse_per_branch: synapses on each (100 in the paper; about twice the branches).
        routing: "neuronio" (default: windows over interleaved excitatory and inhibitory inputs), "window", "random",
            None (synapse j reads input j), or an index tensor ([num_neuron,] num_branch, num_synapse_per_branch) with
            -1 for an empty slot.
        shuffle_routing: permute the inputs before routing (the paper's ablation of their order).
        options: the other keywords of :class:`ELM`.

    >>> neuron = BranchELM(1278, 2, num_memory=20, num_branch=45, num_synapse_per_branch=100)
    >>> sum(p.numel() for p in neuron.parameters())
    8022
    """

    @spelled_out(BranchELMOptions, ELMConfig, ELM)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_memory: int = 20,
        *,
        num_branch: int,
        num_synapse_per_branch: int,
        routing: str | Tensor | None = "neuronio",
        **options: Unpack[BranchELMOptions],
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            num_memory,
            num_branch=num_branch,
            num_synapse_per_branch=num_synapse_per_branch,
            routing=routing,
            **options,
        )


def _reason_to_call(cell: nn.Module) -> str | None:
    """Why a cell must be called step by step; None where a pass over its parameters does what it is meant to."""
    return cell.reason_to_call() if isinstance(cell, ELMCell) else f"cell: {type(cell).__name__} is another's"


def _checked(
    cell: ELMCell, x: Tensor | SpikeEvents, state: ELMState | None
) -> tuple[Tensor | SpikeEvents, ELMState | None]:
    """Sequence, batch first, and state that fit the parameters."""
    config = cell.config
    check_sequence(x, config.input_size, like_of(cell), num_neuron=config.num_neuron, batch_first=config.batch_first)
    if not config.batch_first and isinstance(x, Tensor):
        x = x.transpose(0, 1)
    return x, (None if state is None else cell.check_state(state, x.shape[0]))


def _prepared(
    cell: ELMCell, x: Tensor | SpikeEvents, state: ELMState | None, lengths: Tensor | None
) -> tuple[Tensor | SpikeEvents, Learned, ELMState | None, Tensor | None]:
    """Checked input, the parameters, checked state and lengths."""
    x, state = _checked(cell, x, state)
    if lengths is not None:
        lengths = checked_lengths(lengths, x.shape[0], x.shape[1], cell.tau_s.device)
    return x, cell.learned_parameters(), state, lengths
