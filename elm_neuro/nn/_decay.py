"""Parameters for an optimizer with weight decay, without those that it would turn into others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of a network as groups for an optimizer: time constants, synaptic weights and thresholds are not
    decayed.

    Decay pulls what is stored to 0. For a weight that is no weight; for a time constant it is the middle of its bounds,
    for a synapse silence, for the decay of a membrane no memory at all. A module, ours or anyone's, names such
    parameters of its own in ``without_decay``. Without decay there is one group, in the order of
    ``module.parameters()``.

    Args:
        module: a layer, or a network with layers anywhere in it.
        weight_decay: of the others.

    Raises:
        TypeError: `module` is none.
        ValueError: `weight_decay` is negative.

    >>> from elm_neuro import ELM
    >>> decayed, kept = parameter_groups(nn.Sequential(ELM(3, 2, num_memory=4)), weight_decay=0.01)
    >>> len(decayed["params"]), len(kept["params"]), kept["weight_decay"]
    (6, 2, 0.0)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a module of torch, got {type(module).__name__}")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    parameters = list(module.parameters())
    if weight_decay == 0:
        return [{"params": parameters, "weight_decay": 0.0}]
    kept = {id(parameter) for part in module.modules() for parameter in _without_decay(part)}
    groups = (
        ([one for one in parameters if id(one) not in kept], float(weight_decay)),
        ([one for one in parameters if id(one) in kept], 0.0),
    )
    return [{"params": chosen, "weight_decay": decay} for chosen, decay in groups if chosen]


def _without_decay(module: Any) -> Iterator[nn.Parameter]:
    """Those that a module names, also where they are pruned or parametrized."""
    for name in getattr(module, "without_decay", ()):
        own = module._parameters
        yield from (
            one for key in (name, f"{name}_orig", f"{name}_g", f"{name}_v") if (one := own.get(key)) is not None
        )
        parametrizations = module._modules.get("parametrizations")
        if parametrizations is not None and name in parametrizations:
            yield from parametrizations[name].parameters()
