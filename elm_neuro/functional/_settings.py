"""Frozen dataclasses that are declared in a third of the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

__all__ = ["settings"]

if TYPE_CHECKING:
    from dataclasses import dataclass as settings  # to a type checker they are what they are to everyone
else:

    def settings(*, frozen: bool, kw_only: bool = False) -> Callable[[type[Any]], type[Any]]:
        """``dataclass(frozen=True, kw_only=...)``, of which ``import elm_neuro`` declares a dozen.

        For each class ``dataclass`` writes six methods and compiles them, a millisecond for a class of many fields.
        Only `__init__` has to be; the others are the same for all.

        >>> @settings(frozen=True)
        ... class Box:
        ...     width: float
        ...     height: float = 2.0
        >>> Box(3.0), dataclasses.replace(Box(1.0), width=3.0) == Box(3.0)
        (Box(width=3.0, height=2.0), True)
        >>> Box(3.0).width = 4.0
        Traceback (most recent call last):
        dataclasses.FrozenInstanceError: cannot assign to field 'width'
        """
        if not frozen:
            raise ValueError(f"frozen must be True, got {frozen}")
        return lambda kind: _frozen(dataclasses.dataclass(kind, eq=False, repr=False, kw_only=kw_only))


def _frozen(kind: Any) -> Any:
    """Give a dataclass the methods of a frozen one."""
    names = tuple([field.name for field in dataclasses.fields(kind)])

    def values(self: Any) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in names])

    def __eq__(self: Any, other: object) -> Any:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    def __repr__(self: Any) -> str:
        shown = [f"{name}={value!r}" for name, value in zip(names, values(self), strict=True)]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __setattr__(self: Any, name: str, value: object) -> None:
        if name in vars(self) if name in names else type(self) is kind:  # __init__ sets each field, once
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(kind, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if name in names or type(self) is kind:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(kind, self).__delattr__(name)

    for method in (__eq__, __hash__, __repr__, __setattr__, __delattr__):
        method.__qualname__ = f"{kind.__qualname__}.{method.__name__}"
        setattr(kind, method.__name__, method)
    kind.__dataclass_params__.frozen = True  # to who asks: dataclasses that derive from it, torch's compiler
    return kind
