"""The module that stored settings describe, built without trust in whoever stored them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from elm_neuro.cli._settings import check_built_classes, check_classes


def built(source: Path, model: dict[str, Any], trusted: Collection[str]) -> Any:
    """The module that settings describe.

    They may be a stranger's, so only the model is read, and only classes of ours are built, or of a package that the
    user trusts: what else is named is refused before it is imported.

    Raises:
        ValueError: they name another's class, or do not fit the class that they name.
    """
    from jsonargparse import ArgumentError, ArgumentParser
    from lightning import LightningModule

    check_classes(model, source, trusted)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False, required=True)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before jsonargparse 5
    try:
        parsed = parser.parse_object({"model": model})
        check_built_classes(parsed.as_dict(), source, trusted)
        return instantiate(parsed).model
    except ArgumentError as error:
        raise ValueError(f"{source}: {error}") from error


def check_sizes(
    path: Path, checkpoint: dict[str, Any], source: Path, model: dict[str, Any], trusted: Collection[str]
) -> None:
    """Refuse settings that give weights of other names or shapes than the checkpoint has: the weights in a file take no
    more memory than the file, settings may ask for any amount. Nothing is made of them here.

    What the user trusts is not looked at: another's class may not be made without memory.

    Args:
        path: the checkpoint, for the message.
        checkpoint: its content.
        source: file of the settings, for the message.
        model: the settings.
        trusted: classes or packages beside ours.

    Raises:
        ValueError: a weight is missing or has another shape; the message names it.
    """
    import torch

    if trusted:
        return
    with torch.device("meta"):
        expected = built(source, model, trusted).state_dict()
    weights = checkpoint.get("state_dict")
    for name, tensor in expected.items():
        found = weights.get(name) if isinstance(weights, dict) else None
        if not isinstance(tensor, torch.Tensor) or name.endswith("_extra_state"):  # what the numbers mean
            continue
        if not isinstance(found, torch.Tensor) or found.shape != tensor.shape:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else "nothing"
            raise ValueError(f"{path}: {name} must have shape {tuple(tensor.shape)}, as the settings say, got {got}")
