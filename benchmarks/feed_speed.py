"""Samples a second by stage on the way to the device, so that it is seen whether the loader is what waits.

    python benchmarks/feed_speed.py [--neuronio FOLDER] [--workers 0 2 4] [--batches 200] [--json FILE] [--smoke]

Tasks: SHD-Adding (pairs of synthetic digits, ELM 700 -> 100) and, with ``--neuronio``, windows of NeuronIO as events
and as int8 frames (Branch-ELM 1278 -> 20). Stages, each by itself, batches of 8: made (samples read, paired, binned and
collated in this process), loaded (the data module's own DataLoader by number of workers; pinned where there is a GPU),
moved (to the device, waited for), step (forward and backward of the neuron on a batch that lies there). Bytes are what
crosses the bus. What trains is the slowest of loaded, moved and step. Without a GPU the device is the CPU, and only the
first two say something about one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from arguments import count, writable

from elm_neuro import ELM, BranchELM, SpikeEvents
from elm_neuro.datasets import SpokenDigits
from elm_neuro.training import Binning, NeuronIODataModule, SHDAddingDataModule

BATCH_SIZE = 8


def rate(act: Callable[[], Any], repeats: int) -> float:
    """Samples a second of `act`, which deals with one batch."""
    act()
    start = time.perf_counter()
    for _ in range(repeats):
        act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return BATCH_SIZE * repeats / (time.perf_counter() - start)


def num_bytes(x: SpikeEvents | torch.Tensor) -> int:
    """Of what is moved."""
    if isinstance(x, torch.Tensor):
        return x.nbytes
    return sum(part.nbytes for part in (x.indptr, x.channel, x.value) if part is not None)


def without_end(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def measure(name: str, make: Callable[[int], Any], neuron: ELM, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = make(0)
    data.prepare_data()  # pickles are converted once
    data.setup("fit")
    dataset, collate = data.part("train"), data.train_dataloader().collate_fn
    starts = without_end(range(0, max(1, len(dataset) - BATCH_SIZE), BATCH_SIZE))
    row: dict[str, Any] = {"task": name}

    def made() -> Any:
        begin = next(starts)
        return collate(dataset.__getitems__(range(begin, begin + BATCH_SIZE)))

    row["made"] = rate(made, options.batches)
    for workers in options.workers:
        module = make(workers)
        module.setup("fit")
        batches = without_end(module.train_dataloader())
        row[f"loaded, {workers} workers"] = rate(lambda batches=batches: next(batches), options.batches)
    batch = next(iter(data.train_dataloader()))

    def moved() -> Any:
        there = data.transfer_batch_to_device(batch, device, 0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return data.on_after_batch_transfer(there, 0)

    row["moved"], row["kB a sample"] = rate(moved, options.batches), num_bytes(batch[0]) / BATCH_SIZE / 1000
    x, neuron = moved()[0], neuron.to(device)

    def step() -> None:
        neuron.zero_grad(set_to_none=True)
        y = neuron(x)[0]
        with torch.autograd.set_multithreading_enabled(False):  # as in training
            y.sum().backward()

    row["step"] = rate(step, max(1, options.batches // 10))
    return row


def adding(workers: int, number: int) -> Any:
    digits = SpokenDigits("train", number, seed=0)
    return SHDAddingDataModule(
        digits, num_pairs=(10 * number, BATCH_SIZE, BATCH_SIZE), binning=Binning(bin_ms=10.0), batch_size=BATCH_SIZE,
        num_workers=workers,
    )  # fmt: skip


def neuronio(workers: int, folder: Path, output: Any) -> Any:
    return NeuronIODataModule(folder, valid=[], batch_size=BATCH_SIZE, output=output, num_workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neuronio", type=Path, metavar="FOLDER")
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2, 4])
    parser.add_argument("--batches", type=count, default=200)
    parser.add_argument("--json", type=writable)
    parser.add_argument("--smoke", action="store_true", help="seconds, figures of no use")
    options = parser.parse_args()
    if options.smoke:
        options.batches = 2
    torch.manual_seed(0)
    number = 60 if options.smoke else 1440
    rows = [measure("SHD-Adding, events", lambda workers: adding(workers, number), ELM(700, 20, 100), options)]
    for output in ("events", "int8") if options.neuronio else ():
        neuron = BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100)
        rows.append(
            measure(
                f"NeuronIO, {output}",
                lambda workers, output=output: neuronio(workers, options.neuronio, output),
                neuron,
                options,
            )
        )
    columns = list(rows[0])
    print(" | ".join(columns))
    for row in rows:
        print(" | ".join(row[column] if column == "task" else f"{row[column]:.0f}" for column in columns))
    if options.json:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        settings = {"gpu": device, "cpu": platform.processor(), "torch": torch.__version__, "batch": BATCH_SIZE}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
