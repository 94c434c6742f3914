"""One update of each task of Long Range Arena at full size: the paper's ELM beside its Chrono-LSTM on nn.LSTM, with the
loader's share.

    taskset -c 1 python benchmarks/lra_speed.py [--tasks listops text] [--batch 16] [--repeats 3] [--json FILE]
    [--smoke]

Networks, optimizer and sequence lengths are those of the recipes lra_* (150 memory units or hidden units, float32,
Adam); only the batch is smaller, so that one core gets through: a batch of 384 takes 24 times as long as one of 16.
Tokens are made up: random ones of the task's full length (Text and Retrieval 4,000, images 1,024 and 16,384), of
ListOps generated ones of the published distribution. An update is forward pass, backward pass and optimizer step;
times are processor time, the least of the repeats, interleaved. The loader is the data set and its collation, as the
data module calls them. Before anything is timed the ELM has to give the logits of the reference loop on the first 64
steps of the sequences.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from arguments import count, writable
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import elm_neuro
from elm_neuro import ELM, backends
from elm_neuro.datasets.lra import TokenBatch, TokenDataset, TokenSequences, make_listops
from elm_neuro.files import write_whole
from elm_neuro.training import TokenClassifier, TokenLSTM, TwoTowers, num_parameters

# inputs, outputs, classes, steps, tau_s, longest tau_m, longest Chrono timescale, the paper's batch
TASKS: dict[str, tuple[int, int, int, int, float, float, float, int]] = {
    "listops": (25, 10, 10, 0, 5.0, 2e3, 4e3, 384),
    "text": (169, 2, 2, 4000, 5.0, 4e3, 8e3, 384),
    "retrieval": (105, 75, 2, 4000, 5.0, 4e3, 8e3, 384),
    "image": (16, 10, 10, 1024, 5.0, 1e3, 2e3, 384),
    "pathfinder": (16, 2, 2, 1024, 5.0, 1e3, 2e3, 384),
    "pathx": (8, 2, 2, 128 * 128, 150.0, 2e4, 2e4, 768),
}
CHECKED_STEPS, TOLERANCE = 64, 1e-4


def sequences_of(task: str, count: int, steps: int | None) -> TokenSequences:
    inputs, _, classes, length, *_ = TASKS[task]
    if task == "listops" and steps is None:
        return make_listops(count).sequences()
    per_item = 2 if task == "retrieval" else 1
    random = np.random.default_rng(0)
    tokens = random.integers(0, inputs, (count * per_item, steps or length)).astype(np.uint8)
    labels = random.integers(0, classes, count)
    return TokenSequences.of(list(tokens), labels=labels, num_tokens=inputs, num_classes=classes, per_item=per_item)


def networks_of(task: str, size: int) -> dict[str, nn.Module]:
    inputs, outputs, classes, _, tau_s, tau_m, chrono, _ = TASKS[task]
    torch.manual_seed(0)
    times = {"tau_s": tau_s, "tau_m_init": (1.0, tau_m), "tau_m_bounds": (1.0, tau_m)}
    elm: nn.Module = TokenClassifier(ELM(inputs, outputs, size, learn_w_s=False, **times))
    lstm: nn.Module = TokenLSTM(inputs, outputs, size, timescales=(1.0, chrono))
    if task == "retrieval":
        elm, lstm = TwoTowers(elm, num_classes=classes), TwoTowers(lstm, num_classes=classes)
    return {"ELM": elm, "Chrono-LSTM": lstm}


def check(network: nn.Module, batch: TokenBatch) -> float:
    """How far the logits of the chosen backend are from those of the reference loop."""
    tokens, lengths = batch.tokens[:4, :CHECKED_STEPS], batch.lengths[:4].clamp(max=CHECKED_STEPS)
    with torch.no_grad():
        ours = network(tokens, lengths)
        with backends.use("reference"):
            theirs = network(tokens, lengths)
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(theirs.abs().max())):
        raise SystemExit(f"the logits must be those of the reference loop, they differ by {difference}")
    return difference


def updater(network: nn.Module, batch: TokenBatch) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def update() -> None:
        loss = F.cross_entropy(network(batch.tokens, batch.lengths), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(task: str, batch_size: int, repeats: int, size: int, steps: int | None) -> dict[str, Any]:
    dataset = TokenDataset(sequences_of(task, 2 * batch_size, steps))
    order = np.argsort(dataset.lengths)[batch_size // 2 : batch_size // 2 + batch_size]  # a batch of one bucket
    batch = dataset.batch(order)
    networks = networks_of(task, size)
    row: dict[str, Any] = {
        "task": task,
        "batch": batch_size,
        "steps": int(batch.tokens.shape[1]),
        "difference": check(networks["ELM"], batch),
        "parameters": {name: num_parameters(network) for name, network in networks.items()},
    }
    updates = {name: updater(network, batch) for name, network in networks.items()}
    found: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(repeats):
        for name, update in updates.items():
            found[name].append(seconds(update))
    row["seconds"] = {name: min(times) for name, times in found.items()}
    row["loader_seconds"] = min(seconds(lambda: dataset.batch(order)) for _ in range(max(repeats, 5)))
    row["paper_batch"] = TASKS[task][-1]
    return row


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="one update, seconds of one core")
    for column in (
        "task",
        "batch",
        "steps",
        "ELM",
        "Chrono-LSTM",
        "LSTM / ELM",
        "loader",
        "loader's share of the ELM's",
    ):
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in rows:
        elm, lstm, loader = row["seconds"]["ELM"], row["seconds"]["Chrono-LSTM"], row["loader_seconds"]
        numbers = (f"{elm:.3f}", f"{lstm:.3f}", f"{lstm / elm:.1f}", f"{1000 * loader:.2f} ms")
        table.add_row(row["task"], str(row["batch"]), f"{row['steps']:,}", *numbers, f"{loader / (loader + elm):.2%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--batch", type=count, default=16)
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--json", type=writable)
    parser.add_argument("--smoke", action="store_true", help="small networks, short sequences: the times mean nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch, repeats, size, steps = (2, 1, 6, 70) if options.smoke else (options.batch, options.repeats, 150, None)
    rows, console = [], Console(width=120)
    for task in options.tasks:
        rows.append(measure(task, batch, repeats, size, steps))
        console.print(f"{task}: {rows[-1]['seconds']}", highlight=False)
    console.print(table_of(rows))
    settings = {
        "torch": torch.__version__,
        "elm_neuro": elm_neuro.__version__,
        "backend": backends.resolve("auto", operator="elm"),
        "machine": platform.processor() or platform.machine(),
        "size": size,
        "repeats": repeats,
    }
    if options.json is not None:
        write_whole({options.json: json.dumps({"settings": settings, "rows": rows}, indent=2).encode() + b"\n"})


if __name__ == "__main__":
    main()
