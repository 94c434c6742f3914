"""What the faces of all hosts do alike with the layer that they wrap."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elm_neuro.nn import check_layer
from elm_neuro.nn._layer import AnyLayer


def checked_core(core: AnyLayer, *, sequences: bool) -> AnyLayer:
    """`core` where it is a layer that a face can wrap.

    Raises:
        TypeError: it lacks a part of the protocol :class:`elm_neuro.nn.Layer`.
        ValueError: the face takes whole sequences and it is a cell.
    """
    check_layer(core)
    if sequences and getattr(core, "is_cell", False):
        raise ValueError(f"core must take sequences, got {type(core).__name__}, which takes one step: use Cell")
    return core


def spikes_by_itself(core: AnyLayer) -> bool:
    """Whether the layer's output is spikes already, so that a face puts no threshold behind it."""
    return bool(getattr(core, "emits_spikes", False))


def state_sizes(core: AnyLayer) -> tuple[tuple[int, ...], ...]:
    """Shapes of one sample's state."""
    parts: tuple[Tensor, ...] = core.initial_state(1)
    return tuple(tuple(part.shape[1:]) for part in parts)


def split_keywords(options: Any, kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are keys of the ``TypedDict`` `kind`, and the others."""
    names = kind.__annotations__
    mine = {name: value for name, value in options.items() if name in names}
    return mine, {name: value for name, value in options.items() if name not in names}
