"""What people hang on the modules inside a neuron: a pass over its tensors honours some of it, the rest only calls do.

A fast pass reads the weights of the modules inside and calls none of them. Parametrizations are read with the weight;
pruning and torch's older norms set it in a hook before the module's call, which is run here in its place. Hooks of
anyone else, and a module of someone else's with a call of its own, want to be called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def reason_to_call(module: nn.Module, *plain: Callable[..., Any]) -> str | None:
    """Why only a call of `module` does what it is meant to do; None where its tensors say all.

    Hooks that set a tensor and nothing else (``torch.nn.utils.prune``, the older ``weight_norm`` and ``spectral_norm``)
    are run, once.

    Args:
        module: a part of a neuron.
        plain: the ``forward`` functions, of our classes, that a pass over the tensors computes.
    """
    if type(module).forward not in plain or type(module).__call__ is not nn.Module.__call__:
        return f"{type(module).__name__} has a call of its own"
    values = module.__dict__
    if values["_forward_pre_hooks"] and not _weights_set(module):
        return "it has a hook before its call"
    if values["_forward_hooks"] or values["_backward_hooks"] or values["_backward_pre_hooks"]:
        return "it has a hook on its call"
    return "it has a forward of its own" if "forward" in values else None


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is one of `kind` that nobody hangs on or has changed: what a pass asks of every part first."""
    values = module.__dict__
    return type(module) is kind and not (
        values["_forward_pre_hooks"]
        or values["_forward_hooks"]
        or values["_backward_hooks"]
        or values["_backward_pre_hooks"]
        or "forward" in values
    )


def tensor_of(module: Any, name: str) -> Any:
    """A parameter as it is, or what stands in its place where it is pruned or parametrized."""
    own = module._parameters.get(name)  # torch's attribute takes three times as long
    return getattr(module, name) if own is None else own


def buffer_of(module: Any, name: str) -> Any:
    """A buffer as it is, or what stands in its place where it is parametrized."""
    own = module._buffers.get(name)
    return getattr(module, name) if own is None else own


def _weights_set(module: nn.Module) -> bool:
    """Run the hooks before a module's call where all of them only set a tensor."""
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    hooks: list[Any] = list(module._forward_pre_hooks.values())
    if not all(isinstance(hook, BasePruningMethod | SpectralNorm | WeightNorm) for hook in hooks):
        return False
    for hook in hooks:
        hook(module, None)
    return True
