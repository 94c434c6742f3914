"""The figures of one layer, made of its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from elm_neuro import plotting
from elm_neuro.checkpoints import neuronio_head
from elm_neuro.events import SpikeEvents
from elm_neuro.look._input import Drive
from elm_neuro.look._numbers import Array, Responses
from elm_neuro.look._parts import NUM_NEURONIO_INPUTS, Part, frames, output_names, run
from elm_neuro.plotting import BLUE, GREEN, INK, ORANGE, PURPLE, VERMILION, Record

MOST_NAMED = 4  # outputs that have names in a figure
MOST_RECORDED = 1 << 26  # numbers of a record; beyond, synapses are left out
MOST_PANELS = 2  # outputs whose response is shown one by one
QUIET, FEWEST_SHOWN = 0.05, 20  # share of the largest change, and steps
STATES = {  # parts of a state by what they are called in a figure
    "b": ("branches", ORANGE),
    "m": ("memory", INK),
    "v": ("membranes", GREEN),
    "a": ("adaptation of the threshold", PURPLE),
}


class Shown(NamedTuple):
    """A figure and what is said of it."""

    name: str  # of its file
    figure: Figure
    title: str
    caption: str


def time_constants_figure(part: Part, times: dict[str, Array]) -> Shown | None:
    """Of a layer that has time constants."""
    if not any(np.isfinite(values).any() and (values > 0).any() for values in times.values()):
        return None
    bounds = getattr(part.config, "bounds", None)
    figure = plotting.time_constants(times, bounds=bounds if part.has_memory else None, readout=_readout_weights(part))
    caption = "; ".join(_range(name, values) for name, values in times.items()) + "."
    if part.has_memory:
        learned = getattr(part.config, "learn_tau_m", None)
        trained = "are among what is trained" if learned else "are not trained"
        caption += f" The memory's time constants {trained}, their bounds are dotted."
    if part.is_elm:
        caption += " b: the weight of each unit in the readout, at its time constant."
    return Shown("time_constants", figure, "Time constants", caption)


def _range(name: str, values: Array) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    if values.size == 1:
        return f"{name} is {low:.4g} ms"
    return (
        f"{name}: {values.size} of {low:.4g} ms"
        if low == high
        else f"{name}: {values.size} from {low:.4g} to {high:.4g} ms"
    )


def _readout_weights(part: Part) -> dict[str, Any] | None:
    weights = getattr(getattr(part.cell, "w_y", None), "weight", None)
    if not part.is_elm or not isinstance(weights, Tensor):
        return None
    weights = weights[part.neuron] if part.num_neuron is not None else weights
    if part.is_neuronio:
        weights = torch.stack((10.0 * weights[1], weights[0]))
    names = ["voltage (mV)", "logit of a spike"] if part.is_neuronio else output_names(part)
    return dict(zip(names, weights.detach().cpu(), strict=True))


def fields_figure(part: Part, fields: Array | None) -> Shown | None:
    """Of a layer that has weights on its inputs."""
    if fields is None:
        return None
    number, of_neuronio = part.num_excitatory, part.core.input_size == NUM_NEURONIO_INPUTS
    if part.is_network:
        inputs = part.core.input_size
        figure = plotting.weight_fields(
            {"synapses": fields}, row="neuron", column=f"input; from {inputs} on a neuron of the layer", signed=True
        )
        caption = (
            f"Summed weights of each neuron's synapses on each of {inputs} inputs and, behind them, on the activity of "
            "each neuron one step before; white is no synapse, or a sum of 0."
        )
        return Shown("receptive_fields", figure, "Receptive fields", caption)
    if not part.is_elm:
        figure = plotting.weight_fields({"weights": fields}, row="neuron", signed=True)
        return Shown("weights", figure, "Weights", "Weight of each input in each neuron; white is 0.")
    if number is None:
        panels = {"synapses" if len(fields) > 1 else "weight of each input": fields}
    else:
        panels = {"excitatory synapses": fields[:, :number], "inhibitory synapses": fields[:, number:]}
    figure = plotting.weight_fields(panels, column="segment of the cell" if of_neuronio and number else "input")
    routing = part.config.routing or "none: every input is read once"
    silent = int((fields.sum(1) == 0).sum()) if len(fields) > 1 else 0
    caption = (
        f"Summed weights of the synapses of each branch on each input (routing {routing}); white is no synapse, or one "
        "of weight 0."
    )
    if len(fields) == 1:
        caption = "Weight of the synapse of each input; every input is its own branch."
    if silent:
        caption += f" {silent} of {len(fields)} branches read nothing."
    return Shown("receptive_fields", figure, "Receptive fields", caption)


def responses_figure(part: Part, responses: Responses, drive: Drive) -> Shown:
    """Of any layer: what one spike more changes."""
    panels: dict[str, Array] = {}
    kinds = [", excitatory spike", ", inhibitory spike"] if len(responses.signs) > 1 else [""]
    names, outputs = output_names(part), responses.change.shape[-1]
    few = outputs <= MOST_PANELS and responses.watched == "readout"
    if few:
        units = ["change (mV)", "change of the logit"] if part.is_neuronio else [f"change of {name}" for name in names]
        for at, (name, unit) in enumerate(zip(names, units, strict=True)):
            for kind, change in zip(kinds, responses.change, strict=True):
                panels[f"{name}{kind}|{unit}"] = change[..., at]
    else:
        what = "outputs" if responses.watched == "readout" else "membranes"
        for kind, size in zip(kinds, responses.size, strict=True):
            panels[f"{outputs} {what}{kind}|root mean square change"] = size
    shown = _until_quiet(panels)
    figure = plotting.spike_responses(
        shown, delta_t=part.core.delta_t, rows=responses.rows, kind=responses.kind, signed=few
    )
    where = (
        "at a synapse of the branch's mean weight, on no other branch"
        if responses.kind == "branch"
        else "on that input"
    )
    caption = (
        f"What one more spike {where}, changes against the same time without it, while the neuron works: mean over "
        f"{len(responses.moments)} moments of {drive.what}."
    )
    if responses.watched != "readout":
        caption += " The outputs are spikes, so that the membranes are shown."
    if responses.kind == "input" and len(responses.rows) < part.core.input_size:
        caption += f" {len(responses.rows)} of {part.core.input_size} inputs, evenly spaced."
    return Shown("spike_responses", figure, "Response to one spike", caption)


def _until_quiet(panels: dict[str, Array]) -> dict[str, Array]:
    """Panels cut where nothing comes any more that is a twentieth of the largest change of that panel."""
    last = 0
    for picture in panels.values():
        loud = np.flatnonzero(np.abs(picture).max(0) > QUIET * np.abs(picture).max())
        last = max(last, int(loud[-1]) if loud.size else 0)
    return {name: picture[:, : max(FEWEST_SHOWN, int(1.3 * last))] for name, picture in panels.items()}


@torch.no_grad()
def recordings_figure(part: Part, x: SpikeEvents | Tensor, drive: Drive) -> Shown:
    """Of any layer: one sequence on its way through it."""
    core = part.core
    if part.is_network:
        records = _network_records(part, x)
    else:
        records = _elm_records(part, x) if part.is_elm and hasattr(core, "traces") else _state_records(part, x)
    y = part.of_neuron(run(core, x)[0])[0].flatten(1).cpu()
    records += _output_records(part, y, drive)
    if part.layer is not core and getattr(part.layer, "emits_spikes", False):
        spikes = part.of_neuron(run(part.layer, x)[0])[0].flatten(1).cpu()
        records.append(Record(f"output spikes: {int(spikes.sum())}", "output", spikes, "raster", VERMILION))
    inputs = frames(core, x)[0].flatten(1) if isinstance(x, Tensor) else x.to_dense()[0]
    figure = plotting.recordings(inputs.cpu(), records, delta_t=core.delta_t, num_excitatory=part.num_excitatory)
    return Shown("recordings", figure, "At work", f"Driven by {drive.what}; the state is zero at the start.")


def _elm_records(part: Part, x: SpikeEvents | Tensor) -> list[Record]:
    core, records = part.core, []
    steps = x.num_steps if isinstance(x, SpikeEvents) else x.shape[1]
    if steps * core.w_s.numel() > MOST_RECORDED:
        return _state_records(part, x)
    first = x.transpose(0, 1) if isinstance(x, Tensor) and not getattr(core.config, "batch_first", True) else x
    synapse, branch, memory, _ = core.traces(first)
    synapse = synapse[:, :, part.neuron] if part.num_neuron is not None else synapse
    synapse, branch, memory = synapse[0].flatten(1), part.of_neuron(branch)[0], part.of_neuron(memory)[0]
    if synapse.shape[1] != branch.shape[1]:
        records.append(Record(_most("synapses", synapse), "trace", synapse, colour=GREEN))
    words, colour = ("branches", ORANGE) if records else ("synapses, each its own branch", GREEN)
    records.append(Record(_most(words, branch), "trace", branch, colour=colour))
    return [*records, _memory(part, memory)]


def _state_records(part: Part, x: SpikeEvents | Tensor) -> list[Record]:
    """The parts of the state after each step that have one number a unit."""
    core, kept = part.core, dict[str, list[Tensor]]()
    for state in _states(core, x):
        for name, field in zip(state._fields, state, strict=True):
            flat = part.of_neuron(field.unsqueeze(1))[0] if part.num_neuron is not None else field
            if flat.ndim == 2:
                kept.setdefault(name, []).append(flat[0].cpu())
    records = []
    for name, fields in kept.items():
        values = torch.stack(fields)
        words, colour = STATES.get(name, (f"state {name}", GREEN))
        if name == "m" and part.is_elm:
            records.append(_memory(part, values))
        elif bool((values != values[0]).any()):  # what never moves is left out
            records.append(Record(_most(words, values), name, values, colour=colour))
    return records


def _network_records(part: Part, x: SpikeEvents | Tensor) -> list[Record]:
    """Branches of all neurons, the memory of the one in which it changes most, and what the high pass takes away."""
    kept = [(state.b[0].flatten().cpu(), state.m[0].cpu(), state.r[0].cpu()) for state in _states(part.core, x)]
    branches, memory, mean = (torch.stack(values) for values in zip(*kept, strict=True))
    neuron = int(memory.var(0, correction=0).sum(-1).argmax())
    of_neuron = Record(
        f"memory of neuron {neuron}, where it changes most", "memory", memory[:, neuron], "memory",
        tau=part.core.tau_m[neuron].detach().cpu(),
    )  # fmt: skip
    records = []
    if bool((branches != branches[0]).any()):  # branches without a trace keep nothing
        words, colour = STATES["b"]
        records.append(Record(_most(words, branches), "trace", branches, colour=colour))
    records.append(of_neuron)
    if part.config.tau_high_pass is not None:
        records.append(Record(_most("running mean that is taken away", mean), "activity", mean, colour=PURPLE))
    return records


def _states(core: Any, x: SpikeEvents | Tensor) -> Iterator[Any]:
    """After each step."""
    state = core.initial_state(1)
    for x_t in frames(core, x).unbind(1):
        _, state = core.step(x_t, state)
        yield state


def _memory(part: Part, memory: Tensor) -> Record:
    tau = part.core.tau_m.detach().cpu()
    tau = tau[part.neuron] if part.num_neuron is not None else tau
    units = memory.shape[1]
    return Record(f"memory: {units} unit{'s' * (units > 1)}", "memory", memory, "memory", tau=tau)


def _most(words: str, values: Tensor) -> str:
    number = values.shape[1]
    shown = min(number, plotting.MOST_LINES)
    return f"{words}: the {shown} that change most of {number}" if number > shown else f"{words}: {number}"


def _output_records(part: Part, y: Tensor, drive: Drive) -> list[Record]:
    if part.is_neuronio:
        predicted = neuronio_head(y.double())
        soma = Record(
            "soma", "voltage (mV)", predicted.soma_mv[:, None], colour=VERMILION, names=["predicted voltage"],
            truth=None if drive.soma_mv is None else np.minimum(drive.soma_mv, -55.0),
        )  # fmt: skip
        fired = Record(
            "spikes", "probability", predicted.spike_probability[:, None], "spikes of a cell", BLUE,
            truth=None if drive.spikes is None else drive.spikes.astype(np.float64),
            names=["predicted spike probability"],
        )  # fmt: skip
        return [soma, fired]
    if getattr(part.core, "emits_spikes", False):
        return [Record(f"output spikes: {int(y.sum())}", "neuron", y, "raster", VERMILION)]
    number = y.shape[1]
    if number <= MOST_NAMED:
        return [Record("readout", "output", y, colour=VERMILION, names=output_names(part)[:number])]
    return [Record(_most("readout", y), "output", y, colour=VERMILION)]
