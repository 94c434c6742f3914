"""A population of ELM neurons as the hidden layer of an snnTorch network, trained on spoken digits, no download.

    python examples/snntorch_mixed.py [--smoke] [--epochs 20] [--out snntorch_mixed.png]

    spikes (140 channels) -> 64 Branch-ELM neurons, each with a spike train of its own -> Linear -> snnTorch's Leaky,
    one per digit

Every neuron keeps its own state (``init_hidden=True``), as is usual in snnTorch: ``reset(net)`` before each batch, one
call per time step. The figure shows one digit on its way through the network, and what the network has learned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import snntorch
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from elm_neuro import plotting, suggest
from elm_neuro.adapters.snntorch import BranchELM, reset
from elm_neuro.datasets import SHD_WORDS, SHDDataset, SpokenDigits

NUM_NEURON, NUM_MEMORY, BIN_MS, DURATION_MS = 64, 8, 20.0, 800.0


class Network(nn.Module):
    """ELM neurons, a Linear, and one Leaky neuron per digit; one time step a call, states inside."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        branches = {"num_branch": 8, "num_synapse_per_branch": num_channels // 4, "routing": "random"}
        times = suggest(BIN_MS, round(DURATION_MS / BIN_MS))
        self.elm = BranchELM(
            num_channels, 1, NUM_MEMORY, num_neuron=NUM_NEURON, threshold=0.1, init_hidden=True, **branches, **times
        )
        self.linear = nn.Linear(NUM_NEURON, len(SHD_WORDS))
        self.leaky = snntorch.Leaky(beta=0.95, reset_mechanism="none", init_hidden=True, output=True)

    def forward(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes of the ELM layer (batch, neuron) and membranes of the output layer (batch, digit)."""
        hidden = self.elm(x_t)
        _, membrane = self.leaky(self.linear(hidden))
        return hidden, membrane


def run(net: Network, frames: Tensor) -> tuple[Tensor, Tensor]:
    """What a batch (batch, time, channel) makes of fresh states: spikes and membranes, (time, batch, ...)."""
    reset(net)
    hidden, membrane = zip(*[net(x_t) for x_t in frames.unbind(1)], strict=True)
    return torch.stack(hidden), torch.stack(membrane)


def train_epoch(net: Network, loader: DataLoader, optimizer: torch.optim.Optimizer, schedule: object) -> float:
    """Share of the training samples that were answered rightly while they were trained on."""
    right = 0
    for frames, labels, _ in track(loader, description="training", transient=True):
        logits = run(net, frames)[1].mean(0)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right += int((logits.argmax(-1) == labels).sum())
    return right / len(loader.dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few samples, in seconds; the accuracies mean nothing")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("snntorch_mixed.png"), help="the figure")
    args = parser.parse_args()
    num_train, num_test, epochs = (40, 20, 2) if args.smoke else (1440, 480, args.epochs)
    torch.manual_seed(args.seed)

    print(f"making {num_train + num_test} synthetic digits, once")
    train, test = (
        SHDDataset(
            SpokenDigits(split, num).recordings(), bin_ms=BIN_MS, duration_ms=DURATION_MS, pool=5, output="frames"
        )
        for split, num in (("train", num_train), ("test", num_test))
    )
    loader = DataLoader(train, batch_size=48, shuffle=True, collate_fn=SHDDataset.collate)
    frames, labels, _ = test.batch(range(len(test)))

    net = Network(train.num_channels)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(loader))
    accuracy = {"training": [], "test, two in three by unseen speakers": []}
    for epoch in range(epochs):
        trained = train_epoch(net, loader, optimizer, schedule)
        with torch.no_grad():
            hidden, membrane = run(net, frames)
        logits = membrane.mean(0)
        tested = float((logits.argmax(-1) == labels).float().mean())
        for curve, value in zip(accuracy.values(), (trained, tested), strict=True):
            curve.append(value)
        print(f"epoch {epoch + 1}: training {trained:.1%}, test {tested:.1%}")

    majority = float(train.labels.bincount().argmax().eq(labels).float().mean())
    sample = int(logits.softmax(-1)[torch.arange(len(labels)), labels].argmax())  # the one answered most clearly
    layers = {
        f"input spikes: “{SHD_WORDS[labels[sample]]}”, a test sample": frames[sample],
        f"spikes of the {NUM_NEURON} ELM neurons, in the order of their activity": hidden[:, sample],
    }
    figure = plotting.network_workings(
        layers, membrane[:, sample], answer=int(labels[sample]), name=SHD_WORDS[labels[sample]], delta_t=BIN_MS,
        accuracy=accuracy, majority=majority,
    )  # fmt: skip
    plotting.save(plotting.note(figure, "synthetic spoken digits"), args.out)
    print(f"test accuracy {tested:.1%} of {len(test)} samples, majority class {majority:.1%}; figure: {args.out}")


if __name__ == "__main__":
    main()
