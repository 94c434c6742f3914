"""The command elm-neuro: training by recipes and the demonstration; NeuronIO and ONNX have files of their own."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_neuro import __version__
from elm_neuro.cli import _neuronio as _neuronio_commands
from elm_neuro.cli import _onnx as _onnx_commands

if TYPE_CHECKING:
    from elm_neuro.demo._run import DemoSettings

LIGHTNING = {
    "fit": "train a network by a recipe",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint: accuracy over seen and unseen speakers",
    "predict": "class probabilities of a checkpoint for the test samples, as a table",
}
INTERRUPTED = 130  # what a shell gives for a command that Ctrl-C ended
SMOKE = {
    "num_epochs": 2,
    "num_train": 120,
    "num_test": 60,
    "num_hidden": 32,
    "num_memory": 10,
    "num_pairs": (128, 64, 64),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for what could not be done, 2 for wrong arguments, 130 after
    Ctrl-C.

    Args:
        argv: arguments without the command's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in LIGHTNING:
            _lightning(arguments)
            return 0
        return _own(arguments)
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # how Lightning leaves after Ctrl-C
            return _interrupted()
        raise
    except (OSError, ValueError, ImportError) as error:
        return _fail(str(error))


def _own(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "recipes":
        for name, line in recipes().items():
            print(f"{name:<32}{line}")
        return 0
    if options.command == "demo":
        return _demo(options, parser)
    if options.command == "export":
        return _onnx_commands.export_command(options)
    if options.command == "onnx":
        return _onnx_commands.onnx_command(options)
    if options.command == "neuronio":
        return _neuronio_commands.neuronio_command(options)
    if options.command == "info":
        return _neuronio_commands.info_command(options)
    parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elm-neuro", description="Networks with the Expressive Leaky Memory neuron: train, test, demonstrate."
    )
    parser.add_argument("--version", action="version", version=f"elm-neuro {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, line in LIGHTNING.items():
        commands.add_parser(name, help=f"{line} (elm-neuro {name} --config RECIPE; --help lists the options)")
    commands.add_parser("recipes", help="list the recipes that come with the package")
    _onnx_commands.add_parsers(commands)
    demo = commands.add_parser(
        "demo", help="train a spiking network with an ELM layer on spoken digits and write a report"
    )
    demo.description = (
        "Train a spiking network that mixes LIF and an ELM neuron, and a control of LIF neurons with as many parameters, on synthetic "
        "spoken digits (nothing is downloaded) or on SHD-format files; print test accuracies and write a report."
    )
    demo.add_argument(
        "--task", choices=["digits", "adding"], default="digits", help="name the digit, or add two (default: digits)"
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
        help="folder of the report (default: reports/demo)",
    )
    demo.add_argument(
        "--cache-dir", metavar="DIR", help="folder where the synthetic samples are kept (default: in ~/.cache)"
    )
    demo.add_argument(
        "--smoke", action="store_true", help="a few samples and small networks, in seconds; the accuracies mean nothing"
    )
    demo.add_argument("--resume", action="store_true", help="go on from the checkpoints in the report folder")
    _neuronio_commands.add_parsers(commands)
    info = commands.add_parser(
        "info", help="parameters and FLOPs of neurons, or of all networks that the paper trains on NeuronIO"
    )
    info.add_argument("models", nargs="*", metavar="DIR", help="folder of save_pretrained or of an upstream checkpoint")
    return parser


def recipes() -> dict[str, str]:
    """Names of the packaged recipes, each with the first line of its file."""
    folder = files("elm_neuro") / "training" / "recipes"
    found = sorted(
        (entry.name, entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )
    return {name.removesuffix(".yaml"): text.partition("\n")[0].lstrip("# ") for name, text in found}


def _lightning(arguments: list[str]) -> None:
    """Hand the command to LightningCLI, with recipes by their names and --resume."""
    from lightning.pytorch.cli import LightningCLI

    from elm_neuro.training import NeuronIODataModule, NeuronIORegression, SHDDataModule, SpikeClassification
    from elm_neuro.training.loop._progress import EpochLines
    from elm_neuro.training.loop._quiet import without_advice

    _check_checkpoint(arguments)
    resolved = _resolved(arguments)
    model, data = (
        (NeuronIORegression, NeuronIODataModule) if _is_neuronio(resolved) else (SpikeClassification, SHDDataModule)
    )
    with without_advice():
        LightningCLI(
            model,
            data,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [EpochLines()]},
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "elm-neuro"},
            args=resolved,
        )


def _check_checkpoint(arguments: list[str]) -> None:
    """Refuse to evaluate a network that was never trained, and checkpoint files that are damaged or hold more than weights and settings."""
    import torch

    given = [
        path
        for before, argument in itertools.pairwise(["", *arguments])
        if (path := _option("--ckpt_path", before, argument))
    ]
    if arguments[0] != "fit" and not given and not {"-h", "--help", "--print_config"} & set(arguments):
        raise ValueError(f"{arguments[0]} needs --ckpt_path CHECKPOINT, the network to {arguments[0]}")
    for path in given:
        if not os.path.isfile(path):
            continue  # "last", "best", or a path that Lightning names
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can fail in any way; weights_only runs nothing of it
            raise ValueError(
                f"--ckpt_path must be a whole checkpoint of weights and settings, got {path}, which torch.load refuses"
            ) from error


def _option(name: str, before: str, argument: str) -> str:
    return argument if before == name else argument.partition("=")[2] if argument.startswith(f"{name}=") else ""


def _resolved(arguments: list[str]) -> list[str]:
    resolved = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, _, value = argument.partition("=")
        if before in ("--config", "-c"):
            argument = _recipe(argument)
        elif key == "--config" and value:
            argument = f"--config={_recipe(value)}"
        elif argument == "--resume":
            argument = "--ckpt_path=last"
        resolved.append(argument)
    return resolved


def _is_neuronio(arguments: list[str]) -> bool:
    """Whether a recipe or an argument names the data module of NeuronIO."""
    files = [
        path
        for before, argument in itertools.pairwise(["", *arguments])
        for path in (argument, _option("--config", before, argument))
    ]
    texts = [
        Path(path).read_text(encoding="utf-8")
        for path in files
        if path.endswith((".yaml", ".yml")) and os.path.isfile(path)
    ]
    return any("NeuronIODataModule" in text for text in [*arguments, *texts])


def _recipe(name: str) -> str:
    if os.path.isfile(name):
        return name
    if name not in (known := recipes()):
        raise FileNotFoundError(f"--config must be a file or one of the recipes {', '.join(known)}, got {name}")
    return str(files("elm_neuro") / "training" / "recipes" / f"{name}.yaml")


def _demo(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    settings = _settings(options, parser)
    _writable(options.report)

    from rich.console import Console

    from elm_neuro.demo._report import metrics_of, table_of, verdict, write_figures, write_neuron, write_report
    from elm_neuro.demo._run import run_demo

    console = Console()
    start = time.perf_counter()
    runs = run_demo(settings, options.report, console=console, resume=options.resume)
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


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> DemoSettings:
    train, test, held_out = options.train_file, options.test_file, tuple(options.held_out_speakers)
    if options.data_dir is not None:
        if train or test:
            parser.error("--data-dir goes without --train-file and --test-file")
        train, test = _shd_files(Path(options.data_dir))
    if test and not train:
        parser.error("--test-file needs --train-file")
    if held_out and (test or not train):
        parser.error("--held-out-speakers goes with a --train-file that has no test file beside it")
    if train and not test and not held_out and options.task == "digits":
        parser.error("--train-file needs --test-file, or --held-out-speakers to test on")
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must not be negative, got {min(options.seeds)}")
    for path in (train, test):
        if path and not os.path.isfile(path):
            raise FileNotFoundError(f"{path} must be an SHD-format HDF5 file, but there is no such file")

    from elm_neuro.demo._run import ADDING_SETTINGS, DemoSettings

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
    raise FileNotFoundError(f"--data-dir must hold shd_train.h5 and shd_test.h5, or SHD/ with both, got {folder}")


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
    found = verify(path, module)
    error = max(found.errors.values())
    outcome = f"{path.name} verified with onnxruntime over {found.num_steps} steps, at most {error:.1e} off torch"
    return {"file": path.name, "outcome": outcome, "errors": found.errors, "opset": found.opset}


def _fail(message: str) -> int:
    print(f"elm-neuro: error: {message}", file=sys.stderr)
    return 1


def _interrupted() -> int:
    print(
        "\nelm-neuro: interrupted; the last whole epoch is kept: run the same command with --resume to go on",
        file=sys.stderr,
    )
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
