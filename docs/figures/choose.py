"""Which setting does what, on synthetic spoken digits: the figure of docs/how-to/choose.md.

    python docs/figures/choose.py [--smoke] [--seeds 0 1 2] [--out docs/figures/choose]

One setting is changed at a time, everything else stays as in `BASE`: an ELM neuron that reads 140 channels in 20 ms
steps and names one of twenty digits. Written are OUT.json, every accuracy by setting, value and seed, and OUT.png. The
digits are synthetic and the trainings short (400 digits, 12 epochs): what the curves look like carries over to other
data, where they peak does not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from elm_neuro import ELM, BranchELM, SpikingELM, last_output, plotting
from elm_neuro.datasets import SHDDataset, SpokenDigits
from elm_neuro.files import write_whole

BASE: dict[str, Any] = {
    "learning_rate": 1e-2, "num_memory": 50, "tau_s": 20.0, "tau_m_init": (20.0, 1000.0), "lambda_": 5.0,
}  # fmt: skip
BIN_MS, DURATION_MS = 20.0, 1000.0
SWEEPS: dict[str, tuple[str, list[Any]]] = {
    "num_memory": ("memory units", [2, 5, 10, 20, 50, 100, 200]),
    "tau_m_init": ("initial tau_m (ms)", [(5, 20), (20, 100), (20, 1000), (200, 1000), (1000, 10_000)]),
    "tau_s": ("tau_s (ms)", [2.0, 10.0, 20.0, 50.0, 200.0, 1000.0]),
    "lambda_": ("lambda", [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]),
    "learning_rate": ("learning rate, Adam", [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
    "branches": (
        "branches x synapses, initial w_s",
        [(5, 28, 0.5), (5, 140, 0.5), (5, 140, 0.1), (20, 20, 0.5), (20, 70, 0.5), (20, 70, 0.1), (50, 20, 0.5)],
    ),
    "threshold": ("threshold of 32 spiking ELMs", [0.0, 0.1, 0.3, 1.0, 3.0, 10.0]),
}


class Spiking(nn.Module):
    """Thirty-two ELM neurons of 8 memory units each, spiking, and a linear readout of how often each does."""

    def __init__(self, num_channels: int, threshold: float, neuron: dict[str, Any]) -> None:
        super().__init__()
        core = ELM(num_channels, 1, num_neuron=32, flatten_output=True, **neuron | {"num_memory": 8})
        self.neurons, self.readout = SpikingELM(core, threshold=threshold), nn.Linear(32, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        """Logits (batch, digit), and the share of steps in which a neuron spikes."""
        spikes = self.neurons(x)[0]
        return self.readout(10 * spikes.mean(1)), float(spikes.detach().mean())


class Single(nn.Module):
    """One neuron whose last output is the answer."""

    def __init__(self, neuron: ELM) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        """Logits (batch, digit), and a share of spikes that there is none of."""
        return last_output(self.neuron(x)[0]), float("nan")


def build(num_channels: int, setting: str, value: Any) -> tuple[nn.Module, float]:
    """The network with one setting changed, and its learning rate."""
    settings = BASE | ({setting: value} if setting in BASE else {})
    learning_rate = settings.pop("learning_rate")
    settings |= {"delta_t": BIN_MS, "tau_m_bounds": (1.0, 20_000.0)}
    if setting == "threshold":
        return Spiking(num_channels, value, settings), learning_rate
    if setting == "branches":
        branches = dict(zip(("num_branch", "num_synapse_per_branch", "w_s_init"), value, strict=True), routing="random")
        return Single(BranchELM(num_channels, 20, **settings, **branches)), learning_rate
    return Single(ELM(num_channels, 20, **settings)), learning_rate


def run(data: dict[str, Tensor], setting: str, value: Any, seed: int, epochs: int) -> dict[str, float]:
    """Train once; accuracies on the training and the test samples at the end."""
    torch.manual_seed(seed)
    network, learning_rate = build(data["train"].shape[-1], setting, value)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    batches = -(-len(data["train"]) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data["train"])).split(32):
            x = nn.functional.dropout(data["train"][chosen], 0.3)
            loss = cross_entropy(network(x)[0], data["train labels"][chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    found = {}
    with torch.no_grad():
        for split in ("train", "test"):
            logits, spikes = network(data[split])
            found[split] = float((logits.argmax(-1) == data[f"{split} labels"]).float().mean())
    return found | {"spikes": spikes, "parameters": sum(p.numel() for p in network.parameters())}


def draw(results: dict[str, list[list[dict[str, float]]]]) -> Figure:
    """A panel a setting: test accuracy of every seed, and their mean."""
    figure = Figure(figsize=(8.6, 7.6))
    axes = figure.subplots(4, 2, sharey=True).flat
    for letter, (setting, (name, values)) in zip("abcdefg", SWEEPS.items(), strict=True):
        axis, rows = next(axes), results[setting]
        values = values[: len(rows)]
        accuracy = 100 * np.array([[one["test"] for one in runs] for runs in rows])
        axis.plot(np.repeat(np.arange(len(values)), accuracy.shape[1]), accuracy.ravel(), "o", color=plotting.SKY, ms=4)
        axis.plot(accuracy.mean(1), color=plotting.BLUE)
        axis.axhline(5, color=plotting.PALE, linewidth=0.8, linestyle=":")
        names = [label(setting, value) for value in values]
        if setting == "branches":
            names = [f"{name}\n{runs[0]['parameters']:,}" for name, runs in zip(names, rows, strict=True)]
        if setting == "threshold":
            names = [
                f"{n}\n{np.mean([one['spikes'] for one in runs]):.1%}" for n, runs in zip(names, rows, strict=True)
            ]
        axis.set_xticks(range(len(values)), names, fontsize=7)
        for tick, value in zip(axis.get_xticklabels(), values, strict=True):
            tick.set_fontweight("bold" if BASE.get(setting) == value else "normal")
        axis.set_ylim(0, 80)
        plotting.label_panel(axis, letter, name, "test (%)")
    next(axes).axis("off")
    return figure


def label(setting: str, value: Any) -> str:
    """A value as it stands below an axis."""
    if setting == "branches":
        return "{} x {}\nw_s {}".format(*value)
    return "–".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few samples, in seconds; the accuracies mean nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    args = parser.parse_args()
    num_train, num_test, epochs, seeds = (20, 20, 1, [0]) if args.smoke else (400, 400, 12, args.seeds)
    data: dict[str, Tensor] = {}
    for split, num in (("train", num_train), ("test", num_test)):
        digits = SHDDataset(
            SpokenDigits(split, num).recordings(), bin_ms=BIN_MS, duration_ms=DURATION_MS, pool=5, output="frames"
        )
        data[split], data[f"{split} labels"], _ = digits.batch(range(num))
    results: dict[str, list[list[dict[str, float]]]] = {}
    for setting, (name, values) in SWEEPS.items():
        results[setting] = []
        for value in values[:1] if args.smoke else values:
            results[setting].append([run(data, setting, value, seed, epochs) for seed in seeds])
            accuracies = ", ".join(f"{one['test']:.1%}" for one in results[setting][-1])
            print(f"{name:<34}{label(setting, value).replace(chr(10), ', '):>18}  test {accuracies}", flush=True)
    text = json.dumps({"base": BASE, "seeds": seeds, "results": results}, indent=1)
    write_whole({args.out.with_suffix(".json"): text.encode()})
    figure = plotting.styled(draw)(results)
    plotting.note(figure, "synthetic spoken digits, not SHD")
    figure.savefig(args.out.with_suffix(".png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
