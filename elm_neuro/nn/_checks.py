"""What the shells refuse: tensors and states that do not fit their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple[Tensor, ...])
NUMBERS = {2: "two", 3: "three", 4: "four"}


def check_tensor(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse a tensor of another dtype or device than the parameter `like`."""
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the parameters, got {tensor.device}")
    if tensor.dtype != like.dtype and not (
        tensor.is_floating_point() and torch.is_autocast_enabled(tensor.device.type)
    ):
        raise TypeError(f"{name} must have dtype {like.dtype} like the parameters, got {tensor.dtype}")


def checked_state(kind: type[State], state: State, shapes: Iterable[tuple[int, ...]], like: Tensor) -> State:
    """`state` as a `kind`, where its tensors have these shapes and fit the parameter `like`.

    Raises:
        TypeError: `state` is not as many tensors as a `kind` has, or they have another dtype.
        ValueError: a tensor has the wrong shape or device.
    """
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]  # every state is a named tuple
    if not isinstance(state, tuple) or len(state) != len(names) or not all(isinstance(part, Tensor) for part in state):
        article = "an" if kind.__name__[0] in "AE" else "a"
        raise TypeError(
            f"state must be {article} {kind.__name__} of {NUMBERS[len(names)]} tensors, got {type(state).__name__}"
        )
    for name, part, shape in zip(names, state, shapes, strict=True):
        if part.shape != shape:
            raise ValueError(f"state.{name} must have shape {shape}, got {tuple(part.shape)}")
        check_tensor(f"state.{name}", part, like)
    return kind(*state)
