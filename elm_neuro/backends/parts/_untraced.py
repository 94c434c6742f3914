"""What torch.compile must not look into: loops over time, and what it may take for constant."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, run as it is inside compiled code: tracing it would unroll its loop over time.

    ``torch.compiler.disable`` as a decorator would import the compiler with the package.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            result: R = torch.compiler.disable(function)(*args, **kwargs)
            return result
        return function(*args, **kwargs)

    # code of its own: torch counts by code how often it compiles anew, and traces what is below where it gives up
    own: Any = run
    own.__code__ = own.__code__.replace(co_name=function.__name__)
    return run


# torch.compile of older releases does not know what layers are written in: types joined by "|", fields of dataclasses,
# zips of unlike lengths, and more
COMPILES = tuple([int(part) for part in torch.__version__.split(".")[:2]]) >= (2, 13)


def compilable(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which compiled code looks into where its torch can; with an older one it runs as it is."""
    return function if COMPILES else untraced(function)


def constant(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose result compiled code keeps, of arguments that are no tensors.

    ``torch.compiler.assume_constant_result`` would import the compiler with the package.
    """
    marked: Any = function
    marked._dynamo_marked_constant = True
    return function
