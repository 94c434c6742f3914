"""Which backend runs: by name, by context, or by what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from elm_neuro.backends.elm import _native, _reference, _torch
from elm_neuro.backends.native import _library
from elm_neuro.backends.parts._recompute import in_parts
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, zero_state

Scan = Callable[..., tuple[Tensor, ELMState]]
SPARSE_INPUT = ("auto", "on", "off")

_BACKENDS: dict[str, Scan] = {"native": _native.scan, "reference": _reference.scan, "torch": _torch.scan}
_chosen: ContextVar[str | None] = ContextVar("elm_neuro_backend", default=None)
_num_contexts = 0  # blocks of `use` that are open in any thread: torch.compile can read this, but no ContextVar
_counting = Lock()


def available() -> dict[str, str]:
    """The backends of this installation and what each is for; for one that cannot run here, why.

    >>> sorted(available())
    ['native', 'reference', 'torch']
    """
    missing = _library.missing()
    native = (
        f"cannot run: {missing}"
        if missing
        else f"compiled kernels for the CPU ({_library.instruction_set()}), float32 and float64"
    )
    return {
        "native": native,
        "reference": "a plain loop over the equations: the oracle, any dtype, any device",
        "torch": "the exact reformulation in plain PyTorch with a hand-written backward pass, any device",
    }


def resolve(name: str = "auto", like: Tensor | None = None) -> str:
    """Name of the backend that runs for `name`; inside :func:`use` the context's choice replaces "auto".

    Args:
        name: "auto", or one of :func:`available`.
        like: a parameter of the neuron: its device and dtype decide what "auto" is.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it cannot run here.

    >>> resolve("reference")
    'reference'
    """
    if name == "auto":
        name = _choice() or (
            "torch" if _library.missing() or (like is not None and _native.refuses(like)) else "native"
        )
    if name not in _BACKENDS:
        raise ValueError(f'backend must be "auto" or one of {sorted(_BACKENDS)}, got {name!r}')
    if name == "native" and _library.missing():
        raise RuntimeError(f'backend "native" cannot run: {_library.missing()}')
    return name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every neuron whose own `backend` is "auto" on the backend `name` inside the block.

    >>> with use("reference"):
    ...     resolve("auto")
    'reference'
    """
    token = _chosen.set(None if name == "auto" else resolve(name))
    _count(1)
    try:
        yield
    finally:
        _count(-1)
        _chosen.reset(token)


def _count(change: int) -> None:
    global _num_contexts
    with _counting:
        _num_contexts += change


def check_sparse_input(sparse_input: str, x: Tensor | SpikeEvents | None = None) -> None:
    """Refuse a value that is none of SPARSE_INPUT, and "on" for frames `x` that cannot be events."""
    if sparse_input not in SPARSE_INPUT:
        raise ValueError(f"sparse_input must be one of {list(SPARSE_INPUT)}, got {sparse_input!r}")
    if sparse_input != "on" or not isinstance(x, Tensor):
        return
    if x.device.type != "cpu":
        raise ValueError(f'sparse_input="on" takes frames on the CPU, or events, got x on {x.device}')
    if x.ndim != 3:
        raise ValueError(f'sparse_input="on" takes frames of shape (batch, time, input_size), got {tuple(x.shape)}')
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError('sparse_input="on" takes frames that need no gradient, got x with requires_grad')


def _choice() -> str | None:
    return _chosen.get() if _num_contexts else None


def scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    *,
    lengths: Tensor | None = None,
    recompute_every: int | None = None,
    sparse_input: str = "auto",
    backend: str = "auto",
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps.

    Args:
        x: input, (batch, time, input_size), (batch, time, num_neuron, input_size), or events.
        params: effective parameters of one step.
        state: before the first step; None for zeros.
        lengths: number of valid steps of each sample, (batch,), int64; past them the output is 0 and the state keeps
            its value.
        recompute_every: keep the activations of this many steps at a time and recompute the others in the backward
            pass.
        sparse_input: turn dense frames into events on the CPU: "auto", where few of their entries are spikes and x
            needs no gradient; "on", always; "off", never. The numbers are the same but for rounding; `reference`
            ignores it.
        backend: "auto", or one of :func:`available`.

    Returns:
        Output (batch, time, [num_neuron,] output_size), and the state after the last valid step of each sample.

    Raises:
        ValueError: a backend that is named cannot run these inputs; `sparse_input` is "on" for frames that need a
            gradient, are not on the CPU or differ between the neurons of a population.
        RuntimeError: a backend that is named cannot run here.
    """
    check_sparse_input(sparse_input, x)
    name = _checked(backend, x, params)
    state = (
        None if state is None else ELMState(*(part.to(params.kappa_m.dtype) for part in state))
    )  # autocast lets others pass
    if (
        name == "native"
        and torch.compiler.is_compiling()
        and isinstance(x, Tensor)
        and lengths is None
        and recompute_every is None
    ):
        return _native.scan(x, params, state, sparse_input=sparse_input)  # operators: nothing to unroll
    return _scan(name, x, params, state, lengths, recompute_every, sparse_input)


@untraced
def _scan(
    name: str,
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    recompute_every: int | None,
    sparse_input: str,
) -> tuple[Tensor, ELMState]:
    if name == "native":
        return _native.scan(
            x, params, state, lengths=lengths, recompute_every=recompute_every, sparse_input=sparse_input
        )
    run, state = (
        partial(_BACKENDS[name], sparse_input=sparse_input),
        zero_state(params, x.shape[0]) if state is None else state,
    )
    if recompute_every is None:
        return run(x, params, state, lengths=lengths)
    return in_parts(run, x, params, state, lengths, recompute_every)


def _checked(backend: str, x: Tensor | SpikeEvents, params: ELMParameters) -> str:
    """The backend for these inputs: what "auto" chose gives way to "torch" where it cannot run them, a named one raises."""
    name = resolve(backend, params.kappa_m)
    refusal = _native.refusal(x, params) if name == "native" else None
    if refusal is None:
        return name
    if backend == "auto" and _choice() is None:
        return "torch"
    raise ValueError(f'backend "native" cannot run this: {refusal}')
