"""The command elm-neuro demo: run the demonstration, write its report, verify its ONNX model."""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_neuro.files import remove_old_leftovers

if TYPE_CHECKING:
    from elm_neuro.demo import DemoSettings

SMOKE = {
    "num_epochs": 2,
    "num_train": 120,
    "num_test": 60,
    "num_hidden": 32,
    "num_memory": 10,
    "num_pairs": (128, 64, 64),
}


def add_parsers(commands: Any) -> None:
    """Declare the command."""
    demo = commands.add_parser(
        "demo", help="train a spiking network with an ELM layer to add spoken digits and write a report"
    )
    demo.description = (
        "Train a spiking network that mixes LIF and an ELM neuron, and a control of LIF neurons with as many "
        "parameters, to add two spoken digits, or to name one, on synthetic "
        "recordings (nothing is downloaded) or on SHD-format files; print test accuracies and write a report."
    )
    demo.add_argument(
        "--task",
        choices=["adding", "digits"],
        default="adding",
        help="add two digits that follow each other, or name one (default: adding)",
    )
    demo.add_argument(
        "--train-file", metavar="F", help="SHD-format file of training samples, in place of synthetic ones"
    )
    demo.add_argument("--test-file", metavar="F", help="SHD-format file of test samples")
    demo.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder with SHD/shd_train.h5 and SHD/shd_test.h5, or with both files directly",
    )
    demo.add_argument(
        "--held-out-speakers",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="speakers of --train-file who only test, where there is no --test-file",
    )
    demo.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="one run of both networks each (default: 0)"
    )
    demo.add_argument("--epochs", type=int, metavar="N", help="passes over the training samples")
    demo.add_argument(
        "--report",
        type=Path,
        default=Path("reports/demo"),
        metavar="DIR",
        help="folder of the report (default: reports/demo; where one is, reports/demo-2 and so on)",
    )
    demo.add_argument(
        "--cache-dir", metavar="DIR", help="folder where the synthetic samples are kept (default: in ~/.cache)"
    )
    demo.add_argument(
        "--smoke", action="store_true", help="a few samples and small networks, in seconds; the accuracies mean nothing"
    )
    demo.add_argument("--resume", action="store_true", help="go on from the checkpoints in the report folder")
    demo.set_defaults(usage_error=demo.error)


def demo_command(options: argparse.Namespace) -> int:
    """Train, test and write the report."""
    settings = _settings(options)
    if not options.resume:
        options.report = _free(options.report)
    _writable(options.report)
    remove_old_leftovers(options.report / "checkpoints")

    from rich.console import Console

    from elm_neuro.demo import (
        metrics_of,
        run_demo,
        table_of,
        verdict,
        write_figures,
        write_neuron,
        write_report,
    )

    console = Console()
    start = time.perf_counter()
    try:
        runs = run_demo(settings, options.report, console=console, resume=options.resume)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C; Lightning makes the second of the first
        folder = options.report / "checkpoints"
        again = f"the same command with --report {options.report} --resume"
        kept = f"the last whole epochs are in {folder}: run {again} to go on from there"
        print(
            "\nelm-neuro: interrupted; "
            + (kept if any(folder.glob("[!.]*.ckpt")) else "no epoch was whole, nothing is kept"),
            file=sys.stderr,
        )
        raise
    write_figures(runs, settings, options.report)
    neuron = write_neuron(runs, options.report)
    metrics: dict[str, Any] = metrics_of(runs, settings, seconds=time.perf_counter() - start)
    metrics["onnx"] = _onnx(neuron, options.report)
    write_report(metrics, options.report)
    console.print(table_of(metrics))
    console.print(verdict(metrics), highlight=False, soft_wrap=True)
    if metrics["data"]["synthetic"]:
        console.print(
            "The data are synthetic: these are not accuracies on SHD or on recorded speech.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"ONNX: {metrics['onnx']['outcome']}", highlight=False, soft_wrap=True)
    console.print(
        f"Report: {options.report / 'report.md'} ({metrics['seconds']:.0f} s)", highlight=False, soft_wrap=True
    )
    return 0


def _settings(options: argparse.Namespace) -> DemoSettings:
    train, test, held_out = options.train_file, options.test_file, tuple(options.held_out_speakers)
    if options.data_dir is not None:
        if train or test:
            options.usage_error("--data-dir goes without --train-file and --test-file")
        train, test = _shd_files(Path(options.data_dir))
    if test and not train:
        options.usage_error("--test-file needs --train-file")
    if held_out and (test or not train):
        options.usage_error("--held-out-speakers goes with a --train-file that has no test file beside it")
    if train and not test and not held_out and options.task == "digits":
        options.usage_error("--train-file needs --test-file, or --held-out-speakers to test on")
    if options.epochs is not None and options.epochs < 1:
        options.usage_error(f"--epochs must be at least 1, got {options.epochs}")
    if min(options.seeds) < 0:
        options.usage_error(f"--seeds must not be negative, got {min(options.seeds)}")
    if max(options.seeds) >= 2**32:  # what Lightning takes
        options.usage_error(f"--seeds must be below 2**32, got {max(options.seeds)}")
    from elm_neuro.datasets.shd._recordings import where_shd_is

    for path in (train, test):
        if path and not os.path.isfile(path):
            place = os.path.dirname(path) or "this folder"
            raise FileNotFoundError(
                f"{path} must be an SHD-format HDF5 file, but there is no such file: {where_shd_is(place)}"
            )

    from elm_neuro.demo import ADDING_SETTINGS, DemoSettings

    changes: dict[str, Any] = {
        **(ADDING_SETTINGS if options.task == "adding" else {}),
        **(SMOKE if options.smoke else {}),
    }
    if options.epochs is not None:
        changes["num_epochs"] = options.epochs
    seeds = tuple(dict.fromkeys(options.seeds))
    return DemoSettings(
        train_file=train, test_file=test, held_out=held_out, seeds=seeds, cache_dir=options.cache_dir, **changes
    )


def _shd_files(folder: Path) -> tuple[str, str]:
    for place in (folder / "SHD", folder):
        train, test = place / "shd_train.h5", place / "shd_test.h5"
        if train.is_file() and test.is_file():
            return str(train), str(test)
    from elm_neuro.datasets.shd._recordings import where_shd_is

    raise FileNotFoundError(
        f"--data-dir must hold shd_train.h5 and shd_test.h5, or SHD/ with both, got {folder}: {where_shd_is(folder)}"
    )


def _free(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3, ... that holds no demonstration: none is written over."""
    place, number = folder, 1
    while (place / "checkpoints").exists() or (place / "metrics.json").exists():
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    if place != folder:
        print(f"elm-neuro: {folder} holds a demonstration already, this one goes to {place}", file=sys.stderr)
    return place


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"--report must be a folder that can be written, got {folder}: {error.strerror}") from error


def _onnx(neuron: Path, report: Path) -> dict[str, Any]:
    """Export one step of the trained neuron and run it in onnxruntime; says so where the extra is missing."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        return {"file": None, "outcome": f'not written, {", ".join(missing)} missing: pip install "elm-neuro[onnx]"'}

    from elm_neuro.checkpoints import from_pretrained
    from elm_neuro.export.onnx import to_onnx, verify

    path, module = report / "elm_step.onnx", from_pretrained(neuron)
    to_onnx(module, path, form="step", verify=False)
    compared = verify(path, module)
    error = max(compared.errors.values())
    outcome = f"{path.name} verified with onnxruntime over {compared.num_steps} steps, at most {error:.1e} off torch"
    return {"file": path.name, "outcome": outcome, "errors": compared.errors, "opset": compared.opset}
