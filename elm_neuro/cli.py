"""The command elm-neuro: training by recipes, the demonstration, NeuronIO, the list of recipes."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_neuro import __version__

if TYPE_CHECKING:
    from elm_neuro.training._demo import DemoSettings

LIGHTNING = {
    "fit": "train a network by a recipe",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint: accuracy over seen and unseen speakers",
    "predict": "class probabilities of a checkpoint for the test samples, as a table",
}
INTERRUPTED = 130  # what a shell gives for a command that Ctrl-C ended
SMOKE = {"num_epochs": 2, "num_train": 120, "num_test": 60, "num_hidden": 32, "num_memory": 10, "num_pairs": (128, 64, 64)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for what could not be done, 2 for wrong arguments, 130 after Ctrl-C.

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
    if options.command == "neuronio":
        return {"convert": _convert, "verify": _verify, "eval": _evaluate}[options.action](options)
    if options.command == "info":
        return _info(options)
    parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="elm-neuro", description="Networks with the Expressive Leaky Memory neuron: train, test, demonstrate.")
    parser.add_argument("--version", action="version", version=f"elm-neuro {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, line in LIGHTNING.items():
        commands.add_parser(name, help=f"{line} (elm-neuro {name} --config RECIPE; --help lists the options)")
    commands.add_parser("recipes", help="list the recipes that come with the package")
    demo = commands.add_parser("demo", help="train a spiking network with an ELM layer on spoken digits and write a report")
    demo.description = (
        "Train a spiking network that mixes LIF and an ELM neuron, and a control of LIF neurons with as many parameters, on synthetic "
        "spoken digits (nothing is downloaded) or on SHD-format files; print test accuracies and write a report."
    )
    demo.add_argument("--task", choices=["digits", "adding"], default="digits", help="name the digit, or add two (default: digits)")
    demo.add_argument("--train-file", metavar="F", help="SHD-format file of training samples, in place of synthetic ones")
    demo.add_argument("--test-file", metavar="F", help="SHD-format file of test samples")
    demo.add_argument("--data-dir", metavar="DIR", help="folder with SHD/shd_train.h5 and SHD/shd_test.h5, or with both files directly")
    demo.add_argument(
        "--held-out-speakers",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="speakers of --train-file who only test, where there is no --test-file",
    )
    demo.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one run of both networks each (default: 0)")
    demo.add_argument("--epochs", type=int, metavar="N", help="passes over the training samples")
    demo.add_argument("--report", type=Path, default=Path("reports/demo"), metavar="DIR", help="folder of the report (default: reports/demo)")
    demo.add_argument("--cache-dir", metavar="DIR", help="folder where the synthetic samples are kept (default: in ~/.cache)")
    demo.add_argument("--smoke", action="store_true", help="a few samples and small networks, in seconds; the accuracies mean nothing")
    demo.add_argument("--resume", action="store_true", help="go on from the checkpoints in the report folder")
    _neuronio_parser(commands)
    info = commands.add_parser("info", help="parameters and FLOPs of neurons, or of all networks that the paper trains on NeuronIO")
    info.add_argument("models", nargs="*", metavar="DIR", help="folder of save_pretrained or of an upstream checkpoint")
    return parser


def _neuronio_parser(commands: Any) -> None:
    neuronio = commands.add_parser("neuronio", help="convert, verify and evaluate on the NeuronIO data set")
    actions = neuronio.add_subparsers(dest="action", metavar="action", required=True)
    convert = actions.add_parser("convert", help="turn its pickles into files that stream; goes on where it was stopped")
    convert.add_argument("paths", nargs="+", metavar="SRC... DST", help="files, or folders with *sim__*.p; the last one is the folder to write into")
    convert.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine, about 1 GB each (default: 1)")
    convert.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster that sees the same folders, in place of --workers")
    verify = actions.add_parser("verify", help="read converted files whole and compare them with the manifest")
    verify.add_argument("destination", metavar="DST")
    evaluate = actions.add_parser("eval", help="the published figures of a neuron, and the honest ones beside them")
    evaluate.add_argument("--model", required=True, metavar="DIR", help="folder of save_pretrained or of an upstream checkpoint")
    evaluate.add_argument("--data", required=True, nargs="+", metavar="F", help="simulation files or converted ones, or folders of them")
    evaluate.add_argument("--window", type=int, default=500, metavar="MS", help="window of the published protocol (default: 500)")
    evaluate.add_argument("--burn-in", type=int, default=150, metavar="MS", help="its burn-in (default: 150)")
    evaluate.add_argument("--draws", type=int, default=200, metavar="N", help="of the bootstrap over simulations; 0 for none (default: 200)")
    evaluate.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    evaluate.add_argument("--json", type=Path, metavar="F", help="file to write the figures to")


def recipes() -> dict[str, str]:
    """Names of the packaged recipes, each with the first line of its file."""
    folder = files("elm_neuro") / "training" / "recipes"
    found = sorted((entry.name, entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): text.partition("\n")[0].lstrip("# ") for name, text in found}


def _lightning(arguments: list[str]) -> None:
    """Hand the command to LightningCLI, with recipes by their names and --resume."""
    from lightning.pytorch.cli import LightningCLI

    from elm_neuro.training import NeuronIODataModule, NeuronIORegression, SHDDataModule, SpikeClassification
    from elm_neuro.training._quiet import without_advice

    _check_checkpoint(arguments)
    resolved = _resolved(arguments)
    model, data = (NeuronIORegression, NeuronIODataModule) if _is_neuronio(resolved) else (SpikeClassification, SHDDataModule)
    with without_advice():
        LightningCLI(
            model,
            data,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "elm-neuro"},
            args=resolved,
        )


def _check_checkpoint(arguments: list[str]) -> None:
    """Refuse to evaluate a network that was never trained, and checkpoint files that are damaged or hold more than weights and settings."""
    import torch

    given = [path for before, argument in itertools.pairwise(["", *arguments]) if (path := _option("--ckpt_path", before, argument))]
    if arguments[0] != "fit" and not given and not {"-h", "--help", "--print_config"} & set(arguments):
        raise ValueError(f"{arguments[0]} needs --ckpt_path CHECKPOINT, the network to {arguments[0]}")
    for path in given:
        if not os.path.isfile(path):
            continue  # "last", "best", or a path that Lightning names
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can fail in any way; weights_only runs nothing of it
            raise ValueError(f"--ckpt_path must be a whole checkpoint of weights and settings, got {path}, which torch.load refuses") from error


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
    files = [path for before, argument in itertools.pairwise(["", *arguments]) for path in (argument, _option("--config", before, argument))]
    texts = [Path(path).read_text(encoding="utf-8") for path in files if path.endswith((".yaml", ".yml")) and os.path.isfile(path)]
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

    from elm_neuro.training._demo import run_demo
    from elm_neuro.training._report import metrics_of, table_of, verdict, write_figures, write_neuron, write_report

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
        console.print("The data are synthetic: these are not accuracies on SHD or on recorded speech.", highlight=False, soft_wrap=True)
    console.print(f"ONNX: {metrics['onnx']['outcome']}", highlight=False, soft_wrap=True)
    console.print(f"Report: {options.report / 'report.md'} ({metrics['seconds']:.0f} s)", highlight=False, soft_wrap=True)
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

    from elm_neuro.training._demo import ADDING_SETTINGS, DemoSettings

    changes: dict[str, Any] = {**(ADDING_SETTINGS if options.task == "adding" else {}), **(SMOKE if options.smoke else {})}
    if options.epochs is not None:
        changes["num_epochs"] = options.epochs
    seeds = tuple(dict.fromkeys(options.seeds))
    return DemoSettings(train_file=train, test_file=test, held_out=held_out, seeds=seeds, cache_dir=options.cache_dir, **changes)


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


def _convert(options: argparse.Namespace) -> int:
    if len(options.paths) < 2:
        raise ValueError("convert needs at least one source and the folder to write into: elm-neuro neuronio convert SRC... DST")

    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from elm_neuro.datasets import convert_neuronio, simulation_files

    if options.dask is not None and find_spec("distributed") is None:
        raise ImportError('--dask needs distributed: pip install "elm-neuro[dask]"')
    *sources, destination = options.paths
    files = [file for source in sources for file in simulation_files(source)]
    total, done = sum(file.stat().st_size for file in files), 0
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=total)

        def show(name: str, entry: Any, before: bool) -> None:
            nonlocal total, done
            done, total = done + 1, total - before * entry.source_bytes  # what was there before is no throughput
            progress.update(task, description=f"{done} of {len(files)} files", total=total, advance=(not before) * entry.source_bytes)

        if options.dask is None:
            found = convert_neuronio(sources, destination, num_workers=options.workers, progress=show)
        else:
            from distributed import Client

            with Client(options.dask) as client:
                found = convert_neuronio(sources, destination, executor=client.get_executor(), progress=show)
    simulations, written = sum(entry.num_simulations for entry in found.values()), sum(entry.bytes for entry in found.values())
    print(f"{len(found)} files with {simulations} simulations in {destination}, {written / 1e6:.1f} MB")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from elm_neuro.datasets import read_manifest, verify_neuronio

    wrong = verify_neuronio(options.destination)
    if wrong:
        return _fail("\n".join(["these files are not what the manifest says; convert again:", *wrong.values()]))
    print(f"{len(read_manifest(options.destination))} files are what the manifest says")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from elm_neuro.training import Windows, evaluate_neuronio
    from elm_neuro.training._neuronio_report import evaluation_table, load_network, remarks

    windows = Windows(options.window, options.burn_in)
    network = load_network(options.model).to(options.device)
    files = [file for path in options.data for file in _neuronio_files(Path(path))]
    console = Console()
    with Progress(console=console, transient=True) as progress:
        tasks = {str(file): progress.add_task(file.name[-40:], total=None) for file in files}
        outcome = evaluate_neuronio(
            network,
            files,
            windows=windows,
            num_draws=options.draws,
            progress=lambda file, done, total: progress.update(tasks[file], completed=done, total=total),
        )
    outcome["model"] = str(options.model)
    if options.json is not None:
        from elm_neuro.checkpoints import write_atomically

        write_atomically({options.json: json.dumps(outcome, indent=2).encode() + b"\n"})
    console.print(evaluation_table(outcome))
    for line in remarks(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _neuronio_files(path: Path) -> list[Path]:
    """Converted files of a folder, or its pickles where there are none."""
    from elm_neuro.datasets import simulation_files

    converted = sorted(path.rglob("*sim__*.h5")) if path.is_dir() else []
    return converted or simulation_files(path)


def _info(options: argparse.Namespace) -> int:
    from rich.console import Console

    from elm_neuro.training._neuronio_report import info_table, load_network, paper_networks

    networks = {str(model): (load_network(model), None) for model in options.models} if options.models else paper_networks()
    Console().print(info_table(networks))
    return 0


def _fail(message: str) -> int:
    print(f"elm-neuro: error: {message}", file=sys.stderr)
    return 1


def _interrupted() -> int:
    print("\nelm-neuro: interrupted; the last whole epoch is kept: run the same command with --resume to go on", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
