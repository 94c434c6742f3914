"""A Branch-ELM drives LIF neurons with its real-valued output; both learn to answer late which of two sounds they
heard.

    python examples/branch_elm_into_lif.py [--smoke] [--epochs 40] [--out branch_elm_into_lif.png]

    spikes (40 channels) -> Branch-ELM, 8 currents -> 2 LIF neurons: "it was A", "it was B"

A burst in the 15 channels of A or in those of B, silence but for background noise, and 80 to 280 ms later a burst in 10
channels that asks: then, and not before, one LIF neuron must spike, and the right one. What was heard must be kept
without a sound and meet the question: the memory of the Branch-ELM and its MLP do that. The control has 32 LIF neurons
in their place, whose time constants of 10 ms are trained too. Both networks are trained in the same way, on data made
here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from elm_neuro import LIF, BranchELM

ANSWERS = ("it was A", "it was B")
BLUE, VERMILION, INK, PALE = "#0072B2", "#D55E00", "#222222", "#9A9A9A"
EARLY_COST = 0.05  # loss of a spike before the question
MOST_EARLY = 1  # spikes before the question that an answer may come with
GROUPS, CURRENTS = (15, 15, 10), 8  # channels of A, of B and of the question
DELTA_T, DURATION, WINDOW, BURST = 5.0, 400.0, 60.0, 20.0  # ms


@dataclass(frozen=True)
class Settings:
    """Sizes of the training."""

    num_train: int = 1024
    num_test: int = 512
    num_epochs: int = 40
    batch: int = 64
    learning_rate: float = 1e-2


SMOKE = Settings(num_train=64, num_test=32, num_epochs=2, batch=32)


def make_data(num_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spikes (num_samples, time, 40) and which sound it was (num_samples,)."""
    time = DELTA_T * torch.arange(round(DURATION / DELTA_T))
    sound = torch.randint(0, 2, (num_samples,), generator=generator)
    asked = DURATION - WINDOW
    onset = torch.full((num_samples, 3), float("inf"))  # ms, of A, B and the question
    onset[:, 2] = asked
    onset[torch.arange(num_samples), sound] = asked - 80.0 - 200.0 * torch.rand(num_samples, generator=generator)
    since = time[None, :, None] - onset[:, None, :]
    burst = ((since >= 0) & (since < BURST)).float().repeat_interleave(torch.tensor(GROUPS), dim=2)
    rate = 0.004 + 0.08 * burst  # spikes per ms
    return torch.poisson(rate * DELTA_T, generator=generator).clamp(max=1.0), sound


class Network(nn.Module):
    """Something that gives currents, and two LIF neurons that turn them into spikes."""

    def __init__(self, front: nn.Module, num_currents: int) -> None:
        super().__init__()
        self.front = front
        self.lif = LIF(num_currents, len(ANSWERS), delta_t=DELTA_T, tau_v=20.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Currents (batch, time, num_currents) and spikes (batch, time, 2)."""
        current, _ = self.front(x)
        spikes, _ = self.lif(current)
        return current, spikes


def networks() -> dict[str, Network]:
    """The Branch-ELM in front, and the control with LIF neurons there."""
    elm = BranchELM(
        sum(GROUPS), CURRENTS, num_memory=16, num_branch=8, num_synapse_per_branch=10, routing="random", delta_t=DELTA_T,
        tau_m_init=(5.0, 300.0), tau_m_bounds=(1.0, 1000.0),
    )  # fmt: skip
    return {
        "Branch-ELM into LIF": Network(elm, CURRENTS),
        "LIF into LIF": Network(LIF(sum(GROUPS), 32, delta_t=DELTA_T, tau_v=10.0), 32),
    }


def answer(spikes: Tensor) -> tuple[Tensor, Tensor]:
    """Spike counts of the two neurons from the question on, (batch, 2), and those of both before it, (batch,)."""
    asked = round((DURATION - WINDOW) / DELTA_T)
    return spikes[:, asked:].sum(1), spikes[:, :asked].sum((1, 2))


def right(spikes: Tensor, sound: Tensor) -> Tensor:
    """Whether the right neuron spiked more often, and both kept silent until asked; a tie is no answer."""
    counts, early = answer(spikes)
    rows = torch.arange(len(sound))
    return (counts[rows, sound] > counts[rows, 1 - sound]) & (early <= MOST_EARLY)


def train(
    net: Network, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], settings: Settings, step: Any
) -> list[float]:
    """Test accuracy after every epoch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    curve = []
    for epoch in range(settings.num_epochs):
        for chosen in torch.randperm(len(data[0])).split(settings.batch):
            counts, early = answer(net(data[0][chosen])[1])
            loss = (
                nn.functional.cross_entropy(counts, data[1][chosen]) + EARLY_COST * (early - MOST_EARLY).relu().mean()
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            curve.append(float(right(net(test[0])[1], test[1]).float().mean()))
        step(epoch, curve[-1])
    return curve


def draw_sample(axes: list[Axes], net: Network, x: Tensor, word: str) -> None:
    """One sample on its way through the network: input, currents into the two neurons, their spikes."""
    with torch.no_grad():
        current, spikes = net(x[None])
        drive = nn.functional.linear(current, net.lif.cell.weight, net.lif.cell.bias)[0]
    time = DELTA_T * (torch.arange(len(x)) + 0.5)
    steps, channels = x.nonzero(as_tuple=True)
    ends = torch.tensor(GROUPS).cumsum(0)
    for group, colour in enumerate((BLUE, VERMILION, INK)):
        mine = torch.bucketize(channels, ends, right=True) == group
        axes[0].plot(time[steps[mine]], channels[mine], "|", color=colour, markersize=3.5, markeredgewidth=1.1)
    for neuron, colour in enumerate((BLUE, VERMILION)):
        axes[1].plot(time, drive[:, neuron], color=colour, linewidth=1.6)
        for t in time[spikes[0, :, neuron] > 0]:
            axes[2].plot([t, t], [1.1 - neuron, 1.9 - neuron], color=colour, linewidth=1.8)
    axes[0].set(title=word, ylim=(-1, sum(GROUPS)), yticks=[7, 22, 35], yticklabels=["A", "B", "?"])
    axes[1].axhline(0.0, color=PALE, linewidth=0.6)
    axes[2].set(ylim=(0, 2), yticks=[1.5, 0.5], yticklabels=ANSWERS, xlabel="time (ms)", xlim=(0, DURATION))
    for axis in axes:
        axis.axvspan(DURATION - WINDOW, DURATION, color="#F0E442", alpha=0.35, linewidth=0)
        axis.tick_params(axis="y", length=0 if axis is not axes[1] else 3)
    for label, colour in zip(axes[0].get_yticklabels(), (BLUE, VERMILION, INK), strict=True):
        label.set_color(colour)
    for label, colour in zip(axes[2].get_yticklabels(), (BLUE, VERMILION), strict=True):
        label.set_color(colour)


def draw(nets: dict[str, Network], curves: dict[str, list[float]], test: tuple[Tensor, Tensor]) -> Figure:
    """A sample of each kind, answered rightly, through the network with the ELM, and both learning curves."""
    style: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "font.size": 9,
    }
    with rc_context(style):
        figure = Figure(figsize=(10.5, 5.2), layout="constrained")
        grid = figure.add_gridspec(3, 3, height_ratios=[1.6, 1.3, 0.7], width_ratios=[1, 1, 0.9])
        net = nets["Branch-ELM into LIF"]
        shared: list[Axes] = []
        for column, word in enumerate(ANSWERS):
            with torch.no_grad():
                good = right(net(test[0])[1], test[1]) & (test[1] == column)
            early = test[0][:, :40].sum((1, 2))  # many spikes by then: an early sound, a long wait
            sample = int(torch.where(good, early, early - 1e3).argmax())
            axes = [figure.add_subplot(grid[0, column])]
            axes += [
                figure.add_subplot(grid[row, column], sharex=axes[0], sharey=shared[row] if shared else None)
                for row in (1, 2)
            ]
            draw_sample(axes, net, test[0][sample], f"$\\bf{{{'ab'[column]}}}$  {word}")
            for axis in axes[:2]:
                axis.tick_params(labelbottom=False)
            if column:
                axes[1].tick_params(labelleft=False)
                axes[2].tick_params(labelleft=False)
            else:
                axes[1].set_ylabel("current into\nthe LIF neurons")
                axes[2].set_ylabel("spikes")
                shared = axes
        curve = figure.add_subplot(grid[:, 2])
        for (name, values), colour in zip(curves.items(), (INK, PALE), strict=True):
            curve.plot(range(1, len(values) + 1), values, color=colour, linewidth=2.0, label=name)
        curve.axhline(0.5, color=INK, linestyle=":", linewidth=1.0, label="guessing when asked")
        curve.set(title="$\\bf{c}$  test accuracy", xlabel="epoch", ylim=(0, 1.02))
        curve.yaxis.set_major_formatter(PercentFormatter(1.0))
        curve.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        curve.grid(axis="y", color="#E2E2E2", linewidth=0.6)
        curve.legend(loc="lower right", framealpha=1.0, edgecolor="none")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="a few samples and epochs, in seconds; the accuracies mean nothing"
    )
    parser.add_argument("--epochs", type=int, help="number of epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("branch_elm_into_lif.png"), help="the figure")
    args = parser.parse_args()
    settings = SMOKE if args.smoke else Settings()
    settings = settings if args.epochs is None else replace(settings, num_epochs=args.epochs)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    data, test = make_data(settings.num_train, generator), make_data(settings.num_test, generator)
    console, curves = Console(), {}
    nets = networks()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        for name, net in nets.items():
            task = progress.add_task(name, total=settings.num_epochs)

            def step(epoch: int, accuracy: float, task: Any = task, name: str = name) -> None:
                progress.update(task, completed=epoch + 1, description=f"{name}, test accuracy {accuracy:.0%}")

            curves[name] = train(net, data, test, settings, step)
    draw(nets, curves, test).savefig(args.out, dpi=160)
    for name, net in nets.items():
        size = sum(p.numel() for p in net.parameters())
        console.print(
            f"{name}: {curves[name][-1]:.1%} of {len(test[0])} test samples (guessing: 50 %), {size} parameters"
        )
    console.print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
