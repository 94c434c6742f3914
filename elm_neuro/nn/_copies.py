"""Copies of modules that have been used."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def copied(module: AnyModule) -> AnyModule:
    """A deep copy of a module; of what it holds inside of a graph, as a state that a call has left in it, the numbers
    alone: torch refuses to copy such tensors.
    """
    held = [value for part in module.modules() for value in tree_leaves(vars(part)) if isinstance(value, Tensor)]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in held if not value.is_leaf})
