"""Training speed where users stand: the recipe shd_adding_elm in Lightning beside the authors' loop, loader and neuron,
interleaved.

    taskset -c 1 python benchmarks/fit_speed.py [--upstream CHECKOUT] [--file SHD.h5] [--backends native torch]
    [--updates 200] [--repeats 5]
                                                [--json FILE] [--smoke]

Both train the paper's neuron (700 inputs, 100 memory units, T = 200) from the same weights on pairs of the same digits:
batches of 8 at 10 ms, input dropout 0.5, cross entropy on the last output, Adamax with a cosine, float32. Ours is what
``elm-neuro fit`` runs: data module, Lightning module and Trainer, its metrics included. Rates are by processor time
inside the training loop; the loader's share is that of the wall time in which the loop waits for its next batch. The
authors' side (``--upstream``, a checkout of github.com/AaronSpieler/elmneuron at 52e68a6) is their loader and their
TorchScript neuron in the loop of their notebook. Before anything is timed both neurons have to give the same logits, on
each backend that ``--backends`` names. Without ``--file`` the digits are synthetic.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from arguments import count, writable
from lightning.pytorch.profilers import SimpleProfiler
from neuron_speed import OUTPUT_TOLERANCE
from peers import load_upstream, upstream_twin
from raster_speed import BATCH_SIZE, authors_loader
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import elm_neuro
from elm_neuro import ELM, backends
from elm_neuro.datasets import SpikeRecordings, SpokenDigits, read_shd
from elm_neuro.files import write_whole
from elm_neuro.training import Binning, SequenceClassifier, SHDAddingDataModule, SpikeClassification, quiet

BIN_MS, DROPOUT, LEARNING_RATE = 10.0, 0.5, 5e-3
WAITING = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's name of the wait for a batch


def make_neuron(backend: str = "auto") -> ELM:
    """The neuron of the recipe, with the synaptic weights learned as the authors' always are."""
    torch.manual_seed(0)
    times = {"delta_t": BIN_MS, "tau_m_init": (1.0, 150.0), "tau_m_spacing": "linear", "tau_m_bounds": (0.0, 1000.0)}
    return ELM(700, 19, num_memory=100, backend=backend, **times)


class Clock(lightning.Callback):
    """From the first batch's start to the last batch's end: processor time and wall time."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.start = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.end = time.process_time(), time.perf_counter()


def ours(source: Any, updates: int, backend: str) -> dict[str, float]:
    module = SpikeClassification(
        SequenceClassifier(make_neuron(backend)),
        num_classes=19,
        optimizer="adamax",
        learning_rate=LEARNING_RATE,
        input_dropout=DROPOUT,
    )
    data = SHDAddingDataModule(
        source, num_pairs=(updates * BATCH_SIZE, 8, 8), binning=Binning(bin_ms=BIN_MS), batch_size=BATCH_SIZE
    )
    clock, profiler = Clock(), SimpleProfiler()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[clock], profiler=profiler, logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    spent, passed = (end - start for start, end in zip(clock.start, clock.end, strict=True))
    return {"seconds": spent, "waiting": sum(profiler.recorded_durations[WAITING][1:]) / passed}


def theirs(neuron: nn.Module, loader: Any) -> dict[str, float]:
    optimizer = torch.optim.Adamax(neuron.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(loader))
    right, losses, waiting, batches = 0, 0.0, 0.0, iter(loader)
    start = time.process_time(), time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waiting += time.perf_counter() - asked
        if batch is None:
            spent, passed = time.process_time() - start[0], time.perf_counter() - start[1]
            return {"seconds": spent, "waiting": waiting / passed, "loss": losses, "right": float(right)}
        x, sums = batch
        x.masked_fill_(torch.rand_like(x) < DROPOUT, 0.0)
        optimizer.zero_grad()
        logits = neuron(x)[:, -1]
        loss = F.cross_entropy(logits, sums)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses += loss.item()
        right += int((logits.argmax(-1) == sums).sum())


def check(neuron: ELM, twin: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, actual = twin(x), neuron(x)[0]
    error = float((actual - expected).abs().max() / expected.abs().max())
    if not error <= OUTPUT_TOLERANCE:
        raise SystemExit(f"the two neurons differ by {error:.1e}: no speed is reported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--file", type=Path, help="an SHD-format file")
    parser.add_argument(
        "--backends", nargs="+", default=["auto"], choices=["auto", *backends.available()], help="of our neuron"
    )
    parser.add_argument("--updates", type=count, default=200, help="of the weights in each run")
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--json", type=writable, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="few updates, in seconds")
    args = parser.parse_args()
    updates, repeats = (3, 1) if args.smoke else (args.updates, args.repeats)
    torch.set_num_threads(args.threads)
    digits = SpokenDigits("train", 60 if args.smoke else 1440, seed=0)
    source: Any = args.file or digits
    recordings: SpikeRecordings = read_shd(args.file) if args.file else digits.recordings()

    names = {backend: backends.resolve(backend) for backend in args.backends}
    runs: dict[str, Any] = {
        f"elm-neuro fit, {name}": partial(ours, source, updates, backend) for backend, name in names.items()
    }
    if args.upstream is not None:
        upstream, loader = load_upstream(args.upstream), authors_loader(args.upstream, recordings, updates)
        for backend in args.backends:
            check(make_neuron(backend), upstream_twin(upstream, make_neuron()), next(iter(loader))[0])
        runs["authors' loop"] = lambda: theirs(
            upstream_twin(upstream, make_neuron()), authors_loader(args.upstream, recordings, updates)
        )
    results_of: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):  # the first warms up
        for name, run in runs.items():
            with quiet():
                result = run()
            if repeat or args.smoke:
                results_of[name].append(result)
    pairs = updates * BATCH_SIZE
    settings = (
        f"torch {torch.__version__}, lightning {lightning.__version__}, {platform.machine()}, {args.threads} thread(s)"
    )
    table = Table(
        "run",
        "pairs/s",
        "range",
        "waits for data",
        title=f"SHD-Adding, ELM 700 -> 100, batches of {BATCH_SIZE}, 10 ms; {settings}",
    )
    for name, results in results_of.items():
        rates = [pairs / result["seconds"] for result in results]
        share = statistics.median(result["waiting"] for result in results)
        table.add_row(name, f"{statistics.median(rates):.0f}", f"{min(rates):.0f} to {max(rates):.0f}", f"{share:.1%}")
    Console().print(table)
    if args.json:
        words = {
            "settings": settings,
            "elm_neuro": elm_neuro.__version__,
            "digits": str(args.file or digits),
            "pairs": pairs,
            "runs": results_of,
        }
        write_whole({args.json: json.dumps(words, indent=1).encode() + b"\n"})


if __name__ == "__main__":
    main()
