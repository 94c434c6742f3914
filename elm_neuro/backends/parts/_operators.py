"""Operators of torch's: a pass as torch.compile and torch.export have it, who do not look into it.

They are declared with the package, since a program that was saved asks for them by name, and what runs them is imported
when one runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Implementation(NamedTuple):
    """What an operator does, as ``torch.library.custom_op`` takes it."""

    run: Callable[..., Any]
    fake: Callable[..., Any]  # empty results of the right shapes
    save: Callable[[Any, tuple[Any, ...], Any], None]  # what the gradient needs, of inputs and output
    differentiate: Callable[..., Any]


def declare(name: str, schema: str, implementation: Callable[[], Implementation]) -> None:
    """Make ``torch.ops.elm_neuro.<name>`` known; `implementation` imports what runs it."""

    @torch.library.custom_op(f"elm_neuro::{name}", mutates_args=(), schema=schema)
    def operator(*arguments: Any) -> Any:
        return implementation().run(*arguments)

    @operator.register_fake
    def _(*arguments: Any) -> Any:
        return implementation().fake(*arguments)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        implementation().save(ctx, inputs, output)

    def differentiate(ctx: Any, *grads: Tensor | None) -> Any:
        return implementation().differentiate(ctx, *grads)

    operator.register_autograd(differentiate, setup_context=save)
