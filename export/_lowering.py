"""What the export asks of a kind of layer, and which kinds it knows.

A lowering says once, for all forms, what a layer computes as ONNX operators; the check of a model calls the layer
itself. :mod:`elm_neuro.export.lowerings` holds one file a kind; any other layer is made known by :func:`register`.
Layers of hosts and of training are known by their full name, so that none of them is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from elm_neuro.export._graph import Graph
from elm_neuro.export._nodes import ExportError, Scoped, Value

Shape = tuple[int, ...]


class Watch:
    """How far above its threshold each layer inside a module is, step by step, by the layer's place in it."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Tensor]] = {}  # of each (batch, all of a step)
        self._now: dict[str, list[Tensor]] = {}

    def on(self, place: str, surrogate: Any) -> Any:
        """The surrogate of a part there, noting what it is called on."""

        def call(distance: Tensor) -> Tensor:
            self._now.setdefault(place, []).append(distance.detach().flatten(1))
            spikes: Tensor = surrogate(distance)
            return spikes

        return call

    def step(self) -> None:
        """All since the last call was one step."""
        for place, distances in self._now.items():
            self.steps.setdefault(place, []).append(torch.cat(distances, dim=1))
        self._now = {}


class Trace(Scoped):
    """States of a run in torch, and how near its spikes came to their thresholds.

    Args:
        states: of the model before the first step, by their names in it.
        stepwise: every step is an end: a readout of the last step has one for each.
        watched: the run is there for the distances of its spikes to their thresholds.
    """

    def __init__(self, states: dict[str, Tensor], *, stepwise: bool = False, watched: bool = False) -> None:
        self.states, self.stepwise, self.watched = dict(states), stepwise, watched
        self.fresh = not any(bool(state.any()) for state in states.values())  # every state is zero
        self.margin = torch.tensor(torch.inf)  # the least distance to a threshold so far, of (batch, time)
        self.margins: dict[str, Tensor] = {}  # the same for what was done before a value was found
        self.num_spikes: dict[str, int] = {}  # of each spiking layer
        self.extras: dict[str, Tensor] = {}  # further outputs, as :meth:`Graph.extra` has them

    def get(self, name: str, *zeros: int, like: Tensor) -> Tensor:
        """The state, or zeros of this shape where the model does not carry it."""
        return self.states.get(self.scoped(name), like.new_zeros(zeros))

    def before(self, zeros: Any) -> Any:
        """A state of the module's own type: what the model carries of it, and zeros."""
        fields = {name: self.get(name, *part.shape, like=part) for name, part in zeros._asdict().items()}
        return type(zeros)(**fields)

    def keep(self, *, margin: Tensor | None = None, **after: Tensor) -> None:
        """States after the last step; those that the model does not carry are left out.

        Args:
            margin: the least distance to a threshold of the spikes that they depend on; by default of all so far.
            after: by name.
        """
        for name, value in after.items():
            if self.scoped(name) in self.states:
                self.states[self.scoped(name)] = value
                self.margins[f"{self.scoped(name)}_next"] = self.margin if margin is None else margin

    def extra(self, name: str, value: Tensor, *, margin: Tensor) -> None:
        """A further output, (batch, time, ...), of the outermost layer only."""
        if not self._scope:
            self.extras[name], self.margins[name] = value, margin

    def fired(self, distance: Tensor) -> None:
        """Note how far above its threshold each readout is, (batch, time, ...).

        One that meets it exactly in float64, as a sum of spikes does, meets it in float32 as well: rounding decides
        nothing there.
        """
        if distance.numel():
            away = distance.detach().abs()
            if away.dtype == torch.float64:
                away = away.masked_fill(away == 0.0, torch.finfo(away.dtype).max)  # seen, and far from any rounding
            self.margin = torch.minimum(self.margin, away.flatten(2).amin(-1).double().cpu())
        name = self.scoped("").rstrip(".")
        self.num_spikes[name] = self.num_spikes.get(name, 0) + int((distance > 0).sum())

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[Watch]:
        """Note what the surrogates inside `module`, its attributes of that name, are called on."""
        watch = Watch()
        owners = {name: part for name, part in module.named_modules() if callable(getattr(part, "surrogate", None))}
        before = [vars(part).copy() for part in owners.values()]
        for name, part in owners.items():  # past setattr, which keeps what was a module a module
            vars(part)["surrogate"] = watch.on(name.rpartition(".")[0], part.surrogate)
        try:
            yield watch
        finally:
            for part, attributes in zip(owners.values(), before, strict=True):
                del vars(part)["surrogate"]
                vars(part).update({name: value for name, value in attributes.items() if name == "surrogate"})
        for place, distances in watch.steps.items():
            with self.scope(place):
                self.fired(torch.stack(distances, dim=1))


class Lowering:
    """How one kind of layer is exported: subclass it and write :meth:`lower`; the rest follows from the protocol of a
    layer (:mod:`elm_neuro.nn`), where the layer keeps it and its states have the names of its `state_type`.

    >>> from dataclasses import replace
    >>> class Halved(Lowering):
    ...     def lower(self, graph, module, x):
    ...         return replace(x, name=graph.add("Mul", x.name, graph.constant("half", torch.tensor(0.5))))
    """

    def input_shape(self, module: Any) -> Shape | None:
        """Shape of its input without batch and time; None where any will do."""
        return (module.input_size,)

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        """Add its operators to the graph."""
        raise NotImplementedError

    def call(self, module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The module itself over a sequence, (batch, time, ...)."""
        if not getattr(module, "is_cell", False):
            y, after = module(x, state)
            return y, after
        outputs = []
        for x_t in x.unbind(1):
            y_t, state = module(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, dim=1), state

    def before(self, module: Any, batch: int, trace: Trace) -> Any:
        """The module's state before the first step: what the model carries of it, and zeros."""
        return trace.before(module.initial_state(batch))

    def keep(self, module: Any, after: Any, trace: Trace, *, margin: Tensor | None = None) -> None:
        """What the model carries of the module's state after the last step; `margin` as :meth:`Trace.keep` has it."""
        trace.keep(margin=margin, **after._asdict())

    def extras(self, module: Any, states: list[Any], trace: Trace, *, margin: Tensor) -> None:
        """Further outputs of :meth:`lower`, from the module's states after each step."""

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        """The module itself in torch over a sequence, from and to the states of `trace`."""
        state = self.before(module, x.shape[0], trace)
        if trace.watched:
            y, states = self.step_by_step(module, x, state, trace)
            state = states[-1]
        else:
            y, state = self.call(module, x, state)
        self.keep(module, state, trace)
        return y

    def describe(self, module: Any) -> dict[str, Any]:
        """What the model's metadata say of the layer: plain numbers, strings and lists; times in ms."""
        return {"kind": type(module).__name__, "config": module.config.to_dict()}

    def step_by_step(self, module: Any, x: Tensor, state: Any, trace: Trace) -> tuple[Tensor, list[Any]]:
        """What the layer gives, its states after each step, and in `trace` how near its spikes were."""
        outputs, states = [], []
        with trace.watching(module) as watch:
            for x_t in x.split(1, dim=1):
                y_t, state = self.call(module, x_t, state)
                outputs.append(y_t)
                states.append(state)
                watch.step()
        return torch.cat(outputs, dim=1), states


_REGISTRY: dict[str, Lowering] = {}


def register(kind: type | str, lowering: Lowering) -> None:
    """Make a kind of layer known to the export, and its subclasses that keep its ``forward``.

    Args:
        kind: the class, or its full name ``module.Class``, so that it need not be imported.
        lowering: how it is exported; nothing else is needed for it to stand in networks and in wrappers.
    """
    _REGISTRY[kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"] = lowering


def registered() -> list[str]:
    """Full names of the classes that are known."""
    return sorted(_REGISTRY)


def nearest(kind: type) -> tuple[type, Lowering] | None:
    """The class that is known among `kind` and those above it, and how it is exported."""
    for above in kind.__mro__:
        lowering = _REGISTRY.get(f"{above.__module__}.{above.__qualname__}")
        if lowering is not None:
            return above, lowering
    return None


def lowering_of(module: nn.Module, name: str = "") -> Lowering:
    """The lowering that is registered for the class of `module` or the nearest class above it.

    Raises:
        TypeError: there is none; the message says which submodule it is and what to do.
        ExportError: what the module computes is not what that class computes: see :func:`check_plain`.
    """
    where = f"{name} of the module" if name else "module"
    found = nearest(type(module))
    if found is not None:
        check_plain(module, found[0], where)
        return found[1]
    known = sorted({kind.rpartition(".")[2].lstrip("_") for kind in _REGISTRY})
    raise TypeError(
        f"{where} must be of a kind that is registered ({', '.join(known)}), a subclass of one or a Sequential of "
        f"them, got {type(module).__name__}: elm_neuro.export.register makes another kind known"
    )


def num_neuron(module: Any) -> int | None:
    """Neurons of a population, inside of a face or behind a threshold too; None for a single one."""
    while hasattr(module, "core"):
        module = module.core
    found: int | None = getattr(getattr(module, "config", None), "num_neuron", None)
    return found


def check_plain(module: nn.Module, kind: type, where: str) -> None:
    """Refuse a module that does more than its class: nothing of that would be in the model.

    Raises:
        ExportError: `module` is not of this kind, has a ``forward`` of its own, or hooks around it, here or inside.
    """
    if not isinstance(module, kind):
        raise ExportError(f"{where} must be of the class {kind.__name__} to be exported, got {type(module).__name__}")
    own: Any = vars(module).get("forward", getattr(type(module), "forward", None))
    if own is not getattr(kind, "forward", None):
        raise ExportError(
            f"{where} must compute what {kind.__name__} computes to be exported, got a {type(module).__name__} with a "
            "forward of its own: elm_neuro.export.register makes its class known"
        )
    for name, part in module.named_modules():
        if hooks := [hook for hook in _hooks(part) if not isinstance(hook, WEIGHT_HOOKS)]:
            place = f"{name} in {where}" if name else where
            words = ", ".join(sorted(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks))
            raise ExportError(
                f"{place} must have no hooks around its forward to be exported, which cannot see what they do, got "
                f"{words}: remove them"
            )


def _hooks(module: nn.Module) -> Iterable[Any]:
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()
    yield from torch_module._global_forward_hooks.values()
    yield from torch_module._global_forward_pre_hooks.values()


# torch's hooks that write a weight before each call: pruning, and the old weight_norm and spectral_norm
WEIGHT_HOOKS = (BasePruningMethod, WeightNorm, SpectralNorm)


def write_weights(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Have torch's hooks write their weights, as a call of the module would: parts, names and what was there."""
    before: list[tuple[nn.Module, str, Any]] = []
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, WEIGHT_HOOKS):
                name = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
                before.append((part, name, getattr(part, name)))
                with torch.no_grad():
                    hook(part, ())
    return before


@contextmanager
def written_weights(module: nn.Module) -> Iterator[None]:
    """Within, weights that torch's hooks write before each call are those of the next call.

    A pruned or normed layer keeps what its last call had: after ``load_state_dict`` that is the weight of before.

    Raises:
        ExportError: a spectral norm in training, whose weight is another one in every call.
    """
    for name, part in module.named_modules():
        moves = isinstance(part, _SpectralNorm) or any(
            isinstance(h, SpectralNorm) for h in part._forward_pre_hooks.values()
        )
        if moves and part.training:
            raise ExportError(
                f"a spectral norm gives another weight in every call in training, got one in {name or 'module'}: call "
                "module.eval()"
            )
    before = write_weights(module)
    try:
        yield
    finally:
        for part, name, weight in reversed(before):
            setattr(part, name, weight)
