"""A population of ELM neurons in a spikingjelly network, trained on spoken digits, no download.

    python examples/spikingjelly_mixed.py [--smoke] [--epochs 20] [--out spikingjelly_mixed.png]

    spikes (140 channels) -> 48 Branch-ELM neurons -> Linear -> 64 LIFNodes of spikingjelly -> Linear -> one number per
    digit and step, of which the mean is the answer

An ``nn.Sequential`` like any other: ``set_step_mode(net, "m")`` and whole sequences, time first, with the ELM layer on
its fast kernels; ``reset_net(net)`` before each batch. The figure shows one digit on its way through the network, read
by spikingjelly's monitors, and what the network has learned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import track
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from torch import Tensor, nn
from torch.utils.data import DataLoader

from elm_neuro import plotting, suggest
from elm_neuro.adapters.spikingjelly import BranchELM
from elm_neuro.datasets import SHD_WORDS, SHDDataset, SpokenDigits

NUM_NEURON, NUM_MEMORY, NUM_LIF = 48, 10, 64
BIN_MS, DURATION_MS = 20.0, 800.0


def network(num_channels: int) -> nn.Sequential:
    """ELM neurons, LIF neurons, and a number per digit and step: (time, batch, channel) to (time, batch, digit)."""
    branches = {"num_branch": 8, "num_synapse_per_branch": num_channels // 4, "routing": "random", "w_s_init": 0.1}
    times = suggest(BIN_MS, round(DURATION_MS / BIN_MS))
    net = nn.Sequential(
        BranchELM(
            num_channels, 1, NUM_MEMORY, num_neuron=NUM_NEURON, v_threshold=0.5, reset="subtract", **branches, **times
        ),
        layer.Linear(NUM_NEURON, NUM_LIF),
        neuron.LIFNode(tau=3.0, v_threshold=0.5, detach_reset=True, surrogate_function=surrogate.ATan()),
        layer.Linear(NUM_LIF, len(SHD_WORDS)),
    )
    functional.set_step_mode(net, "m")
    return net


def run(net: nn.Module, frames: Tensor) -> Tensor:
    """Logits (batch, digit) of a batch (batch, time, channel), from fresh states."""
    functional.reset_net(net)
    return net(frames.transpose(0, 1)).mean(0)


def train_epoch(net: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, schedule: object) -> float:
    """Share of the training samples that were answered rightly while they were trained on."""
    right = 0
    for frames, labels, _ in track(loader, description="training", transient=True):
        logits = run(net, frames)
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
    parser.add_argument("--out", type=Path, default=Path("spikingjelly_mixed.png"), help="the figure")
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

    net = network(train.num_channels)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(loader))
    accuracy = {"training": [], "test, two in three by unseen speakers": []}
    for epoch in range(epochs):
        trained = train_epoch(net, loader, optimizer, schedule)
        with torch.no_grad(), monitor.OutputMonitor(net, (BranchELM, neuron.LIFNode, layer.Linear)) as outputs:
            logits = run(net, frames)
        tested = float((logits.argmax(-1) == labels).float().mean())
        for curve, value in zip(accuracy.values(), (trained, tested), strict=True):
            curve.append(value)
        print(f"epoch {epoch + 1}: training {trained:.1%}, test {tested:.1%}")

    majority = float(train.labels.bincount().argmax().eq(labels).float().mean())
    sample = int(logits.softmax(-1)[torch.arange(len(labels)), labels].argmax())  # the one answered most clearly
    layers = {
        f"input spikes: “{SHD_WORDS[labels[sample]]}”, a test sample": frames[sample],
        f"spikes of the {NUM_NEURON} ELM neurons, in the order of their activity": outputs["0"][0][:, sample],
        f"spikes of the {NUM_LIF} LIF neurons of spikingjelly, in the same order": outputs["2"][0][:, sample],
    }
    figure = plotting.network_workings(
        layers, outputs["3"][0][:, sample], answer=int(labels[sample]), name=SHD_WORDS[labels[sample]], delta_t=BIN_MS,
        accuracy=accuracy, majority=majority,
    )  # fmt: skip
    plotting.save(plotting.note(figure, "synthetic spoken digits"), args.out)
    print(f"test accuracy {tested:.1%} of {len(test)} samples, majority class {majority:.1%}; figure: {args.out}")


if __name__ == "__main__":
    main()
