"""What a backend is, and an operator: one computation with the backends that can run it, in the order in which "auto"
asks them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from torch import Tensor


class Backend(ABC):
    """One way to run an operator: the same numbers as every other, forward and backward.

    A backend derives from its operator's class (:class:`elm_neuro.backends.ELMBackend`,
    :class:`elm_neuro.backends.ALIFBackend`), which adds `scan` and `refusal`; it has no state of its own.
    """

    # made of torch's own operations throughout: then torch differentiates it as often as one likes, and its transforms
    # and forward mode run through it
    differentiates: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What ``backend=`` is given to choose it."""

    @property
    @abstractmethod
    def about(self) -> str:
        """What it is for, in a line."""

    def missing(self) -> str | None:
        """Why it cannot run in this installation; None where it can."""
        return None

    def refusal_of(self, parameter: Tensor) -> str | None:
        """Why it cannot run a layer whose parameters have the device and dtype of this one; None where it can."""
        return None


B = TypeVar("B", bound=Backend)


class Operator(Generic[B]):
    """A computation and its backends.

    Args:
        name: of the operator, as :func:`elm_neuro.backends.offer` takes it.
        kind: the class that its backends derive from.
        ordered: its backends by name, as functions that make them; the first that is not missing and does not refuse
            the inputs is what "auto" is. One is made when it is first asked for: the passes are most of the package,
            ``import elm_neuro`` needs none, and who has no GPU none of those for GPUs.
    """

    def __init__(self, name: str, kind: type[object], ordered: Mapping[str, Callable[[], B]]) -> None:
        self.name, self.kind = name, kind
        self._ordered, self._made = dict(ordered), dict[str, B]()

    @property
    def names(self) -> tuple[str, ...]:
        """Of its backends, in the order in which "auto" asks them."""
        return tuple(self._ordered)

    def __getitem__(self, name: str) -> B:
        if name not in self._made:
            self._made[name] = self._ordered[name]()
        return self._made[name]

    def named(self, name: str) -> B | None:
        """Its backend of that name, if it has one."""
        return self[name] if isinstance(name, str) and name in self._ordered else None

    def __iter__(self) -> Iterator[B]:
        return iter([self[name] for name in self.names])

    def add(self, backend: B) -> None:
        """Have one more, which "auto" asks first."""
        self._made[backend.name] = backend
        self._ordered = {backend.name: lambda: backend, **self._ordered}

    def remove(self, backend: B) -> None:
        """No longer have this one."""
        if self._made.get(backend.name) is backend:
            del self._made[backend.name], self._ordered[backend.name]

    def __repr__(self) -> str:
        return f"Operator({self.name!r}: {', '.join(self.names)})"
