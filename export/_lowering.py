"""What each kind of layer computes: as ONNX operators and, for the check of a model, in torch.

A layer is lowered once for all forms; :class:`Graph` decides what a step is. Layers of hosts and of training are known
by their full name, so that none of them is imported (:mod:`elm_neuro.export._hosts`); any other registers itself with
:func:`register`.

Longer than most modules: each layer has its operators beside what they are checked against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, ALIFCell, ELMCell, ELMConfig, ELMState, SpikingELM
from elm_neuro.export._graph import ExportError, Graph, Scoped, Value
from elm_neuro.functional import ELMParameters, branch_matrix
from elm_neuro.functional._alif import ALIFParameters, ALIFState, alif_step
from elm_neuro.functional._elm import TANH_SCALE, TANH_SLOPE

SMALLEST_GAIN = 1e-6  # below it the memory is not scaled by its gain
Shape = tuple[int, ...]


class Trace(Scoped):
    """States of a run in torch, and how near its spikes came to their thresholds."""

    def __init__(self, states: dict[str, Tensor], *, stepwise: bool = False) -> None:
        self.states, self.margin = dict(states), torch.tensor(torch.inf)
        self.extras: dict[str, Tensor] = {}  # further outputs, as :meth:`Graph.extra` has them
        self.stepwise = stepwise  # every step is an end: a readout of the last step has one for each

    def get(self, name: str, *zeros: int, like: Tensor) -> Tensor:
        """The state, or zeros of this shape where the model does not carry it."""
        return self.states.get(self.scoped(name), like.new_zeros(zeros))

    def keep(self, **after: Tensor) -> None:
        """States after the last step; those that the model does not carry are left out."""
        for name, value in after.items():
            if self.scoped(name) in self.states:
                self.states[self.scoped(name)] = value

    def extra(self, name: str, value: Tensor) -> None:
        """A further output, (batch, time, ...), of the outermost layer only."""
        if not self._scope:
            self.extras[name] = value

    def fired(self, distance: Tensor) -> None:
        """Note the distances to threshold, (batch, time, ...)."""
        nearest = distance.detach().abs().flatten(2).amin(-1).double().cpu()
        self.margin = torch.minimum(self.margin, nearest)


class Lowering(Protocol):
    """How one kind of layer is exported. Sequences are (batch, time, ...) in torch."""

    def input_shape(self, module: Any) -> Shape | None:
        """Shape of its input without batch and time; None where any will do."""

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        """Add its operators to the graph."""

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        """The same in torch, from and to the states of `trace`."""


_REGISTRY: dict[str, Lowering] = {}


def register(kind: type | str, lowering: Lowering) -> None:
    """Make a kind of layer, and its subclasses, known to the export.

    Args:
        kind: the class, or its full name ``module.Class``, so that it need not be imported.
        lowering: how it is exported.
    """
    _REGISTRY[kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"] = lowering


def lowering_of(module: nn.Module, name: str = "") -> Lowering:
    """The lowering that is registered for the class of `module` or the nearest class above it.

    Raises:
        TypeError: there is none; the message says which submodule it is and what to do.
    """
    for kind in type(module).__mro__:
        found = _REGISTRY.get(f"{kind.__module__}.{kind.__qualname__}")
        if found is not None:
            return found
    where = f"{name} of the module" if name else "module"
    known = sorted({kind.rpartition(".")[2] for kind in _REGISTRY})
    raise TypeError(
        f"{where} must be of a kind that is registered ({', '.join(known)}), a subclass of one or a Sequential of them, got "
        f"{type(module).__name__}: elm_neuro.export.register makes another kind known"
    )


class Pointwise:
    """A layer that is one function of every number, or in evaluation none."""

    def __init__(self, activation: str | None) -> None:
        self.activation = activation

    def input_shape(self, module: nn.Module) -> Shape | None:
        return None

    def lower(self, graph: Graph, module: nn.Module, x: Value) -> Value:
        if module.training and isinstance(module, nn.modules.dropout._DropoutNd):
            raise ExportError(
                f"module must be in evaluation mode where it drops inputs, got {type(module).__name__} in training: call module.eval()"
            )
        return replace(x, name=graph.activated(x.name, self.activation))

    def run(self, module: nn.Module, x: Tensor, trace: Trace) -> Tensor:
        y: Tensor = module(x)
        return y


class _Linear:
    def input_shape(self, module: nn.Linear) -> Shape:
        return (module.in_features,)

    def lower(self, graph: Graph, module: nn.Linear, x: Value) -> Value:
        y = graph.linear("linear", x.name, module.weight, module.bias, matrix=x.time is None and len(x.shape) == 1)
        return replace(x, name=y, shape=(*x.shape[:-1], module.out_features))

    def run(self, module: nn.Linear, x: Tensor, trace: Trace) -> Tensor:
        y: Tensor = module(x)
        return y


class Chain:
    """Layers one after the other."""

    def __init__(self, parts: Callable[[Any], dict[str, Any]]) -> None:
        self.parts = parts

    def input_shape(self, module: nn.Module) -> Shape | None:
        for name, part in self.parts(module).items():
            shape = lowering_of(part, name).input_shape(part)
            if shape is not None:
                return shape
        return None

    def lower(self, graph: Graph, module: nn.Module, x: Value) -> Value:
        for name, part in self.parts(module).items():
            with graph.scope(name):
                lowering = lowering_of(part, graph.scoped("").rstrip("."))
                expected = lowering.input_shape(part)
                if expected is not None and x.shape[-1:] != expected[-1:]:
                    raise ExportError(
                        f"{graph.scoped('').rstrip('.')} must read what the layer before it gives, {x.shape}, got a layer for {expected}"
                    )
                x = lowering.lower(graph, part, x)
        return x

    def run(self, module: nn.Module, x: Tensor, trace: Trace) -> Tensor:
        for name, part in self.parts(module).items():
            with trace.scope(name):
                x = lowering_of(part).run(part, x, trace)
        return x


class Readout:
    """What is left of a sequence: its last step or the mean over its steps."""

    def __init__(self, kind: str) -> None:
        self.kind, self.training = kind, False


class _Readout:
    def input_shape(self, module: Readout) -> Shape | None:
        return None

    def lower(self, graph: Graph, module: Readout, x: Value) -> Value:
        return graph.last_step(x) if module.kind == "last" else graph.mean(x)

    def run(self, module: Readout, x: Tensor, trace: Trace) -> Tensor:
        if module.kind == "mean":
            return x.mean(1)
        return x if trace.stepwise else x[:, -1]


class _ELM:
    """ELM, Branch-ELM and populations, equations 1 to 4 of arXiv:2306.16922: all but the memory's loop is done for all steps at once."""

    def input_shape(self, module: ELM | ELMCell) -> Shape:
        return (module.config.input_size,)

    def lower(self, graph: Graph, module: ELM | ELMCell, x: Value) -> Value:
        cell = module if isinstance(module, ELMCell) else module.cell
        config, p = cell.config, cell.effective_parameters()
        graph.check(p.kappa_m)
        neurons = () if config.num_neuron is None else (config.num_neuron,)
        x = _neurons_first(graph, x, neurons)
        b, m = graph.state("b", *neurons, config.branches), graph.state("m", *neurons, config.num_memory)
        if neurons:
            b, m = (graph.add("Transpose", state, perm=[1, 0, 2]) for state in (b, m))
        # the constants of the scaled tanh sit in the weights before it and in the gain after it
        weights, biases = [*p.mlp_weight], [*p.mlp_bias]
        weights[-1], biases[-1] = TANH_SLOPE * weights[-1], TANH_SLOPE * biases[-1]
        gain, size = TANH_SCALE * p.gain, weights[0].shape[-2]
        # the loop then runs on memory / gain, which spares a product; a single number would be fused by onnxruntime, in
        # single precision
        scaled = gain.numel() > 1 and bool((gain > SMALLEST_GAIN).all())
        unit = gain if scaled else torch.ones_like(gain)
        from_memory = weights[0][..., config.branches :] * (p.kappa_m * unit).unsqueeze(-2)

        drive, b_after = _drive(graph, config, p, x, b, weights[0][..., : config.branches], biases[0])
        start = graph.add("Div", m, graph.per_unit("unit", unit)) if scaled else m

        def step(u_t: str, states: dict[str, str]) -> tuple[str, dict[str, str]]:
            hidden = graph.linear("core", states["m"], from_memory, u_t, matrix=not neurons)
            for i, (weight, bias) in enumerate(zip(weights[1:], biases[1:], strict=True), start=1):
                hidden = graph.activated(hidden, config.activation)
                hidden = graph.linear(f"mlp_{i}", hidden, weight, bias, matrix=not neurons)
            change = graph.add("Tanh", hidden)
            change = change if scaled else graph.add("Mul", change, graph.per_unit("gain", gain))
            kept = graph.add("Mul", states["m"], graph.per_unit("kappa_m", p.kappa_m))
            after = graph.add("Add", kept, change)
            return after, {"m": after}

        records, last = graph.loop(
            drive, {"m": start}, step, reads=(*neurons, None, size), gives=(*neurons, None, config.num_memory)
        )
        m_after = graph.add("Mul", last["m"], graph.per_unit("unit", unit)) if scaled else last["m"]
        y = graph.linear("w_y", records, p.w_y * unit.unsqueeze(-2), p.b_y, matrix=not neurons and graph.form == "step")
        out = Value(y, (config.output_size,), None if graph.form == "step" else "first")
        if neurons:
            b_after, m_after = (graph.add("Transpose", state, perm=[1, 0, 2]) for state in (b_after, m_after))
            lead = out.lead
            y = graph.add("Transpose", y, perm=[0, 2, 1, 3][: lead + 2] if lead == 2 else [1, 0, 2])
            out = replace(out, name=y, shape=(*neurons, config.output_size))
            if config.flatten_output:
                width = neurons[0] * config.output_size
                out = replace(out, name=graph.add("Reshape", y, graph.integers(*[0] * lead, width)), shape=(width,))
        graph.keep("b", b_after)
        graph.keep("m", m_after)
        return out

    def run(self, module: ELM | ELMCell, x: Tensor, trace: Trace) -> Tensor:
        state = ELMState(trace.states[trace.scoped("b")], trace.states[trace.scoped("m")])
        if isinstance(module, ELMCell):
            outputs = []
            for x_t in x.unbind(1):
                y_t, state = module(x_t, state)
                outputs.append(y_t)
            y = torch.stack(outputs, dim=1)
        elif module.config.batch_first:
            y, state = module(x, state)
        else:
            y, state = module(x.transpose(0, 1), state)
            y = y.transpose(0, 1)
        trace.keep(**state._asdict())
        return y


def _neurons_first(graph: Graph, x: Value, neurons: Shape) -> Value:
    """The input of a population with its axis of neurons before the batch; of a single neuron as it comes."""
    if x.time is None and graph.form != "step":
        raise ExportError("a layer with states must not stand behind a readout that leaves no time steps")
    if not neurons:
        return x
    if len(x.shape) == 2:
        order = [1, 0, 2] if x.time is None else [1, 2, 0, 3] if x.time == "after" else [0, 2, 1, 3]
        return replace(x, name=graph.add("Transpose", x.name, perm=order), time=None if x.time is None else "first")
    x = graph.time_first(x)
    name = x.name if x.time is None else graph.add("Unsqueeze", x.name, graph.integers(1))
    return replace(x, name=name)


def _drive(
    graph: Graph, config: ELMConfig, p: ELMParameters, x: Value, b: str, weight: Tensor, bias: Tensor
) -> tuple[str, str]:
    """What the branches give to the first layer, (time, [num_neuron,] batch, out), and the branch traces after the last step."""
    neurons = () if config.num_neuron is None else (config.num_neuron,)
    matrix = not neurons and graph.form == "step"

    if p.routing is None:
        drive = graph.add("Mul", x.name, graph.per_unit("w_s", p.w_s.squeeze(-1)))
    else:
        drive = graph.linear("w_s", x.name, branch_matrix(p.w_s, p.routing, config.input_size))
    driven = Value(drive, (*neurons, config.branches), x.time)
    plain = config.branch_activation is None and p.kappa_b.ndim == 0
    if plain and not neurons and graph.form != "step" and config.branches >= 2 * weight.shape[-2]:
        # filter and first layer commute: fewer channels to filter; the branches themselves are needed at the end only
        projected = replace(driven, name=graph.linear("u", drive, weight), shape=tuple(weight.shape[-2:-1]))
        filtered, _ = graph.leaky("trace", projected, p.kappa_b, graph.linear("u", b, weight))
        late, left = graph.discounted_sum("trace", driven, p.kappa_b)
        b_after = graph.add("Add", graph.add("Mul", b, left), late)
        return graph.add("Add", filtered.name, graph.constant("u.bias", bias)), b_after
    filtered, b_after = graph.leaky("trace", driven, p.kappa_b, b)
    active = graph.activated(filtered.name, config.branch_activation)
    return graph.linear("u", active, weight, bias, matrix=matrix), b_after


class _SpikingELM:
    """The readout of an ELM against a threshold, with or without reset."""

    def input_shape(self, module: SpikingELM) -> Shape:
        return (module.core.config.input_size,)

    def lower(self, graph: Graph, module: SpikingELM, x: Value) -> Value:
        output = module.output
        if output.stochastic:
            raise ExportError("spikes must be deterministic to be exported, got stochastic=True")
        y = lowering_of(module.core).lower(graph, module.core, x)
        factor = output.graded_factor
        return fire(graph, y, output.threshold, None if factor is None else factor, reset=output.reset, state="s")

    def run(self, module: SpikingELM, x: Tensor, trace: Trace) -> Tensor:
        y = lowering_of(module.core).run(module.core, x, trace)
        spikes, v, s = module.output(y, trace.get("s", y.shape[0], *y.shape[2:], like=y))
        trace.fired(v - module.output.threshold)
        trace.extra("v", v)
        if s.shape[1]:
            trace.keep(s=s[:, -1])
        return spikes  # type: ignore[no-any-return]


def fire(graph: Graph, y: Value, threshold: Tensor, factor: Tensor | None, *, reset: str, state: str) -> Value:
    """Spikes of a readout y, times the graded factor.

    Args:
        graph: under construction.
        y: the readout.
        threshold: a number or one per output.
        factor: None for one.
        reset: "none", "subtract" or "zero".
        state: what is carried for the reset: "s" the last spikes, "mem" the last readout.
    """
    limit = graph.constant("threshold", threshold)

    def above(v: str) -> str:
        return graph.add("Cast", graph.add("Greater", v, limit), to=graph.kind)

    if reset == "none":
        spikes, v = replace(y, name=above(y.name)), y
    else:
        y = graph.time_first(y)
        before = graph.state(state, *y.shape, spikes=state == "s")

        def step(y_t: str, states: dict[str, str]) -> tuple[str, dict[str, str]]:
            fired = states[state] if state == "s" else above(states[state])
            if reset == "subtract":
                v_t = graph.add("Sub", y_t, graph.add("Mul", fired, limit))
            else:
                v_t = graph.add(
                    "Mul", y_t, graph.add("Sub", graph.constant("one", torch.ones((), dtype=graph.dtype)), fired)
                )
            return v_t, {state: above(v_t) if state == "s" else v_t}

        name, after = graph.loop(y.name, {state: before}, step, reads=(None, *y.shape), gives=(None, *y.shape))
        v = replace(y, name=name)
        spikes = replace(y, name=above(name))
        graph.keep(state, after[state])
    graph.extra("v", v)
    return (
        spikes
        if factor is None
        else replace(spikes, name=graph.add("Mul", spikes.name, graph.constant("graded_factor", factor)))
    )


class _ALIF:
    """LIF and adaptive LIF neurons, as :func:`elm_neuro.functional.alif_step`."""

    def input_shape(self, module: ALIF | ALIFCell) -> Shape:
        return (module.input_size,)

    def lower(self, graph: Graph, module: ALIF | ALIFCell, x: Value) -> Value:
        cell = module if isinstance(module, ALIFCell) else module.cell
        p, width, past = cell.effective_parameters(), cell.output_size, cell.latency_steps + 1
        graph.check(p.beta)
        if x.time is None and graph.form != "step":
            raise ExportError("a layer with states must not stand behind a readout that leaves no time steps")
        x = graph.time_first(x)
        current = graph.linear("w_in", x.name, cell.weight, cell.bias, matrix=graph.form == "step")
        states = {"v": graph.state("v", width)}
        if p.b is not None:
            states["a"] = graph.state("a", width)
        if p.w_rec is not None or past > 1:
            states["s"] = graph.state("s", past, width, spikes=True)
        one = graph.constant("one", torch.ones((), dtype=graph.dtype))

        def step(i_t: str, before: dict[str, str]) -> tuple[str, dict[str, str]]:
            if p.w_rec is not None:
                arriving = graph.add("Gather", before["s"], graph.number(0), axis=1)
                i_t = graph.linear("w_rec", arriving, p.w_rec, i_t, matrix=True)
            if past > 1:
                recent = graph.add("Slice", before["s"], graph.integers(1), graph.integers(past), graph.integers(1))
                i_t = graph.add("Mul", i_t, graph.add("Sub", one, graph.largest(recent, axis=1)))
            v = graph.add("Add", graph.add("Mul", before["v"], graph.constant("beta", p.beta)), i_t)
            limit = (
                one if p.b is None else graph.add("Add", graph.add("Mul", before["a"], graph.constant("b", p.b)), one)
            )
            spikes = graph.add("Cast", graph.add("Greater", v, limit), to=graph.kind)
            after = {"v": graph.add("Mul", v, graph.add("Sub", one, spikes))}
            if p.b is not None:
                after["a"] = graph.add("Add", graph.add("Mul", before["a"], graph.constant("p", p.p)), spikes)
            if "s" in before:
                newest = graph.add("Unsqueeze", spikes, graph.integers(1))
                after["s"] = newest if past == 1 else graph.add("Concat", recent, newest, axis=1)
            return spikes, after

        spikes, after = graph.loop(current, states, step, reads=(None, width), gives=(None, width))
        for name, value in after.items():
            graph.keep(name, value)
        return replace(x, name=spikes, shape=(width,))

    def run(self, module: ALIF | ALIFCell, x: Tensor, trace: Trace) -> Tensor:
        cell = module if isinstance(module, ALIFCell) else module.cell
        p, zeros = cell.effective_parameters(), cell.initial_state(x.shape[0])
        state = ALIFState(
            *(trace.get(name, *part.shape, like=part) for name, part in zip(zeros._fields, zeros, strict=True))
        )
        currents, distances = nn.functional.linear(x, cell.weight, cell.bias), []
        spikes = []
        for current in currents.unbind(1):
            distances.append(_distance(current, state, p))
            s, state = alif_step(current, state, p)
            spikes.append(s)
        trace.fired(torch.stack(distances, dim=1))
        trace.keep(**state._asdict())
        return torch.stack(spikes, dim=1)


def _distance(current: Tensor, state: ALIFState, p: ALIFParameters) -> Tensor:
    """Distance to threshold in a step that :func:`alif_step` is about to take."""
    seen: list[Tensor] = []

    def note(distance: Tensor) -> Tensor:
        seen.append(distance)
        return (distance > 0).to(distance.dtype)

    alif_step(current, state, p._replace(surrogate=note))
    return seen[0]


_KINDS: list[tuple[tuple[type | str, ...], Lowering]] = [
    ((ELM, ELMCell), _ELM()),
    ((ALIF, ALIFCell), _ALIF()),
    ((SpikingELM,), _SpikingELM()),
    ((Readout,), _Readout()),
    ((nn.Sequential,), Chain(lambda module: dict(module.named_children()))),
    ((nn.Linear,), _Linear()),
    ((nn.ReLU,), Pointwise("relu")),
    ((nn.SiLU,), Pointwise("silu")),
    ((nn.Tanh,), Pointwise("tanh")),
    ((nn.Sigmoid,), Pointwise("sigmoid")),
    ((nn.Identity, nn.modules.dropout._DropoutNd), Pointwise(None)),
]
for _kinds, _lowering in _KINDS:
    for _kind in _kinds:
        register(_kind, _lowering)
