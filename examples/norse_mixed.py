"""A population of ELM neurons in a norse network, trained on spoken digits, no download.

    python examples/norse_mixed.py [--smoke] [--epochs 20] [--out norse_mixed.png]

    spikes (140 channels) -> 48 Branch-ELM neurons -> Linear -> 64 LIF neurons of norse -> Linear -> norse's leaky
    integrators, one per digit

A ``norse.torch.SequentialState`` like any other: the ELM layer takes whole sequences, time first, here even as events
instead of frames, and gives a spike train per neuron. The figure shows one digit on its way through the network, the
memory of the ELM neuron that it excites most, and what the network has learned.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which norse uses on import
    import norse.torch as norse

from elm_neuro import plotting
from elm_neuro.adapters.norse import BranchELM, suggest
from elm_neuro.datasets import SHD_WORDS, SHDDataset, SpokenDigits

NUM_NEURON, NUM_MEMORY, NUM_LIF = 48, 10, 64
DT, DURATION = 0.02, 0.8  # seconds, as norse has them


def network(num_channels: int) -> norse.SequentialState:
    """ELM neurons, LIF neurons and leaky integrators, whose voltages (time, batch, digit) are the answer."""
    branches = {"num_branch": 8, "num_synapse_per_branch": num_channels // 4, "routing": "random", "w_s_init": 0.1}
    spiking = {"threshold": 0.5, "reset": "subtract"}
    elm = BranchELM(
        num_channels, 1, NUM_MEMORY, num_neuron=NUM_NEURON, **branches, **spiking, **suggest(DT, round(DURATION / DT))
    )
    # norse's defaults are faster than these steps
    slow = {"tau_syn_inv": torch.tensor(1 / 0.04), "tau_mem_inv": torch.tensor(1 / 0.06)}
    return norse.SequentialState(
        elm,
        norse.Lift(nn.Linear(NUM_NEURON, NUM_LIF)),
        norse.LIF(norse.LIFParameters(**slow, v_th=torch.tensor(0.5), alpha=torch.tensor(5.0)), dt=DT),
        norse.Lift(nn.Linear(NUM_LIF, len(SHD_WORDS))),
        norse.LI(norse.LIParameters(**slow), dt=DT),
    )


def train_epoch(net: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, schedule: object) -> float:
    """Share of the training samples that were answered rightly while they were trained on."""
    right = 0
    for events, labels, _ in track(loader, description="training", transient=True):
        logits = net(events)[0].mean(0)
        loss = nn.functional.cross_entropy(10.0 * logits, labels)
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
    parser.add_argument("--out", type=Path, default=Path("norse_mixed.png"), help="the figure")
    args = parser.parse_args()
    num_train, num_test, epochs = (40, 20, 2) if args.smoke else (1440, 480, args.epochs)
    torch.manual_seed(args.seed)

    print(f"making {num_train + num_test} synthetic digits, once")
    train, test = (
        SHDDataset(SpokenDigits(split, num).recordings(), bin_ms=1e3 * DT, duration_ms=1e3 * DURATION, pool=5)
        for split, num in (("train", num_train), ("test", num_test))
    )
    loader = DataLoader(train, batch_size=48, shuffle=True, collate_fn=SHDDataset.collate)
    events, labels, _ = test.batch(range(len(test)))

    net = network(train.num_channels)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(loader))
    accuracy = {"training": [], "test, two in three by unseen speakers": []}
    for epoch in range(epochs):
        trained = train_epoch(net, loader, optimizer, schedule)
        with torch.no_grad():
            hidden, _ = net[0](events)  # (time, batch, neuron)
            lif, _ = net[2](net[1](hidden))
            voltage, _ = net[4](net[3](lif))
        logits = voltage.mean(0)
        tested = float((logits.argmax(-1) == labels).float().mean())
        for curve, value in zip(accuracy.values(), (trained, tested), strict=True):
            curve.append(value)
        print(f"epoch {epoch + 1}: training {trained:.1%}, test {tested:.1%}")

    majority = float(train.labels.bincount().argmax().eq(labels).float().mean())
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    sample = int((logits[torch.arange(len(labels)), labels] - others).argmax())  # the one answered most clearly
    word, frames = SHD_WORDS[labels[sample]], events.to_dense()[sample]
    excited = int((hidden[:, sample].mean(0) - hidden.mean((0, 1))).argmax())
    neuron = net[0].core.core  # the wrapped neurons themselves, batch first, times in ms
    with torch.no_grad():
        memory = neuron.traces(frames[None]).memory[0, :, excited]
    layers = {
        f"input spikes: “{word}”, a test sample": frames,
        f"spikes of the {NUM_NEURON} ELM neurons, in the order of their activity": hidden[:, sample],
        f"spikes of the {NUM_LIF} LIF neurons of norse": lif[:, sample],
    }
    figure = plotting.network_workings(
        layers, voltage[:, sample], answer=int(labels[sample]), name=word, delta_t=1e3 * DT, accuracy=accuracy,
        majority=majority, memory=(memory, neuron.tau_m[excited]),
    )  # fmt: skip
    plotting.save(plotting.note(figure, "synthetic spoken digits"), args.out)
    print(f"test accuracy {tested:.1%} of {len(test)} samples, majority class {majority:.1%}; figure: {args.out}")


if __name__ == "__main__":
    main()
