"""Options that the benchmarks have in common, refused at the start where a long measurement would end in vain."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def count(text: str) -> int:
    """How often, or how many: at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def writable(path: str) -> Path:
    """A file to be written at the end of a long measurement: its folder has to be there at the start."""
    if not Path(path).parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of a result must exist, got {path}")
    return Path(path)


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Refuse a GPU where torch sees none."""
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees; there is none here")
