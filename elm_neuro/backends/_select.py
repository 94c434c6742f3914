"""Which backend runs: by name, by context, or by what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elm_neuro.backends import _reference, _torch
from elm_neuro.backends._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState

Scan = Callable[..., tuple[Tensor, ELMState]]

_BACKENDS: dict[str, Scan] = {"reference": _reference.scan, "torch": _torch.scan}
_chosen: ContextVar[str | None] = ContextVar("elm_neuro_backend", default=None)


def available() -> dict[str, str]:
    """The backends of this installation and what each is for.

    >>> sorted(available())
    ['reference', 'torch']
    """
    return {
        "reference": "a plain loop over the equations: the oracle, any dtype, any device",
        "torch": "the exact reformulation in plain PyTorch with a hand-written backward pass, any device",
    }


def resolve(name: str = "auto") -> str:
    """Name of the backend that runs for `name`; inside :func:`use` the context's choice replaces "auto".

    Raises:
        ValueError: there is no such backend.

    >>> resolve("auto")
    'torch'
    """
    if name == "auto":
        name = _chosen.get() or "torch"
    if name not in _BACKENDS:
        raise ValueError(f'backend must be "auto" or one of {sorted(_BACKENDS)}, got {name!r}')
    return name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every neuron whose own `backend` is "auto" on the backend `name` inside the block.

    >>> with use("reference"):
    ...     resolve("auto")
    'reference'
    """
    token = _chosen.set(None if name == "auto" else resolve(name))
    try:
        yield
    finally:
        _chosen.reset(token)


@untraced
def scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState,
    *,
    lengths: Tensor | None = None,
    recompute_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps.

    Args:
        x: input, (batch, time, input_size), (batch, time, num_neuron, input_size), or events.
        params: effective parameters of one step.
        state: before the first step.
        lengths: number of valid steps of each sample, (batch,), int64; past them the output is 0 and the state keeps its value.
        recompute_every: keep the activations of this many steps at a time and recompute the others in the backward pass.
        backend: "auto", or one of :func:`available`.

    Returns:
        Output (batch, time, [num_neuron,] output_size), and the state after the last valid step of each sample.
    """
    run = _BACKENDS[resolve(backend)]
    num_steps = x.shape[1]
    if recompute_every is None or num_steps <= recompute_every or not torch.is_grad_enabled():
        return run(x, params, state, lengths=lengths)
    outputs = []
    for start in range(0, num_steps, recompute_every):
        stop = min(start + recompute_every, num_steps)
        part = x.steps(start, stop) if isinstance(x, SpikeEvents) else x[:, start:stop]
        left = None if lengths is None else (lengths - start).clamp(0, stop - start)
        y, state = checkpoint(run, part, params, state, lengths=left, use_reentrant=False, preserve_rng_state=False)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state
