"""The commands elm-neuro models and elm-neuro push: published neurons, and a saved folder sent to the hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parsers(commands: Any) -> None:
    """Declare both commands."""
    models = commands.add_parser("models", help="the authors' published neurons: sizes, scores, model cards")
    models.add_argument("name", nargs="?", metavar="NAME", help="print this one's model card")
    models.add_argument("--markdown", action="store_true", help="print the page of the site with all of them")
    push = commands.add_parser("push", help="send a saved folder with its model card to the Hugging Face hub")
    push.add_argument("folder", type=Path, metavar="FOLDER", help="what save_pretrained wrote")
    push.add_argument("repository", metavar="USER/NAME", help="on the hub; made where there is no such repository")
    push.add_argument("--private", action="store_true", help="a repository that is made is seen by its owner only")
    push.add_argument("--message", default="Saved by elm_neuro", metavar="TEXT", help="of the commit")


def models_command(options: argparse.Namespace) -> int:
    """Print a table, a card or the page."""
    from elm_neuro.checkpoints import cards_page, list_pretrained, model_card

    if options.markdown or options.name is not None:
        print(cards_page() if options.markdown else model_card(options.name), end="")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Branch-ELM neurons trained on NeuronIO; scores of the authors", title_justify="left")
    for heading in ("name", "memory units", "parameters", "AUC", "RMSE (mV)", "explained variance (%)"):
        table.add_column(heading, justify="left" if heading == "name" else "right")
    for neuron in list_pretrained():
        test = neuron.test
        figures = f"{test.auc:.4f}", f"{test.soma_rmse_mv:.3f}", f"{test.soma_explained_variance_percent:.2f}"
        table.add_row(neuron.name, str(neuron.num_memory), f"{neuron.num_parameters:,}", *figures)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def push_command(options: argparse.Namespace) -> int:
    """Send the folder and say where it is."""
    from elm_neuro.checkpoints import push_to_hub

    if (options.folder / "model_config.json").is_file() and not (options.folder / "config.json").is_file():
        raise ValueError(
            f"FOLDER must be what save_pretrained wrote, got {options.folder}, a checkpoint of the authors: "
            "checkpoints.from_pretrained(FOLDER).save_pretrained(OTHER) makes one of it; their licence goes with it"
        )
    address = push_to_hub(options.folder, options.repository, private=options.private, message=options.message)
    print(f"{address}: checkpoints.from_pretrained({options.repository!r}) loads it")
    return 0
