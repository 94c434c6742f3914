"""Which backend runs: by name, by context, or the first that can. Nothing here knows an operator or a backend by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from elm_neuro.backends._backend import Backend, Operator
from elm_neuro.functional._transforms import transformed

B = TypeVar("B", bound=Backend)

_operators: dict[str, Operator[Any] | str] = {}  # or the module that registers it
_leading: list[Operator[Any]] = []  # for which resolve answers where no operator is named
_chosen: ContextVar[str | None] = ContextVar("elm_neuro_backend", default=None)
_num_contexts = 0  # blocks of `use` that are open in any thread: torch.compile can read this, but no ContextVar
_changing = Lock()


def register(operator: Operator[B], *, leading: bool = False) -> Operator[B]:
    """Make an operator known to :func:`available`, :func:`resolve`, :func:`use` and :func:`offer`.

    The leading one is that for which :func:`resolve` answers where no operator is named.
    """
    _operators[operator.name] = operator
    if leading:
        _leading.append(operator)
    return operator


def register_later(name: str, module: str) -> None:
    """Make an operator known by its name alone: `module`, which registers it, is imported when it is asked for."""
    _operators[name] = module


def available(operator: str | None = None) -> dict[str, str]:
    """The backends of this installation and what each is for; for one that cannot run here, why.

    Args:
        operator: only its backends, in the order in which "auto" asks them; those of all operators by default.

    >>> sorted(available())
    ['cuda', 'native', 'reference', 'torch']
    >>> list(available("elm"))
    ['native', 'cuda', 'torch', 'reference']
    """
    texts: dict[str, str] = {}
    for backend in (backend for of in _operators_of(operator) for backend in of):
        reason = backend.missing()
        if backend.name not in texts or texts[backend.name].startswith("cannot run"):
            texts[backend.name] = backend.about if reason is None else f"cannot run: {reason}"
    return texts


def resolve(name: str = "auto", like: Tensor | None = None, *, operator: str | None = None) -> str:
    """Name of the backend that runs for `name`; inside :func:`use` the context's choice replaces "auto".

    Args:
        name: "auto", or one of :func:`available`.
        like: a parameter of the layer: its device and dtype decide what "auto" is.
        operator: whose backend; by default "auto" is the leading operator's, and a name may be any operator's.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it cannot run here.

    >>> resolve("reference")
    'reference'
    """
    of = _leading[0] if operator is None else _operator(operator)
    if name == "auto":
        chosen = _chosen_for(of)
        if chosen is None:
            first: Backend = _first(of, lambda backend: None if like is None else backend.refusal_of(like))
            return first.name
        name = chosen.name
    _running(name, _operators_of(operator))
    return name


def choose(operator: Operator[B], name: str, refusal: Callable[[B], str | None]) -> B:
    """The backend that runs these inputs: the one that is named or chosen by the context, else the first that can.

    Args:
        operator: whose backends are asked.
        name: "auto" or the name of one of them.
        refusal: why a backend cannot run the inputs, or None.

    Raises:
        ValueError: there is no such backend, or it refuses the inputs.
        RuntimeError: it cannot run here.
    """
    backend = _chosen_for(operator) if name == "auto" else _running(name, (operator,))
    if transformed():
        refusal = _refusing_transforms(refusal)
    if backend is None:
        return _first(operator, refusal)
    reason = refusal(backend)
    if reason is not None:
        raise ValueError(f'backend "{backend.name}" cannot run this: {reason}')
    return backend


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every layer whose own `backend` is "auto" on the backend `name` inside the block.

    A layer whose operator has no backend of that name runs as without the block. The choice holds for the thread and
    the asyncio task that made it, as ``torch.no_grad`` does; a thread started inside has it where it is started with
    ``contextvars.copy_context().run``.

    Raises:
        ValueError: no operator has such a backend.
        RuntimeError: it cannot run here.

    >>> with use("reference"):
    ...     resolve("auto")
    'reference'
    """
    if name != "auto":
        _running(name, _operators_of(None))
    token = _chosen.set(None if name == "auto" else name)
    _count(1)
    try:
        yield
    finally:
        _count(-1)
        _chosen.reset(token)


class Offer:
    """A backend that was offered to an operator: at the end of a ``with`` block, or of :meth:`withdraw`, it is gone."""

    def __init__(self, operator: Operator[Any], backend: Backend) -> None:
        self._operator, self._backend = operator, backend

    def withdraw(self) -> None:
        """Take the backend back."""
        with _changing:
            self._operator.remove(self._backend)

    def __enter__(self) -> Backend:
        return self._backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.withdraw()


def offer(operator: str, backend: Backend) -> Offer:
    """Give an operator a further backend, which "auto" asks first: for the end of the process, or of a ``with`` block.

    Args:
        operator: "elm", "alif" or "network".
        backend: an object of a class that derives from the operator's: :class:`elm_neuro.backends.ELMBackend`, ....

    Returns:
        What withdraws it again.

    Raises:
        TypeError: `backend` does not derive from the operator's class, or its name is no string.
        ValueError: there is no such operator, or it has a backend of that name.

    >>> from elm_neuro import backends
    >>> class Loop(type(backends.elm.OPERATOR.named("reference"))):
    ...     name = "loop"
    >>> with backends.offer("elm", Loop()):
    ...     backends.resolve("auto")
    'loop'
    """
    of = _operator(operator)
    if not isinstance(backend, of.kind):
        raise TypeError(f'a backend of "{operator}" must derive from {of.kind.__name__}, got {type(backend).__name__}')
    if not isinstance(backend.name, str):
        raise TypeError(f"name of a backend must be a string, got {backend.name!r}")
    with _changing:
        if backend.name == "auto" or of.named(backend.name) is not None:
            raise ValueError(f'name of a backend must be new to "{operator}" and not "auto", got {backend.name!r}')
        of.add(backend)
    return Offer(of, backend)


def _refusing_transforms(refusal: Callable[[B], str | None]) -> Callable[[B], str | None]:
    """The same, where torch.func's transforms or forward mode look into every operation."""

    def refuse(backend: B) -> str | None:
        if backend.differentiates:
            return refusal(backend)
        return (
            'transforms of torch.func (vmap, jacrev, jacfwd, ...) and forward mode need backend="auto" or "reference"'
        )

    return refuse


def _operator(name: str) -> Operator[Any]:
    if name not in _operators:
        raise ValueError(f"operator must be one of {sorted(_operators)}, got {name!r}")
    known = _operators[name]
    if isinstance(known, str):
        import_module(known)
        return _operator(name)
    return known


def _operators_of(name: str | None) -> tuple[Operator[Any], ...]:
    """The one of that name, or all."""
    return tuple([_operator(known) for known in sorted(_operators)]) if name is None else (_operator(name),)


def _running(name: str, among: tuple[Operator[B], ...]) -> B:
    """The backend of that name; one that is not missing where several operators have it."""
    if len(among) == 1 and (backend := among[0].named(name)) is not None and backend.missing() is None:
        return backend
    named = [of[name] for of in among if name in of.names]
    if not named:
        known = sorted({other for of in among for other in of.names})
        raise ValueError(f'backend must be "auto" or one of {known}, got {name!r}')
    for backend in named:
        if backend.missing() is None:
            return backend
    raise RuntimeError(f'backend "{name}" cannot run: {named[0].missing()}')


def _first(operator: Operator[B], refusal: Callable[[B], str | None]) -> B:
    """The first backend that is not missing and does not refuse."""
    for name in operator.names:
        backend = operator[name]
        if backend.missing() is None and refusal(backend) is None:
            return backend
    reasons = [f"{backend.name}: {backend.missing() or refusal(backend)}" for backend in operator]
    raise ValueError(f'no backend of "{operator.name}" can run this: {"; ".join(reasons)}')


def _chosen_for(operator: Operator[B]) -> B | None:
    """The context's choice, where the operator has such a backend."""
    name = _chosen.get() if _num_contexts else None
    return None if name is None or name not in operator.names else _running(name, (operator,))


def _count(change: int) -> None:
    global _num_contexts
    with _changing:
        _num_contexts += change
