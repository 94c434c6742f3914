"""Train one ELM neuron on spoken digits in a plain PyTorch loop, from spikes as indices, and save it.

    python examples/train_elm.py [--smoke] [--train-file F --test-file F] [--epochs 20] [--out my_neuron]

Without files the digits are synthetic: the accuracies say nothing about SHD. `elm-neuro fit` does the same with
checkpoints, logging and resuming.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch.utils.data import DataLoader

from elm_neuro import ELM, last_output, suggest
from elm_neuro.datasets import SHDDataset, SpokenDigits, read_shd


def accuracy(neuron: ELM, loader: DataLoader) -> float:
    right = total = 0
    with torch.no_grad():
        for events, labels, _ in loader:
            right += int((last_output(neuron(events)[0]).argmax(-1) == labels).sum())
            total += len(labels)
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-file", type=Path, help="SHD-format file; synthetic digits by default")
    parser.add_argument("--test-file", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("my_neuron"))
    parser.add_argument("--smoke", action="store_true", help="one epoch on a few samples")
    args = parser.parse_args()
    torch.manual_seed(0)
    num_train, num_test, epochs = (64, 32, 1) if args.smoke else (1440, 720, args.epochs)
    train = read_shd(args.train_file) if args.train_file else SpokenDigits("train", num_train).recordings()
    test = read_shd(args.test_file) if args.test_file else SpokenDigits("test", num_test).recordings()

    binning = {"bin_ms": 10.0, "duration_ms": 1000.0, "pool": 5}
    sets = [SHDDataset(recordings, **binning) for recordings in (train, test)]
    loaders = [DataLoader(data, batch_size=32, shuffle=data is sets[0], collate_fn=SHDDataset.collate) for data in sets]
    neuron = ELM(sets[0].num_channels, 20, num_memory=50, **suggest(delta_t=10.0, num_steps=sets[0].num_steps))
    optimizer = torch.optim.Adamax(neuron.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loaders[0]))
    for epoch in range(epochs):
        for events, labels, _ in track(loaders[0], description=f"epoch {epoch + 1}", transient=True):
            loss = F.cross_entropy(last_output(neuron(events.dropout(0.5))[0]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.2f}, test accuracy {accuracy(neuron, loaders[1]):.1%}")
    neuron.save_pretrained(args.out)
    print(f"saved in {args.out}")


if __name__ == "__main__":
    main()
