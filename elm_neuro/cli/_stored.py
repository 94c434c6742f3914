"""The module of a checkpoint of any kind, built without trust in whoever stored it."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

from elm_neuro.cli._settings import (
    check_built_classes,
    check_classes,
    check_model_is_named,
    read_checkpoint,
    read_settings,
    settings_of,
)


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


def load(checkpoint: str, trusted: tuple[str, ...] = ()) -> tuple[Any, Path]:
    """The trained module of a checkpoint, in evaluation mode, and the folder to write beside it.

    For a saved folder the packages that the user trusts are imported: they register their classes.
    """
    path = Path(checkpoint)
    if path.is_file():
        return _trained(path, trusted), path.parent
    from elm_neuro.checkpoints import from_pretrained

    for package in trusted:
        import_module(package)
    return from_pretrained(checkpoint).eval(), path if path.is_dir() else Path()


def _trained(path: Path, trusted: tuple[str, ...]) -> Any:
    """The network of a checkpoint of ``elm-neuro fit``, built by the settings in it; of an earlier version, by the
    config.yaml beside it.
    """
    from torch import nn

    checkpoint = read_checkpoint(path, "checkpoint")
    if "state_dict" not in checkpoint:
        raise ValueError(f"checkpoint must be of elm-neuro fit, got {path}, which has no state_dict")
    source, settings = path, settings_of(checkpoint, path)
    if settings is None:
        source = path.with_name("config.yaml")
        if not source.is_file():
            raise FileNotFoundError(
                f"a checkpoint of elm-neuro fit needs its settings beside it, but there is no {source}"
            )
        settings = read_settings(source)
    model = settings.get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{source} must hold the settings of elm-neuro fit, got no model in it")
    check_model_is_named(source, model)
    check_sizes(path, checkpoint, source, model, trusted)
    module = built(source, model, trusted)
    module.load_state_dict(checkpoint["state_dict"])
    if not isinstance(network := getattr(module, "network", None), nn.Module):
        raise ValueError(
            f"{source}: {model['class_path']} must have what it trains as its network, to be exported or looked at"
        )
    return network.eval()
