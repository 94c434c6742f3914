"""The command elm-neuro look: figures and a page about any saved neuron."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any


def add_parsers(commands: Any) -> None:
    """Declare the command."""
    look = commands.add_parser("look", help="draw what is inside a saved neuron: figures, their numbers and one page")
    look.description = (
        "Draw time constants, receptive fields, the response to one spike at each branch, and the neuron at work, of a "
        "folder of save_pretrained, a checkpoint of the authors' repository or one of their neurons by its name, a "
        "model on the Hugging Face Hub, or a checkpoint of elm-neuro fit."
    )
    look.add_argument("checkpoint", metavar="CHECKPOINT")
    look.add_argument(
        "--data",
        metavar="F",
        help="NeuronIO or SHD-format file that drives it (default: Poisson spikes, made with a seed)",
    )
    look.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder to write into (default: reports/look/ and the checkpoint's name)",
    )
    look.add_argument(
        "--index",
        type=int,
        metavar="N",
        help="simulation or sample of --data (default: that with most spikes, or the first)",
    )
    look.add_argument("--duration", type=float, metavar="MS", help="how long it is driven (default: 1 to 2 s)")
    look.add_argument("--rate", type=float, metavar="HZ", help="of each channel's made spikes (default: 10)")
    look.add_argument("--seed", type=int, default=0, metavar="N", help="of the made spikes (default: 0)")
    look.add_argument("--neuron", type=int, default=0, metavar="N", help="of a population, which one (default: 0)")
    look.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="whose classes the checkpoint may name, besides those of elm_neuro: their code is run",
    )


def look_command(options: argparse.Namespace) -> int:
    """Draw, and say where."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from elm_neuro.cli._stored import load
    from elm_neuro.look import look
    from elm_neuro.look._input import RATE_HZ

    if options.data is not None and options.rate is not None:
        raise ValueError("--rate goes without --data, whose spikes are not made")
    if options.data is None and options.index is not None:
        raise ValueError(f"--index goes with --data, got {options.index} without it")
    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("reading the checkpoint", total=None)
        module, _ = load(options.checkpoint, tuple(options.trust))
        name = _name(options.checkpoint)
        page = look(
            module,
            options.out or Path("reports/look") / re.sub(r"[^\w.-]+", "_", name),
            name=name,
            data=options.data,
            index=options.index,
            duration_ms=options.duration,
            rate_hz=RATE_HZ if options.rate is None else options.rate,
            seed=options.seed,
            neuron=options.neuron,
            progress=lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
        )
    figures = sorted(path.stem for path in page.parent.glob("[!.]*.png"))  # none that was left half written
    print(f"{page}: {', '.join(figures)} (.png, .pdf), their numbers in numbers.npz")
    return 0


def _name(checkpoint: str) -> str:
    """What the page is called: the folder's name, that of the run for a checkpoint within one, or the id on the hub."""
    path = Path(checkpoint)
    if path.is_file():
        return f"{path.resolve().parent.name}, {path.stem}"
    return path.resolve().name if path.is_dir() else checkpoint
