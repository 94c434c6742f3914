"""Long sequences in bounded memory: the activations of some steps at a time, the others computed again in the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState
from elm_neuro.functional._transforms import transformed


def in_parts(
    run: Callable[..., tuple[Tensor, ELMState]],
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    every: int,
) -> tuple[Tensor, ELMState]:
    """`run` over `every` steps at a time, the state handed on; for a backend that does not do it itself.

    Under torch.func's transforms and forward mode, which know no recomputation, it is one part.

    Raises:
        RuntimeError: in the backward pass, a parameter or a state was changed in place since the forward pass.
    """
    num_steps = x.shape[1]
    if num_steps <= every or not torch.is_grad_enabled() or transformed():
        return run(x, params, state, lengths=lengths)
    outputs = []
    for start in range(0, num_steps, every):
        stop = min(start + every, num_steps)
        part = x.steps(start, stop) if isinstance(x, SpikeEvents) else x[:, start:stop]
        left = None if lengths is None else (lengths - start).clamp(0, stop - start)
        # compiled code saves what it reads, and torch looks after it
        run_part = run if torch.compiler.is_compiling() else _of_unchanged(run, params, state)
        y, state = checkpoint(
            run_part, part, params, state, lengths=left, use_reentrant=False, preserve_rng_state=False
        )
        outputs.append(y)
    if state is None:
        raise RuntimeError("no step was run")
    return torch.cat(outputs, dim=1), state


def _of_unchanged(
    run: Callable[..., tuple[Tensor, ELMState]], params: ELMParameters, state: ELMState | None
) -> Callable[..., tuple[Tensor, ELMState]]:
    """`run`, which refuses to run once more after what it reads was changed in place, as torch does for saved tensors.

    Torch itself looks after the part of `x`, which it saves; parts of events are copies.
    """
    tensors = _tensors(params, state)
    versions = {name: tensor._version for name, tensor in tensors.items()}

    def run_part(*args: Any, **options: Any) -> tuple[Tensor, ELMState]:
        for name, tensor in tensors.items():
            if tensor._version != versions[name]:
                raise RuntimeError(
                    f"{name} must not be modified by an inplace operation between the forward and the backward pass, "
                    f"which recomputes from it: expected version {versions[name]}, got {tensor._version}"
                )
        return run(*args, **options)

    return run_part


def _tensors(params: ELMParameters, state: ELMState | None) -> dict[str, Tensor]:
    """All of them by name that count their changes: inference tensors do not."""
    of_state = {} if state is None else {f"state.{name}": tensor for name, tensor in state._asdict().items()}
    named: dict[str, Any] = {}
    for name, value in (params._asdict() | of_state).items():
        named |= {f"{name}[{i}]": one for i, one in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return {name: one for name, one in named.items() if isinstance(one, Tensor) and not one.is_inference()}
