"""What a backend is, and an operator: one computation with the backends that can run it, in the order in which "auto"
asks them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
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


B_co = TypeVar("B_co", bound=Backend, covariant=True)


class Operator(Generic[B_co]):
    """A computation and its backends.

    Args:
        name: of the operator, as :func:`elm_neuro.backends.offer` takes it.
        kind: the class that its backends derive from.
        ordered: gives its backends, always the same; the first that is not missing and does not refuse the inputs is
            what "auto" is. It is called when they are first asked for, not before: their passes are most of the
            package, and ``import elm_neuro`` needs none.
    """

    def __init__(self, name: str, kind: type[object], ordered: Callable[[], tuple[B_co, ...]]) -> None:
        self.name, self.kind = name, kind
        self._ordered = ordered
        self._backends: tuple[B_co, ...] | None = None

    @property
    def backends(self) -> tuple[B_co, ...]:
        """In the order in which "auto" asks them."""
        if self._backends is None:
            self._backends = self._ordered()
        return self._backends

    @backends.setter
    def backends(self, backends: tuple[B_co, ...]) -> None:
        self._backends = backends

    def __iter__(self) -> Iterator[B_co]:
        return iter(self.backends)

    def named(self, name: str) -> B_co | None:
        """Its backend of that name, if it has one."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        return None

    def __repr__(self) -> str:
        return f"Operator({self.name!r}: {', '.join(backend.name for backend in self.backends)})"
