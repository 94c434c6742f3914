"""Long sequences in bounded memory: the activations of some steps at a time, the others computed again in the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState


def in_parts(
    run: Callable[..., tuple[Tensor, ELMState]],
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    every: int,
) -> tuple[Tensor, ELMState]:
    """`run` over `every` steps at a time, the state handed on; for a backend that does not do it itself."""
    num_steps = x.shape[1]
    if num_steps <= every or not torch.is_grad_enabled():
        return run(x, params, state, lengths=lengths)
    outputs = []
    for start in range(0, num_steps, every):
        stop = min(start + every, num_steps)
        part = x.steps(start, stop) if isinstance(x, SpikeEvents) else x[:, start:stop]
        left = None if lengths is None else (lengths - start).clamp(0, stop - start)
        y, state = checkpoint(run, part, params, state, lengths=left, use_reentrant=False, preserve_rng_state=False)
        outputs.append(y)
    if state is None:
        raise RuntimeError("no step was run")
    return torch.cat(outputs, dim=1), state
