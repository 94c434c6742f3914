"""The commands elm-neuro fit, validate, test, predict and recipes: Lightning's own, with our recipes by their names."""

from __future__ import annotations

import itertools
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

COMMANDS = {
    "fit": "train a network by a recipe",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint: accuracy over seen and unseen speakers",
    "predict": "class probabilities of a checkpoint for the test samples, as a table",
}
SHOW_ONLY = {"-h", "--help", "--print_config"}  # options that train and evaluate nothing


def add_parsers(commands: Any) -> None:
    """Declare the commands; LightningCLI declares their options when one of them runs."""
    for name, line in COMMANDS.items():
        commands.add_parser(name, help=f"{line} (elm-neuro {name} --config RECIPE; --help lists the options)")
    commands.add_parser("recipes", help="list the recipes that come with the package")


def recipes() -> dict[str, str]:
    """Names of the packaged recipes, each with the first line of its file."""
    folder = files("elm_neuro") / "training" / "recipes"
    texts = sorted(
        (entry.name, entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )
    return {name.removesuffix(".yaml"): text.partition("\n")[0].lstrip("# ") for name, text in texts}


def recipes_command() -> int:
    """Print them."""
    for name, line in recipes().items():
        print(f"{name:<32}{line}")
    return 0


def training_command(arguments: list[str]) -> int:
    """Hand the command to LightningCLI. Model and data are whatever classes the recipe names by their `class_path`."""
    from lightning import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningCLI

    from elm_neuro.training.loop._progress import EpochLines
    from elm_neuro.training.loop._quiet import without_advice

    _check_checkpoint(arguments)
    with_paths = [_with_path(before, argument) for before, argument in itertools.pairwise(["", *arguments])]
    for path in option_values("--config", with_paths) + option_values("-c", with_paths):
        check_model_is_named(Path(path), read_settings(Path(path)).get("model"))
    with without_advice():
        LightningCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [EpochLines()]},
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "elm-neuro"},
            args=with_paths,
        )
    return 0


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


def option_values(name: str, arguments: list[str]) -> list[str]:
    """What is given for an option, as ``--name value`` or ``--name=value``.

    >>> option_values("--config", ["fit", "--config", "a", "--config=b"])
    ['a', 'b']
    """
    values = [
        argument if before == name else argument.removeprefix(f"{name}=") if argument.startswith(f"{name}=") else ""
        for before, argument in itertools.pairwise(["", *arguments])
    ]
    return [value for value in values if value]


def _check_checkpoint(arguments: list[str]) -> None:
    """Refuse to evaluate a network that was never trained, and checkpoint files that are damaged or hold more than
    weights and settings.
    """
    paths = option_values("--ckpt_path", arguments)
    if arguments[0] != "fit" and not paths and not SHOW_ONLY & set(arguments):
        raise ValueError(f"{arguments[0]} needs --ckpt_path CHECKPOINT, the network to {arguments[0]}")
    for path in paths:
        if os.path.isfile(path):  # otherwise it is "last", "best", or a path that Lightning names
            read_checkpoint(Path(path), "--ckpt_path")


def read_checkpoint(path: Path, name: str) -> dict[str, Any]:
    """Weights and settings in a checkpoint; nothing in it is run.

    Args:
        path: of the checkpoint.
        name: what the message calls it.

    Raises:
        ValueError: it is damaged, or holds more than weights and settings.
    """
    import torch

    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way; weights_only runs nothing of it
        raise ValueError(
            f"{name} must be a whole checkpoint of weights and settings, got {path}, which torch.load refuses"
        ) from error
    return checkpoint


def _with_path(before: str, argument: str) -> str:
    """An argument with the name of a recipe as the path of its file, and ``--resume`` as Lightning calls it."""
    name, _, value = argument.partition("=")
    if before in ("--config", "-c"):
        return _recipe(argument)
    if name == "--config" and value:
        return f"--config={_recipe(value)}"
    return "--ckpt_path=last" if argument == "--resume" else argument


def _recipe(name: str) -> str:
    if os.path.isfile(name):
        return name
    if name not in (known := recipes()):
        raise FileNotFoundError(f"--config must be a file or one of the recipes {', '.join(known)}, got {name}")
    return str(files("elm_neuro") / "training" / "recipes" / f"{name}.yaml")
