"""Operators of torch's: a pass as torch.compile and torch.export have it, who do not look into it.

They are declared with the package, since a program that was saved asks for them by name; what runs them is imported
when one runs. ``torch.library.custom_op`` does the same, but takes 2 ms of every import for each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

LIBRARY = torch.library.Library("elm_neuro", "FRAGMENT")


class Implementation(NamedTuple):
    """What an operator does, as ``torch.library`` takes it."""

    run: Callable[..., Any]
    empty: Callable[..., Any]  # results of the right shapes, made from the arguments' by `new_empty`
    save: Callable[[Any, tuple[Any, ...], Any], None]  # what the gradient needs, of inputs and output
    differentiate: Callable[..., Any]


def declare(name: str, schema: str, implementation: Callable[[], Implementation]) -> None:
    """Make ``torch.ops.elm_neuro.<name>`` known; `implementation` imports what runs it."""

    def run(*arguments: Any) -> Any:
        return implementation().run(*arguments)

    def empty(*arguments: Any) -> Any:
        return implementation().empty(*arguments)

    @cache
    def differentiable() -> Callable[..., Any]:
        from torch._library.autograd import Info, make_autograd_impl

        _, _, save, differentiate = implementation()
        made: Callable[..., Any] = make_autograd_impl(
            getattr(torch.ops.elm_neuro, name).default, Info(differentiate, save)
        )
        return made

    def run_differentiable(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        return differentiable()(keyset, *arguments)

    LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    LIBRARY.impl(name, empty, "Meta")
    LIBRARY.impl(name, run_differentiable, "Autograd", with_keyset=True)
