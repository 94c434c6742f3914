"""Modules made from tensors, which are checked before anything of their size is made."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.pretrained._kinds import Kind

SETTINGS = "_extra_state"  # torch's name of them in a state dict
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse to convert a module to what is no floating type.

    Raises:
        ValueError: it is none; None leaves the module as it is.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {[str(one) for one in FLOATS]}, got {dtype}")


def with_tensors(kind: Kind, config: Any, tensors: dict[str, Tensor], source: str) -> Any:
    """A module of that configuration that holds these tensors themselves; torch's random numbers stay as they were.

    Raises:
        ValueError: the tensors are not those of the configuration; the message begins with `source`.
    """
    module = checked_blank(kind, config, tensors, source)
    _check_finite(module, tensors, source)
    places = module.state_dict()
    settings = {name: value for name, value in places.items() if name not in tensors}  # in the config already
    whole = {name: one if one.is_floating_point() else one.to(places[name].dtype) for name, one in tensors.items()}
    module.load_state_dict(whole | settings, assign=True)
    return module


def blank(kind: Kind, config: Any, num_tensors: int) -> nn.Module:
    """A module of that configuration on the device "meta": names, shapes and types of its tensors, but no memory.

    Args:
        kind: of the module.
        config: its configuration, perhaps made up.
        num_tensors: what the file has: it bounds the layers that the configuration can ask for.

    Raises:
        ValueError: there is no such module.
    """
    try:
        if (check_size := getattr(config, "check_size", None)) is not None:
            check_size(num_tensors)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            module = kind.build(config)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        raise ValueError(
            f"it must hold the tensors of its config, but such a module cannot be made: {error}"
        ) from error
    if type(module) is not kind.module_class:
        raise ValueError(f"class must be {type(module).__name__} for this config, got {kind.name}")
    return module


def checked_blank(kind: Kind, config: Any, tensors: dict[str, Tensor], source: str) -> nn.Module:
    """A module without memory that has a place for each of these tensors and no other."""
    try:
        module = blank(kind, config, len(tensors))
        for name, part in module.named_modules():
            if (adopt_tensors := getattr(part, "adopt_tensors", None)) is not None:
                prefix = f"{name}." if name else ""
                adopt_tensors({key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    check_tensors(tensors, weights_of(module), source)
    return module


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict, without the settings that its configuration has too: parts with
    ``meaning_in_config = True`` keep them in torch's extra state.
    """
    own = {
        f"{name}.{SETTINGS}" if name else SETTINGS
        for name, part in module.named_modules()
        if getattr(part, "meaning_in_config", False)
    }
    return {name: tensor for name, tensor in module.state_dict().items() if name not in own}


def _check_finite(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Refuse NaN and infinity, but for infinity where a part names the tensor in its `may_be_infinite`."""
    infinite = {
        f"{name}.{one}" if name else one
        for name, part in module.named_modules()
        for one in getattr(part, "may_be_infinite", ())
    }
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad and (name not in infinite or bool(tensor.isnan().any())):
            raise ValueError(f"{source}: {name} must be finite, got {bad} of {tensor.numel()} that are not")


COMPUTED = (
    ": weights that are computed from others are made plain ones by torch.nn.utils.prune.remove, remove_weight_norm, "
    "remove_spectral_norm or parametrize.remove_parametrizations"
)
_IS_COMPUTED = re.compile(r"(^|\.)parametrizations\.|_(orig|mask|g|v|u)$").search


def check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """Refuse missing and extra names, other shapes than `expected`, several floating types, and integers in the place
    of
    floating point numbers or the other way round.
    """
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise ValueError(
            f"{source} must hold the tensors of its config, missing {_some(missing)}, got also {_some(extra)}"
            f"{COMPUTED if any(map(_IS_COMPUTED, extra)) else ''}"
        )
    if len(types := {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) > 1:
        raise ValueError(f"{source} must hold one floating type, got {sorted(map(str, types))}")
    for name, like in expected.items():
        tensor, shape = tensors[name], tuple(like.shape)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{source}: {name} must have shape {shape} to fit its config, got {tuple(tensor.shape)}")
        whole = not tensor.is_floating_point() and not tensor.is_complex()
        if not (tensor.dtype in FLOATS if like.is_floating_point() else whole):
            rule = "floating point numbers" if like.is_floating_point() else "integers"
            raise ValueError(f"{source}: {name} must hold {rule}, got {tensor.dtype}")


def _some(names: list[str]) -> str:
    """Names of a stranger's file in a message: the first ten, each as far as it is a name."""
    return str([f"{name:.60}" for name in names[:10]] + ["..."] * (len(names) > 10)) if names else "none"
