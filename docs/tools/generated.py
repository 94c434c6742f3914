"""Pages of the reference that are read off the package itself: the command line, the recipes and the public names."""

from __future__ import annotations

import argparse
import ast
from importlib.resources import files
from pathlib import Path

from elm_neuro import cli

ROOT = Path(__file__).resolve().parents[2]

# Every module with a list of public names; a page each.
MODULES = {
    "elm_neuro": "The neurons, spikes as indices, and what a notebook needs at first.",
    "elm_neuro.nn": "Layers that own parameters, and the protocol that they keep.",
    "elm_neuro.functional": "The equations, as pure functions of tensors.",
    "elm_neuro.backends": "Ways to run the same scan over time.",
    "elm_neuro.backends.elm": "The operator of the ELM: its backends in order, and what one has to offer.",
    "elm_neuro.backends.alif": "The operator of (adaptive) LIF layers.",
    "elm_neuro.pretrained": "A neuron as a folder: saving and loading, of any registered layer.",
    "elm_neuro.checkpoints": "The authors' published neurons, and folders of our own.",
    "elm_neuro.adapters.snntorch": "Faces for snnTorch: one step a call, hidden or explicit states, whole sequences.",
    "elm_neuro.adapters.norse": "Faces for norse: cells and layers whose state goes in and out.",
    "elm_neuro.adapters.tonic": "SHD and SHD-Adding as tonic data sets, and transforms that draw reproducibly.",
    "elm_neuro.export": "ONNX: writing a model and verifying it; what a layer of your own has to register.",
    "elm_neuro.datasets": "Recordings of spikes, SHD-Adding, NeuronIO, N-MNIST and the transforms on them.",
    "elm_neuro.datasets.lra": "The six tasks of the Long Range Arena, read or made.",
    "elm_neuro.training": "Lightning modules, data modules, networks and reports that recipes name.",
    "elm_neuro.plotting": "Figures of spike trains, of what happens inside a neuron, and of training.",
    "elm_neuro.demo": "The demonstration behind `make demo`.",
    "elm_neuro.cli": "The command `elm-neuro`, to be called from Python.",
}


def page_of(module: str) -> str:
    """Path of a module's page in docs/.

    >>> page_of("elm_neuro.adapters.snntorch")
    'reference/adapters.snntorch.md'
    """
    return f"reference/{module.removeprefix('elm_neuro.')}.md"


def public_names(module: str) -> list[str]:
    """The list ``__all__`` of a module, read from its source: no host has to be there for the site.

    >>> public_names("elm_neuro.cli")
    ['main', 'recipes']
    """
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise ValueError(f"{source} must have a list __all__, found none")


def module_page(module: str) -> str:
    """Every public name of a module, in the order of its list, documented where it is used from."""
    names = public_names(module)
    members = "".join(f"\n        - {name}" for name in names)
    return f"# {module}\n\n{MODULES[module]}\n\n::: {module}\n    options:\n      members:{members}\n"


def commands_page() -> str:
    """What every command takes, as its own ``--help`` says it."""
    lines = [
        "# The command line",
        "",
        "Read off the parsers when this page was built. `fit`, `validate`, `test` and `predict` are Lightning's: their",
        "options are the fields of the recipe, which [Recipes](recipes.md) prints, and those of Lightning's `Trainer`;",
        "`elm-neuro fit --help` lists them.",
        "",
    ]
    for prog, parser in _parsers(cli._parser()):
        lines += [f"## {prog}", "", "```text", parser.format_help().strip(), "```", ""]
    return "\n".join(lines)


def _parsers(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    """A parser and those of its commands, except those that Lightning declares when they run."""
    parser.formatter_class = _Wide
    found = [(parser.prog, parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                if name not in cli._training.COMMANDS:
                    found += _parsers(command)
    return found


class _Wide(argparse.RawDescriptionHelpFormatter):
    """The width of a page, wherever the site is built."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=96, max_help_position=30)


def recipes_page() -> str:
    """Every packaged recipe as it is, values with their sources."""
    folder = files("elm_neuro") / "training" / "recipes"
    lines = [
        "# Recipes",
        "",
        "What comes with the package, as it is: `elm-neuro fit --config NAME` runs one, and [Override a",
        "recipe](../how-to/recipes.md) says how to change a value or write one of your own. Comments name the source",
        "of a value.",
        "",
    ]
    for name, line in cli.recipes().items():
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8").strip()
        lines += [f"## {name}", "", f"{line}.", "", '??? note "The recipe"', "", "    ```yaml"]
        lines += [f"    {row}".rstrip() for row in text.splitlines()] + ["    ```", ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """All generated pages by their paths in docs/."""
    return {page_of(module): module_page(module) for module in MODULES} | {
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
    }
