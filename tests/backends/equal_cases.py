"""Neurons, inputs, states and lengths on which backends are compared, and all that a backend gives of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from elm_neuro import ELM, ELMState
from elm_neuro.backends.native import _library
from tests.strategies import frames, neurons

# What must equal the reference. A missing library is no reason to skip: native/test_library.py says when it may be
# missing.
FAST = ["torch", "native"] if not _library.missing() else ["torch"]
BACKENDS = ["reference", *FAST]


def everything(
    neuron: ELM, backend: str, x: Any, state: ELMState | None, lengths: torch.Tensor | None
) -> list[torch.Tensor]:
    """Output, final state, and the gradients of a random function of them in every parameter, the input and the first
    state."""
    neuron.backend = backend
    leaves = [*neuron.parameters(), *([x] if isinstance(x, torch.Tensor) else []), *(state or ())]
    for leaf in leaves:
        leaf.grad = None
    y, after = neuron(x, state, lengths)
    generator = torch.Generator().manual_seed(7)
    results = [y, *after]
    loss = sum((r * torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)).sum() for r in results)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return [r.detach() for r in results] + [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves
    ]


@st.composite
def cases(
    draw: st.DrawFn, dtype: torch.dtype = torch.float64
) -> tuple[ELM, torch.Tensor, ELMState | None, torch.Tensor | None]:
    neuron = draw(neurons(dtype=dtype))
    x = draw(frames(neuron, dtype=dtype)).requires_grad_(draw(st.booleans()))
    batch, num_steps = x.shape[:2]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    state = None
    if draw(st.booleans()):
        zeros = neuron.cell.initial_state(batch)
        state = ELMState(
            *(torch.randn(part.shape, generator=generator, dtype=dtype).requires_grad_() for part in zeros)
        )
    lengths = torch.randint(0, num_steps + 1, (batch,), generator=generator) if draw(st.booleans()) else None
    return neuron, x, state, lengths
