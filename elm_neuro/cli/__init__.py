"""The command elm-neuro: training by recipes, looking at neurons, the demonstration, data, models and ONNX, a file
each.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

from elm_neuro import __version__
from elm_neuro.cli import _demo, _look, _lra, _models, _neuronio, _onnx, _training
from elm_neuro.cli._training import recipes

__all__ = ["main", "recipes"]

INTERRUPTED = 130  # what a shell gives for a command that Ctrl-C ended
FAILURES = (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError, UnpicklingError, BadZipFile)
RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "recipes": lambda _: _training.recipes_command(),
    "demo": _demo.demo_command,
    "export": _onnx.export_command,
    "onnx": _onnx.onnx_command,
    "neuronio": _neuronio.neuronio_command,
    "info": _neuronio.info_command,
    "lra": _lra.lra_command,
    "look": _look.look_command,
    "models": _models.models_command,
    "push": _models.push_command,
}
EXTRAS = {  # what brings an optional library
    "filelock": "data",
    "h5py": "data",
    "PIL": "data",
    "sklearn": "data",
    "jsonargparse": "train",
    "lightning": "train",
    "matplotlib": "train",
    "rich": "train",
    "torchmetrics": "train",
    "yaml": "train",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}
EXTRAS_WITH_RICH = {"export": "onnx", "lra": "data", "neuronio": "data"}  # of commands that do without "train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for what could not be done, 2 for wrong arguments, 130 after
    Ctrl-C, 143 after SIGTERM while it trained.

    Args:
        argv: arguments without the command's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # what an old locale cannot write is replaced
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        if arguments and arguments[0] in _training.COMMANDS:
            return _training.training_command(arguments)
        parser = _parser()
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        return RUN[options.command](options)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and not isinstance(end.__context__, KeyboardInterrupt):
            raise  # with such a one Lightning leaves after Ctrl-C
        if arguments[0] not in (*_training.COMMANDS, "demo"):  # which say what they keep
            print("\nelm-neuro: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        return _fail(_with_extra(error, arguments[0]))
    except FAILURES as error:
        return _fail(error)
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":  # Lightning's, which is not imported for its sake
            raise
        return _fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elm-neuro", description="Networks with the Expressive Leaky Memory neuron: train, test, demonstrate."
    )
    parser.add_argument("--version", action="version", version=f"elm-neuro {__version__}")
    commands: Any = parser.add_subparsers(dest="command", metavar="command")
    for part in (_training, _onnx, _look, _demo, _neuronio, _lra, _models):
        part.add_parsers(commands)
    return parser


def _with_extra(error: ModuleNotFoundError, command: str) -> ImportError:
    """The error with the extra that brings the library, where one does."""
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS:
        return error
    extra = EXTRAS_WITH_RICH.get(command, EXTRAS["rich"]) if library == "rich" else EXTRAS[library]
    return ImportError(f'elm-neuro {command} needs {library}: pip install "elm-neuro[{extra}]"')


def _fail(error: Exception) -> int:
    """Print one line, whatever number of them the error has."""
    message = " ".join(str(error).split()) or type(error).__name__
    if "torchvision" in message and isinstance(error, RuntimeError):
        message += (
            ": torchvision is of another build than torch; install both from the same index, or remove torchvision"
        )
    if isinstance(error, MemoryError):
        message = f"there is not enough memory: {message}"
    print(f"elm-neuro: error: {message}", file=sys.stderr)
    return 1
