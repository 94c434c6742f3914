"""Settings of the demonstration: both networks over the same grid, validated on training speakers who are held out in
turn.

python benchmarks/tune_demo.py --jobs 2
python benchmarks/tune_demo.py --smoke

The test set is never looked at. What wins is written by hand into `TUNED` of elm_neuro/demo/_settings.py.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from dataclasses import asdict

import torch
from arguments import count
from rich.console import Console
from rich.table import Table

from elm_neuro.demo import CONTROL, MIXED, DemoSettings, Tuned, build, data_module, quiet_trainer
from elm_neuro.training import quiet

GRID = {"bin_ms": [10.0, 20.0], "learning_rate": [3e-3, 1e-2, 2e-2], "input_dropout": [0.3, 0.5]}
FOLDS = [[2, 7], [0, 9]]  # speakers held out


def validate(job: tuple[str, Tuned, list[int], DemoSettings]) -> float:
    """Accuracy on the held-out speakers after the last epoch."""
    name, tuned, fold, settings = job
    torch.set_num_threads(1)
    data = data_module(settings, bin_ms=tuned.bin_ms, seed=0, valid=fold)
    module = build(name, settings, num_channels=data.num_channels, seed=0, tuned=tuned)
    with quiet():
        trainer = quiet_trainer(settings.num_epochs, [])
        trainer.fit(module, datamodule=data)
    return float(trainer.callback_metrics["valid/accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=count, default=2, help="processes")
    parser.add_argument("--epochs", type=count, default=15)
    parser.add_argument("--cache-dir", help="folder of the synthetic samples")
    parser.add_argument(
        "--smoke", action="store_true", help="two settings, one epoch, few samples; the accuracies mean nothing"
    )
    arguments = parser.parse_args()
    grid = {name: values[:1] for name, values in GRID.items()} if arguments.smoke else GRID
    sizes = {"num_train": 120, "num_test": 60} if arguments.smoke else {}
    settings = DemoSettings(
        num_epochs=1 if arguments.smoke else arguments.epochs, cache_dir=arguments.cache_dir, **sizes
    )
    data_module(settings, bin_ms=10.0, seed=0).prepare_data()
    points = [Tuned(**dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    jobs = [(name, tuned, fold, settings) for tuned in points for name in (MIXED, CONTROL) for fold in FOLDS]
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        scores = dict(
            zip([(name, tuned, tuple(fold)) for name, tuned, fold, _ in jobs], pool.imap(validate, jobs), strict=True)
        )
    run = f"mean of {len(FOLDS)} folds, {settings.num_epochs} epochs, seed 0"
    table = Table(title=f"Accuracy on held-out training speakers, {run}")
    for column in (*grid, MIXED, CONTROL):
        table.add_column(column, justify="right")
    mean = {
        (name, tuned): sum(scores[name, tuned, tuple(fold)] for fold in FOLDS) / len(FOLDS)
        for name in (MIXED, CONTROL)
        for tuned in points
    }
    for tuned in points:
        table.add_row(
            *(f"{value:g}" for value in asdict(tuned).values()),
            *(f"{mean[name, tuned]:.1%}" for name in (MIXED, CONTROL)),
        )
    console = Console(width=100)
    console.print(table)
    for name in (MIXED, CONTROL):
        best = max(points, key=lambda tuned: mean[name, tuned])
        console.print(f"{name}: {best}, {mean[name, best]:.1%}", highlight=False)
    console.print(f"{time.perf_counter() - start:.0f} s with {arguments.jobs} processes", highlight=False)


if __name__ == "__main__":
    main()
