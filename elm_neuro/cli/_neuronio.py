"""The commands elm-neuro neuronio and elm-neuro info."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def add_parsers(commands: Any) -> None:
    """Declare both commands."""
    neuronio = commands.add_parser("neuronio", help="convert, verify and evaluate on the NeuronIO data set")
    actions = neuronio.add_subparsers(dest="action", metavar="action", required=True)
    convert = actions.add_parser(
        "convert", help="turn its pickles into files that stream; goes on where it was stopped"
    )
    convert.add_argument(
        "paths",
        nargs="+",
        metavar="SRC... DST",
        help="files, or folders with *sim__*.p; the last one is the folder to write into",
    )
    convert.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes on this machine, about 1 GB each (default: 1)"
    )
    convert.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="scheduler of a Dask cluster that sees the same folders, in place of --workers",
    )
    convert.add_argument(
        "--format", choices=["hdf5", "npy"], default="hdf5", help="HDF5 files, or folders of .npy files (default: hdf5)"
    )
    verify = actions.add_parser("verify", help="read converted files whole and compare them with the manifest")
    verify.add_argument("destination", metavar="DST")
    evaluate = actions.add_parser("eval", help="the published figures of a neuron, and the honest ones beside them")
    evaluate.add_argument(
        "--model", required=True, metavar="DIR", help="folder of save_pretrained or of the authors, or a published name"
    )
    evaluate.add_argument(
        "--data", required=True, nargs="+", metavar="F", help="simulation files or converted ones, or folders of them"
    )
    evaluate.add_argument(
        "--window", type=int, default=500, metavar="MS", help="window of the published protocol (default: 500)"
    )
    evaluate.add_argument("--burn-in", type=int, default=150, metavar="MS", help="its burn-in (default: 150)")
    evaluate.add_argument(
        "--draws",
        type=int,
        default=200,
        metavar="N",
        help="of the bootstrap over simulations; 0 for none (default: 200)",
    )
    evaluate.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    evaluate.add_argument("--json", type=Path, metavar="F", help="file to write the figures to")
    evaluate.add_argument(
        "--figures", type=Path, metavar="DIR", help="folder to draw into: ROC, workings of the neuron, its branches"
    )
    info = commands.add_parser(
        "info",
        help="parameters of saved networks and FLOPs of ELM neurons, or those of the paper's networks for NeuronIO",
    )
    info.add_argument(
        "models", nargs="*", metavar="DIR", help="folder of save_pretrained or of the authors, or a published name"
    )


def neuronio_command(options: argparse.Namespace) -> int:
    """Convert, verify or evaluate."""
    return {"convert": _convert, "verify": _verify, "eval": _evaluate}[options.action](options)


def _convert(options: argparse.Namespace) -> int:
    if len(options.paths) < 2:
        raise ValueError(
            "convert needs at least one source and the folder to write into: elm-neuro neuronio convert SRC... DST"
        )

    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from elm_neuro.datasets import convert_neuronio, simulation_files

    if options.dask is not None and find_spec("distributed") is None:
        raise ImportError('--dask needs distributed: pip install "elm-neuro[dask]"')
    *sources, destination = options.paths
    files = [file for source in sources for file in simulation_files(source)]
    total, done = sum(file.stat().st_size for file in files), 0
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task("", total=total)

        def show(name: str, entry: Any, before: bool) -> None:
            nonlocal total, done
            done, total = done + 1, total - before * entry.source_bytes  # what was there before is no throughput
            progress.update(
                task,
                description=f"{done} of {len(files)} files",
                total=total,
                advance=(not before) * entry.source_bytes,
            )

        if options.dask is None:
            entries = convert_neuronio(
                sources, destination, format=options.format, num_workers=options.workers, progress=show
            )
        else:
            with import_module("distributed").Client(
                options.dask
            ) as client:  # untyped where it is installed, unknown where it is not
                entries = convert_neuronio(
                    sources, destination, format=options.format, executor=client.get_executor(), progress=show
                )
    simulations, written = (
        sum(entry.num_simulations for entry in entries.values()),
        sum(entry.bytes for entry in entries.values()),
    )
    print(f"{len(entries)} files with {simulations} simulations in {destination}, {written / 1e6:.1f} MB")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from elm_neuro.datasets import read_manifest, verify_neuronio

    wrong = verify_neuronio(options.destination)
    if wrong:
        raise ValueError("\n".join(["these files are not what the manifest says; convert again:", *wrong.values()]))
    print(f"{len(read_manifest(options.destination))} files are what the manifest says")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from elm_neuro.checkpoints import from_pretrained
    from elm_neuro.files import make_folder, write_whole
    from elm_neuro.training import (
        Windows,
        evaluation_remarks,
        evaluation_table,
        predict_protocols,
        summarise_protocols,
    )

    windows = Windows(options.window, options.burn_in)
    network = from_pretrained(options.model).to(options.device)
    files = [file for path in options.data for file in _neuronio_files(Path(path))]
    if options.figures is not None:
        make_folder(options.figures, "--figures")
    console = Console()
    with Progress(console=console, transient=True) as progress:
        tasks = {str(file): progress.add_task(file.name[-40:], total=None) for file in files}
        predictions = predict_protocols(
            network,
            files,
            windows=windows,
            progress=lambda file, done, total: progress.update(tasks[file], completed=done, total=total),
        )
    outcome = summarise_protocols(predictions, num_draws=options.draws)
    outcome["model"] = str(options.model)
    if options.json is not None:
        write_whole({options.json: json.dumps(outcome, indent=2).encode() + b"\n"})
    console.print(evaluation_table(outcome))
    for line in evaluation_remarks(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if options.figures is not None:
        from elm_neuro import plotting
        from elm_neuro.training import evaluation_figures

        figures = evaluation_figures(network, {Path(options.model).name: predictions}, files[0])
        for name, figure in figures.items():
            plotting.save(figure, options.figures / name)
        without = "" if "roc" in figures else "; no ROC, which needs spikes and steps without one"
        print(f"{', '.join(figures) or 'nothing'} (.png, .pdf) in {options.figures}{without}")
    return 0


def _neuronio_files(path: Path) -> list[Path]:
    """Converted files of a folder, or its pickles where there are none."""
    from elm_neuro.datasets import simulation_files
    from elm_neuro.datasets.neuronio._store import converted_files

    return converted_files(path) or simulation_files(path)


def info_command(options: argparse.Namespace) -> int:
    """Print parameters and FLOPs."""
    from rich.console import Console

    from elm_neuro.checkpoints import from_pretrained
    from elm_neuro.training.neuronio._tables import INFO_REMARK, info_table, paper_networks

    networks = (
        {str(model): (from_pretrained(model), None) for model in options.models} if options.models else paper_networks()
    )
    console = Console(width=None if sys.stdout.isatty() else 120)  # in a pipe the table is not folded
    console.print(info_table(networks))
    if not options.models:
        console.print(INFO_REMARK, highlight=False, markup=False)
    return 0
