"""The commands elm-neuro fit, validate, test, predict and recipes: Lightning's own, with our recipes by their names."""

from __future__ import annotations

import itertools
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from elm_neuro.cli._settings import check_model_is_named, did_you_mean, read_settings

COMMANDS = {
    "fit": "train a network by a recipe, which is code: the classes that it names are run",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint: accuracy over seen and unseen speakers",
    "predict": "class probabilities of a checkpoint for the test samples, as a table",
}


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
    """Hand the command to LightningCLI. Model and data are whatever classes the recipe names by their `class_path`: a
    recipe is code.
    """
    from lightning import LightningDataModule, LightningModule

    from elm_neuro.cli._lightning import Command, KeepSettings, OneLineParser
    from elm_neuro.training.loop._progress import EpochLines
    from elm_neuro.training.loop._quiet import without_advice

    with_paths = [_with_path(before, argument) for before, argument in itertools.pairwise(["", *arguments])]
    for path in option_values("--config", with_paths) + option_values("-c", with_paths):
        check_model_is_named(Path(path), read_settings(Path(path)).get("model"))
    with without_advice():
        Command(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [EpochLines()]},
            save_config_callback=KeepSettings,
            parser_class=OneLineParser,
            parser_kwargs={"prog": "elm-neuro"},
            args=with_paths,
        )
    return 0


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


def _with_path(before: str, argument: str) -> str:
    """An argument with the name of a recipe as the path of its file."""
    if before in ("--config", "-c"):
        return _recipe(argument)
    name, _, value = argument.partition("=")
    return f"--config={_recipe(value)}" if name == "--config" and value else argument


def _recipe(name: str) -> str:
    if os.path.isfile(name):
        return name
    if name not in (known := recipes()):
        raise FileNotFoundError(
            f"--config must be a file or one of the recipes {', '.join(known)}, got {name}{did_you_mean(name, known)}"
        )
    return str(files("elm_neuro") / "training" / "recipes" / f"{name}.yaml")
