"""Settings of a run: in a recipe, in the config.yaml of ``fit``, and in its checkpoints, which may be a stranger's."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

KEY = "elm_neuro_settings"  # of a checkpoint: JSON of {"model": ..., "data": ...}, as fit resolved them
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")  # what could be imported


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a recipe, or in the config.yaml that ``fit`` writes beside its checkpoints.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, or no mapping.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings by their names, got {type(settings).__name__}")
    return settings


def check_model_is_named(path: Path, model: object) -> None:
    """Refuse settings of a model that do not say whose they are.

    Raises:
        ValueError: there is a model without a `class_path`.
    """
    if isinstance(model, dict) and "class_path" not in model:
        raise ValueError(
            f"{path}: model must name its class by class_path, for example elm_neuro.training.SpikeClassification or "
            f"elm_neuro.training.NeuronIORegression, and hold its settings under init_args; got {', '.join(model)}"
        )


def read_checkpoint(path: Path, name: str) -> dict[str, Any]:
    """Weights and settings in a checkpoint; nothing in it is run.

    Args:
        path: of the checkpoint.
        name: what the message calls it.

    Raises:
        ValueError: it is no file, is damaged, or holds more than weights and settings.
    """
    from elm_neuro.checkpoints._load import load_weights

    if not path.is_file():
        raise ValueError(f"{name} must be a checkpoint on this machine, got {path}, which is no file")
    try:
        checkpoint = load_weights(path)
    except ValueError as error:
        raise ValueError(
            f"{name} must be a whole checkpoint of weights and settings, got {path}, which {error}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{name} must be a whole checkpoint, got {path}, which holds a {type(checkpoint).__name__}")
    return checkpoint


def settings_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The settings that ``fit`` put into a checkpoint; None in one that holds none.

    Raises:
        ValueError: they are damaged.
    """
    from elm_neuro.checkpoints._load import shown

    text = checkpoint.get(KEY)
    if text is None:
        return None
    try:
        settings = json.loads(text)
        if not isinstance(settings["model"], dict):
            raise TypeError("no model")
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} must hold the settings of its model as JSON, got {shown(text)}") from error
    return dict(settings)


def check_classes(settings: object, source: Path, allowed: Collection[str] = ()) -> None:
    """Refuse settings of a stranger that name what is not ours, before anything of it is imported.

    Args:
        settings: of a model or of data, nested.
        source: file that they come from, for the message.
        allowed: further names, and packages whose names are all allowed.

    Raises:
        ValueError: a text in `settings` could be imported and is neither of elm_neuro nor allowed.
    """
    for text in _texts(settings):
        packages = {text.split(".")[0], text.rpartition(".")[0], text}
        if _DOTTED.fullmatch(text) and not packages & {"elm_neuro", *allowed}:
            raise ValueError(f"{source}: only classes of elm_neuro are built from the settings in it, got {text}")


def check_built_classes(settings: object, source: Path, allowed: Collection[str] = ()) -> None:
    """Refuse resolved settings that would call anything but a module class of ours: a function, another's class.

    Args:
        settings: resolved, so that each class is named in full by its class_path.
        source: file that they come from, for the message.
        allowed: further names, and packages whose names are all allowed.

    Raises:
        ValueError: they would.
    """
    from importlib import import_module

    check_classes(settings, source, allowed)
    for path in _class_paths(settings):
        place, _, name = path.rpartition(".")
        kind = getattr(import_module(place), name, None) if place else None
        ours = isinstance(kind, type) and ({kind.__module__.split(".")[0], path} & {"elm_neuro", *allowed})
        if not ours:
            raise ValueError(f"{source}: only classes of elm_neuro are built from the settings in it, got {path}")


def named_in(settings: object) -> set[str]:
    """Every text in `settings` that could be imported."""
    return {text for text in _texts(settings) if _DOTTED.fullmatch(text)}


def contradictions(stored: object, given: object, name: str) -> Iterator[str]:
    """Where `given` differs from `stored`; what only one of them has is no contradiction: a version added it.

    >>> list(contradictions({"neuron": {"lambda_": 2.5, "size": 3}}, {"neuron": {"lambda_": 5.0, "size": 3}}, "model"))
    ['model.neuron.lambda_ is 2.5, got 5.0']
    """
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in stored.keys() & given.keys():
            shown = name if key == "init_args" else f"{name}.{key}"
            yield from contradictions(stored[key], given[key], shown)
    elif stored != given:
        yield f"{name} is {json.dumps(stored)}, got {json.dumps(given)}"


def did_you_mean(name: str, names: Collection[str]) -> str:
    """The end of a message about a name that is not there: the nearest that is.

    >>> did_you_mean("shd_emm", ["shd_elm", "shd_lif"])
    '; did you mean shd_elm?'
    """
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _texts(settings: object) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, dict):
        for value in settings.values():
            yield from _texts(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value)


def _class_paths(settings: object) -> Iterator[str]:
    if isinstance(settings, dict):
        if isinstance(path := settings.get("class_path"), str):
            yield path
        for value in settings.values():
            yield from _class_paths(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _class_paths(value)
