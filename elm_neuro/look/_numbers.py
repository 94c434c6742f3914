"""The numbers behind the figures: time constants, what branches read, and the response to one spike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elm_neuro import backends
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import branch_input
from elm_neuro.look._parts import Input, Part, frames, readout, run

Array = NDArray[np.float64]
ROWS_AT_ONCE = 64  # branches or inputs that are run in one batch, fewer where that were more than
NUMBERS_AT_ONCE = 1 << 24  # numbers
MAX_ROWS = 320  # inputs that are tried one by one; of more, this many evenly spaced ones
MOMENTS = {"branch": 40, "input": 8}  # at which a spike is added: inputs are many
SHORTEST, LONGEST = 50, 400  # steps that a response is followed for


def time_constants(part: Part) -> dict[str, Array]:
    r"""Time constants in ms, by their symbols: of an ELM neuron `tau_m` (num_memory,) and `tau_s` (one, or one a
    branch); of an ELM Network `tau_m` (output_size * num_memory,) and, where it has them, `tau_b` and `tau_high_pass`.

    Of a layer that holds decays a step in place of them, as LIF and ALIF do, :math:`\tau = -\Delta t / \ln \beta` of
    the decays that it computes with. A layer of somebody else gives the tensors that it calls tau.

    >>> from elm_neuro import ELM
    >>> neuron = ELM(3, 1, num_memory=3, tau_m_init=(1.0, 100.0), tau_m_bounds=(0.1, 1e3))
    >>> time_constants(Part("", neuron))["tau_m"].round(3)
    array([  1.,  10., 100.])
    """
    found: dict[str, Array] = {}
    for name in ("tau_m", "tau_s", "tau_b", "tau_v", "tau_a"):
        value = getattr(part.core, name, getattr(part.cell, name, None))
        if isinstance(value, Tensor):
            if part.num_neuron is not None and value.ndim == 2 and len(value) == part.num_neuron:
                value = value[part.neuron]
            found[name] = value.detach().double().cpu().numpy().reshape(-1)
    for name in ("tau_b", "tau_high_pass") if part.is_network else ():
        if (time := getattr(part.config, name)) is not None:
            found[name] = np.array([time], dtype=np.float64)
    for name, decay in _decays(part):
        with np.errstate(divide="ignore"):
            found.setdefault(name, -part.core.delta_t / np.log(decay.detach().double().cpu().numpy().reshape(-1)))
    return found


def _decays(part: Part) -> Iterator[tuple[str, Tensor]]:
    """Decays a step of a layer of LIF neurons, in the ranges that it computes with."""
    if not part.is_elm and hasattr(part.cell, "effective_parameters"):
        params = part.cell.effective_parameters()
        for name, field, there in (("tau_v", "beta", True), ("tau_a", "p", getattr(params, "b", None) is not None)):
            if there and isinstance(decay := getattr(params, field, None), Tensor):
                yield name, decay


@torch.no_grad()
def branch_fields(part: Part) -> Array | None:
    """What is read: of an ELM neuron the summed weights of each branch's synapses on each input, (num_branch,
    input_size), where it has branches; (1, input_size) where every input is its own. Of an ELM Network those of each
    neuron's synapses on each input, and behind the inputs on each neuron, (output_size, input_size + output_size). Of
    another layer its matrix of weights, (output_size, input_size). None where there is none.
    """
    if part.is_network:
        num_neuron, num_input = part.core.output_size, part.core.input_size
        fields = torch.zeros(num_neuron, num_input + num_neuron, dtype=torch.float64, device="cpu")
        sources, weights = part.core.wiring.flatten(1).cpu().long(), part.core.w_s.detach().double().cpu().flatten(1)
        return fields.scatter_add_(1, sources, weights).numpy()
    if not part.is_elm:
        weights = getattr(part.cell, "weight", None)
        fits = isinstance(weights, Tensor) and weights.ndim == 2 and weights.shape[-1] == part.core.input_size
        return weights.detach().double().cpu().numpy() if fits else None  # type: ignore[union-attr]
    weights, index = _synapses(part)
    if part.config.num_branch is None:
        return weights.reshape(1, -1).numpy()
    fields = torch.zeros(len(weights), part.core.input_size, dtype=torch.float64, device="cpu")
    return fields.scatter_add_(1, index.clamp(min=0), weights * (index >= 0)).numpy()


def _synapses(part: Part) -> tuple[Tensor, Tensor]:
    """Weights of the synapses and the inputs that they read, -1 for an empty slot, (num_branch, synapses)."""
    weights = part.core.w_s.detach().double().cpu()
    index = getattr(part.cell, "input_to_synapse_indices", None)
    if hasattr(part.cell, "settled_routing"):  # an average of buffers may have moved what the buffer holds
        index = part.cell.settled_routing()
    if part.num_neuron is not None:
        weights = weights[part.neuron]
        index = index[part.neuron] if index is not None and index.ndim == 3 else index
    in_order = torch.arange(weights.numel(), device="cpu").view(weights.shape)
    return weights, in_order if index is None else index.cpu().long()


class Responses(NamedTuple):
    """What one more spike changes in the readout while the layer works, against the same time without it."""

    kind: str  # "branch" or "input"
    rows: NDArray[np.int64]  # which branches or inputs, (row,)
    signs: tuple[float, ...]  # of the spikes: +1, and -1 where there are inhibitory inputs
    weight: Array  # of the synapse that gets the spike, (sign, row); 1 where the input gets it
    moments: NDArray[np.int64]  # steps of the sequence in which the spike came, (moment,)
    change: Array  # mean over the moments, (sign, row, time, output)
    watched: str  # what is read out: "readout", or a part of the state where the outputs are spikes

    @property
    def size(self) -> Array:
        """Root mean square over the outputs, (sign, row, time)."""
        return np.asarray(np.sqrt((self.change**2).mean(-1)))


def response_steps(part: Part, num_steps: int) -> int:
    """For how many steps of a sequence a response is followed: twice the longest time constant, 50 to 400 steps, half
    of the sequence.
    """
    longest = [float(values[np.isfinite(values)].max(initial=0.0)) for values in time_constants(part).values()]
    wanted = min(max(SHORTEST, 2 * max(longest, default=0.0) / part.core.delta_t), LONGEST)
    return max(1, min(int(wanted), num_steps // 2))


@torch.no_grad()
def spike_responses(part: Part, x: Input, *, num_steps: int | None = None, num_moments: int | None = None) -> Responses:
    """Change of the readout after one spike more, at each branch of an ELM neuron, or at each input of another layer.

    The layer works on a sequence; the spike is added in one step of it, and what follows is compared with what follows
    without it. This is done at several moments, of which the mean is taken: a neuron at rest may answer otherwise, and
    none that was trained on spikes has ever been at rest.

    A branch gets its spike at a synapse of the mean weight of those that it has, and no other branch does. Where there
    are excitatory and inhibitory inputs, one of each kind is tried: +1 and -1, with the mean weight of the branch's
    synapses of that kind. Where every input is its own branch, the input gets the spike that it knows. Time constants,
    MLP and memory are the module's own, and so is the code.

    Args:
        part: the layer.
        x: what it works on, batch 1.
        num_steps: for how many steps it is followed; :func:`response_steps` by default.
        num_moments: evenly spaced ones in the last three quarters of `x`; 40 for branches and 8 for inputs by default.

    Raises:
        ValueError: `x` is shorter than two steps, or than the steps that are followed; no moment.

    >>> from elm_neuro import ELM
    >>> spike_responses(Part("", ELM(3, 2, num_memory=4)), torch.ones(1, 50, 3), num_steps=20).change.shape
    (1, 3, 20, 2)
    """
    length = x.num_steps if isinstance(x, SpikeEvents) else x.shape[1]
    steps = response_steps(part, length) if num_steps is None else num_steps
    if length < 2 or not 1 <= steps <= length:
        raise ValueError(f"x must have at least two steps and those that are followed, {steps}, got {length}")
    kind = "branch" if part.is_elm and part.config.num_branch is not None else "input"
    number = MOMENTS[kind] if num_moments is None else num_moments
    if number < 1:
        raise ValueError(f"num_moments must be at least 1, got {number}")
    first = min(length // 4, length - steps)
    moments = np.unique(np.linspace(first, length - steps, number).astype(np.int64))
    respond = _branch_responses if part.is_elm else _input_responses
    with warnings.catch_warnings():  # that a spike more makes two: the layer takes them as it does
        warnings.filterwarnings("ignore", message="x has spike counts")
        return respond(part, frames(part.core, x), moments, steps)


def _branch_responses(part: Part, x: Tensor, moments: NDArray[np.int64], num_steps: int) -> Responses:
    signs, weights = _mean_synapses(part)  # (sign, branch)
    params = part.cell.effective_parameters()
    probe = params._replace(w_s=torch.ones_like(params.w_s[..., :1]), routing=None)  # takes what arrives at branches
    rows = _spaced(weights.shape[-1])
    spikes = torch.tensor(signs, device=weights.device)[:, None] * weights
    if part.config.num_branch is None and part.num_excitatory is not None:  # an input is of one kind
        spikes[:, part.num_excitatory :] *= -1
    if part.num_neuron is not None and x.ndim == 3:
        x = x.unsqueeze(2).expand(-1, -1, part.num_neuron, -1)
    at_once = max(1, NUMBERS_AT_ONCE // params.w_s.numel())
    arriving = torch.cat(
        [branch_input(some.flatten(0, 1), params.w_s, params.routing) for some in x.split(at_once, 1)]
    )[None]  # (1, time, [num_neuron,] branch)
    changes = [
        _against_none(
            part, lambda some, state: backends.scan(some, probe, state)[0], x, arriving, moments, num_steps, rows, spike
        )
        for spike in spikes
    ]
    kind = "branch" if part.config.num_branch is not None else "input"
    chosen = weights[:, rows].numpy()
    return Responses(kind, rows.numpy(), tuple(signs), chosen, moments, np.stack(changes), "readout")


def _mean_synapses(part: Part) -> tuple[list[float], Tensor]:
    """Signs of the kinds of synapses, and the mean weight of each branch's own of that kind, (sign, branch)."""
    weights, index = _synapses(part)
    number = part.num_excitatory
    if part.config.num_branch is None:
        return [1.0], weights.view(1, -1)
    kinds = [index >= 0] if number is None else [(index >= 0) & (index < number), index >= number]
    means = [(weights * kind).sum(-1) / kind.sum(-1).clamp(min=1) for kind in kinds]
    return [1.0, -1.0][: len(kinds)], torch.stack(means)


def _input_responses(part: Part, x: Tensor, moments: NDArray[np.int64], num_steps: int) -> Responses:
    layer = part.core
    watched = "v" if getattr(layer, "emits_spikes", False) and "v" in layer.state_type._fields else "readout"

    def watch(some: Tensor, state: Any) -> Tensor:
        if watched == "readout":
            return run(layer, some, state)[0]
        records = []
        for x_t in some.unbind(1):
            _, state = layer.step(x_t, state)
            records.append(getattr(state, watched))
        return torch.stack(records, 1)

    rows = _spaced(layer.input_size)
    change = _against_none(part, watch, x, x, moments, num_steps, rows, torch.ones(layer.input_size, device="cpu"))
    return Responses("input", rows.numpy(), (1.0,), np.ones((1, len(rows))), moments, change[None], watched)


def _against_none(
    part: Part,
    call: Callable[[Tensor, Any], Tensor],
    x: Tensor,
    arriving: Tensor,
    moments: NDArray[np.int64],
    num_steps: int,
    rows: Tensor,
    spike: Tensor,
) -> Array:
    """Mean difference that a spike makes, (row, time, output).

    Args:
        part: whose readout it is.
        call: gives outputs for a part of `arriving` and a state.
        x: what the layer works on.
        arriving: the same as `call` takes it, (1, time, ..., row).
        moments: steps in which there is a spike more.
        num_steps: for how many steps it is followed.
        rows: which of its columns get one, one after the other.
        spike: what is added there, (row,).
    """
    differences: list[Array] = []
    state, before = None, 0
    for moment in moments.tolist():
        if moment > before:
            _, state = run(part.core, x[:, before:moment], state)
        state, before = part.core.initial_state(1) if state is None else state, moment
        plain = arriving[:, moment : moment + num_steps]
        silent = readout(part, part.of_neuron(call(plain, state))).flatten(2).double()
        changes = []
        for some in rows.split(max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // plain.numel()))):
            one_more = plain.repeat(len(some), *[1] * (plain.ndim - 1))
            one_more[torch.arange(len(some), device="cpu"), 0, ..., some] += (
                spike[some].to(plain).view(-1, *[1] * (plain.ndim - 3))
            )
            states = type(state)(*(field.expand(len(some), *field.shape[1:]).contiguous() for field in state))
            y = readout(part, part.of_neuron(call(one_more, states))).flatten(2)
            changes.append((y.double() - silent).cpu().numpy())
        differences.append(np.concatenate(changes))
    return np.asarray(np.mean(differences, 0))


def _spaced(number: int) -> Tensor:
    """All of `number` rows, or evenly spaced ones of too many."""
    if number <= MAX_ROWS:
        return torch.arange(number, device="cpu")
    return torch.linspace(0, number - 1, MAX_ROWS, device="cpu").long()
