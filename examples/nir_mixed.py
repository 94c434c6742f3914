"""A network of ELM and LIF neurons, trained on spoken digits, written as a NIR graph and run from the file.

    python examples/nir_mixed.py [--smoke] [--epochs 20] [--out nir_mixed.nir]

    spikes (140 channels) -> 48 Branch-ELM neurons -> Linear -> 64 LIF neurons -> Linear -> one number per digit and
    step, of which the mean is the answer

Each layer of ours is one node of the graph, the Linears are NIR's own ``Affine``. What is made of the file answers like
the network that was trained, bit by bit, and runs from piece to piece of a recording with its state handed on. NIR's
own primitives have no ReLU and no tanh: an ELM in them is refused, a LIF alone is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from elm_neuro import LIF, BranchELM, SpikingELM, suggest
from elm_neuro.adapters import nir
from elm_neuro.datasets import SHDDataset, SpokenDigits

NUM_CLASSES, NUM_NEURON, NUM_MEMORY, NUM_LIF = 20, 48, 10, 64
BIN_MS, DURATION_MS = 20.0, 800.0


class Network(nn.Module):
    """(batch, time, channel) to a number per digit and step; every call starts from fresh states."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        branches = {"num_branch": 8, "num_synapse_per_branch": num_channels // 4, "routing": "random", "w_s_init": 0.1}
        times = suggest(BIN_MS, round(DURATION_MS / BIN_MS))
        elm = BranchELM(num_channels, 1, NUM_MEMORY, num_neuron=NUM_NEURON, flatten_output=True, **branches, **times)
        self.elm = SpikingELM(elm, threshold=0.5, reset="subtract")
        self.hidden = nn.Linear(NUM_NEURON, NUM_LIF)
        self.lif = LIF(NUM_LIF, NUM_LIF, delta_t=BIN_MS, tau_v=60.0)
        self.readout = nn.Linear(NUM_LIF, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.elm(x)
        spikes, _ = self.lif(self.hidden(spikes))
        return self.readout(spikes)


def train_epoch(net: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, schedule: object) -> None:
    for frames, labels, _ in track(loader, description="training", transient=True):
        loss = nn.functional.cross_entropy(net(frames).mean(1), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few samples, in seconds; the accuracies mean nothing")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("nir_mixed.nir"), help="the graph's file")
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
    for epoch in range(epochs):
        train_epoch(net, loader, optimizer, schedule)
        with torch.no_grad():
            trained = net(frames)
        print(f"epoch {epoch + 1}: test {float((trained.mean(1).argmax(-1) == labels).float().mean()):.1%}")

    nir.write(args.out, net)
    graph = nir.read(args.out)
    for name, node in graph.nodes.items():
        print(f"{name:8} {type(node).__name__:14} {getattr(node, 'kind', '')}")
    again, half = nir.from_nir(graph), frames.shape[1] // 2
    with torch.no_grad():
        whole, _ = again(frames)
        first, state = again(frames[:, :half])
        second, _ = again(frames[:, half:], state)
    assert torch.equal(whole, trained), "the file is the network"
    pieces = torch.cat([first, second], 1).mean(1).argmax(-1)
    print(f"{args.out}: the same numbers; in two pieces {float((pieces == labels).float().mean()):.1%}")
    try:
        nir.to_nir(net, portable=True)
    except ValueError as refused:
        print(refused)


if __name__ == "__main__":
    main()
