"""Pages of the reference that are read off the package itself: the command line, the recipes and the public names."""

from __future__ import annotations

import argparse
import ast
from importlib.resources import files
from pathlib import Path

from elm_neuro import cli

ROOT = Path(__file__).resolve().parents[2]


def modules() -> list[str]:
    """Every public module that lists its names in ``__all__``: found on the disk, listed nowhere.

    >>> modules()[:3]
    ['elm_neuro', 'elm_neuro.adapters.norse', 'elm_neuro.adapters.snntorch']
    """
    found = []
    package = ROOT / "elm_neuro"
    folders = [package, *(folder for folder in package.rglob("*") if folder.is_dir())]
    folders += [package / name for name in ("adapters", "export")]  # links, which rglob does not follow
    for path in {path for folder in folders for path in folder.glob("*.py")}:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        source = ast.parse(path.read_text(encoding="utf-8"))
        if not any(part.startswith("_") for part in parts) and _list_of_names(source) is not None:
            found.append(".".join(parts))
    return sorted(found)


def _list_of_names(source: ast.Module) -> list[str] | None:
    for statement in source.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return None


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
    names = _list_of_names(ast.parse(source.read_text(encoding="utf-8")))
    if names is None:
        raise ValueError(f"{source} must have a list __all__, found none")
    return names


def module_page(module: str) -> str:
    """Every public name of a module, in the order of its list, documented where it is used from."""
    members = "".join(f"\n        - {name}" for name in public_names(module))
    return f"# {module}\n\n::: {module}\n    options:\n      members:{members}\n"


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
    return {page_of(module): module_page(module) for module in modules()} | {
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
    }
