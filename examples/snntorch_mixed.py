"""A population of ELM neurons as the hidden layer of an snnTorch network, trained on spoken digits, no download.

    python examples/snntorch_mixed.py [--smoke] [--epochs 20] [--out snntorch_mixed.png]

    spikes (140 channels) -> 64 Branch-ELM neurons, each with a spike train of its own -> Linear -> snnTorch's Leaky,
    one per digit

Every neuron keeps its own state (``init_hidden=True``), as is usual in snnTorch; ``reset(net)`` before each batch, one
call per time step, ``snntorch.functional`` for the loss. The figure shows one digit on its way through the network, and
what it has learned.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import snntorch
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from elm_neuro import suggest
from elm_neuro.adapters.snntorch import BranchELM, reset
from elm_neuro.datasets import SHDDataset, SpokenDigits

WORDS = "zero one two three four five six seven eight nine null eins zwei drei vier fünf sechs sieben acht neun".split()
BLUE, VERMILION, GREEN, INK, PALE = "#0072B2", "#D55E00", "#009E73", "#222222", "#9A9A9A"


@dataclass(frozen=True)
class Settings:
    """Sizes of the data and the network; times in ms."""

    num_train: int = 1440
    num_test: int = 480
    num_epochs: int = 20
    batch: int = 48
    bin_ms: float = 20.0
    duration_ms: float = 800.0
    pool: int = 5
    num_neuron: int = 64
    num_memory: int = 8
    learning_rate: float = 5e-3


SMOKE = Settings(
    num_train=40,
    num_test=20,
    num_epochs=2,
    batch=20,
    bin_ms=40.0,
    duration_ms=400.0,
    pool=20,
    num_neuron=8,
    num_memory=4,
)


@dataclass
class History:
    loss: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)


class Network(nn.Module):
    """ELM neurons, a Linear, and one Leaky neuron per class; one time step a call, states inside."""

    def __init__(self, num_channels: int, num_classes: int, settings: Settings) -> None:
        super().__init__()
        times = suggest(settings.bin_ms, round(settings.duration_ms / settings.bin_ms))
        self.elm = BranchELM(
            num_channels, 1, settings.num_memory, num_neuron=settings.num_neuron, num_branch=8, num_synapse_per_branch=num_channels // 4,
            routing="random", threshold=0.1, init_hidden=True, **times,
        )  # fmt: skip
        self.linear = nn.Linear(settings.num_neuron, num_classes)
        self.leaky = snntorch.Leaky(beta=0.95, reset_mechanism="none", init_hidden=True, output=True)

    def forward(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes of the ELM layer (batch, num_neuron) and membranes of the output layer (batch, num_classes)."""
        hidden = self.elm(x_t)
        _, mem = self.leaky(self.linear(hidden))
        return hidden, mem


def run(net: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Records over time of a batch (time, batch, channel), from fresh states."""
    reset(net)
    hidden, mem = zip(*[net(x_t) for x_t in x], strict=True)
    return torch.stack(hidden), torch.stack(mem)


def batches(data: SHDDataset, size: int, *, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data)) if shuffle else torch.arange(len(data))
    for indices in order.split(size):
        frames, labels, _ = data.batch(indices.numpy())
        assert isinstance(frames, Tensor)
        yield frames.transpose(0, 1), labels  # time first


def accuracy(net: Network, data: SHDDataset, size: int) -> float:
    with torch.no_grad():
        right = sum(
            int((run(net, x)[1].mean(0).argmax(-1) == labels).sum()) for x, labels in batches(data, size, shuffle=False)
        )
    return right / len(data)


def train(net: Network, data: SHDDataset, test: SHDDataset, settings: Settings, progress: Progress) -> History:
    history = History()
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    steps = settings.num_epochs * -(-len(data) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    task = progress.add_task("training", total=steps)
    for epoch in range(settings.num_epochs):
        losses, right = [], 0
        for x, labels in batches(data, settings.batch, shuffle=True):
            _, mem = run(net, x)
            loss = nn.functional.cross_entropy(mem.mean(0), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            right += int((mem.mean(0).argmax(-1) == labels).sum())
            progress.update(
                task, advance=1, description=f"epoch {epoch + 1:2}/{settings.num_epochs}, loss {losses[-1]:.2f}"
            )
        history.loss.append(sum(losses) / len(losses))
        history.train.append(right / len(data))
        history.test.append(accuracy(net, test, settings.batch))
    return history


def raster(axis: Axes, spikes: Tensor, delta_t: float, colour: str) -> None:
    """Spikes (time, channel), a cell a time step, darker where it holds several."""
    extent = (0.0, delta_t * len(spikes), 0.0, float(spikes.shape[1]))
    highest = max(1.0, float(spikes.flatten().quantile(0.999)))
    axis.imshow(
        spikes.T,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap=LinearSegmentedColormap.from_list("", ["white", colour]),
        vmin=0.0,
        vmax=highest,
        extent=extent,
    )
    if spikes.shape[1] <= 100:  # a hairline between rows, so that each train is seen
        axis.hlines(range(1, spikes.shape[1]), *extent[:2], color="white", linewidth=0.6)


def by_latency(spikes: Tensor) -> Tensor:
    """Spikes (time, neuron) with the neurons ordered by the middle of their activity, silent ones last."""
    time = torch.arange(len(spikes), dtype=spikes.dtype)[:, None]
    middle = (time * spikes).sum(0) / spikes.sum(0)
    return spikes[:, middle.nan_to_num(float("inf")).argsort(stable=True)]


def draw(net: Network, test: SHDDataset, history: History, majority: float, settings: Settings) -> Figure:
    """One test digit on its way through the network, and the learning curve."""
    with torch.no_grad():
        x, labels = next(batches(test, len(test), shuffle=False))
        hidden, mem = run(net, x)
    answers = mem.mean(0).softmax(-1)
    right = answers[torch.arange(len(labels)), labels]
    sample = int(right.argmax())
    word, time = int(labels[sample]), settings.bin_ms * (torch.arange(len(x)) + 0.5)
    style: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "font.size": 9,
    }
    with rc_context(style):
        figure = Figure(figsize=(10, 6.2), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=[1.35, 1.0], height_ratios=[1.3, 1.0, 1.1])
        above, middle, below = (figure.add_subplot(grid[row, 0]) for row in range(3))
        raster(above, x[:, sample], settings.bin_ms, INK)
        raster(middle, by_latency(hidden[:, sample]), settings.bin_ms, BLUE)
        above.set(title=f"$\\bf{{a}}$  input spikes: “{WORDS[word]}”, a test sample", ylabel="channel")
        middle.set(
            title=f"$\\bf{{b}}$  spikes of the {settings.num_neuron} ELM neurons, in the order of their activity",
            ylabel="neuron",
        )
        others = [c for c in range(mem.shape[2]) if c != word]
        below.plot(time, mem[:, sample, others], color=PALE, linewidth=0.7)
        below.plot(time, mem[:, sample, word], color=VERMILION, linewidth=2.0)
        below.text(
            time[-1],
            float(mem[-1, sample, word]),
            f" {WORDS[word]}",
            color=VERMILION,
            va="center",
            fontweight="bold",
            clip_on=False,
        )
        below.set(
            title="$\\bf{c}$  membranes of the Leaky output neurons",
            xlabel="time (ms)",
            ylabel="membrane",
            xlim=(0.0, settings.bin_ms * len(x)),
        )
        for axis in (above, middle):
            axis.sharex(below)
            axis.tick_params(labelbottom=False)
        curve = figure.add_subplot(grid[:2, 1])
        epochs = range(1, len(history.test) + 1)
        curve.plot(epochs, history.train, color=GREEN, linestyle="--", linewidth=1.4, label="training")
        curve.plot(
            epochs,
            history.test,
            color=BLUE,
            linewidth=2.0,
            marker="o",
            markersize=3,
            label="test, two in three by unseen speakers",
        )
        curve.axhline(majority, color=INK, linestyle=":", linewidth=1.0, label="majority class")
        curve.set(title="$\\bf{d}$  accuracy", xlabel="epoch", xlim=(0.5, len(epochs) + 0.5), ylim=(0, 1))
        curve.yaxis.set_major_formatter(PercentFormatter(1.0))
        curve.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        curve.grid(axis="y", color="#E2E2E2", linewidth=0.6)
        curve.legend(frameon=False, loc="upper left")
        rates = figure.add_subplot(grid[2, 1])
        rates.hist(1000.0 / settings.bin_ms * hidden.mean((0, 1)), bins=20, color=BLUE, alpha=0.8)
        rates.set(
            title="$\\bf{e}$  firing rates of the ELM neurons on the test set",
            xlabel="spikes per second",
            ylabel="neurons",
        )
        rates.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def make_data(settings: Settings, progress: Progress) -> tuple[SHDDataset, SHDDataset]:
    sets = []
    for split, num in (("train", settings.num_train), ("test", settings.num_test)):
        digits = SpokenDigits(split, num_samples=num)
        task = progress.add_task(f"making the {split} samples", total=num)

        def show(done: int, total: int, task: Any = task) -> None:
            progress.update(task, completed=done)

        recordings = digits.recordings(show)
        progress.update(task, completed=num)
        options: dict[str, Any] = {
            "bin_ms": settings.bin_ms,
            "duration_ms": settings.duration_ms,
            "pool": settings.pool,
        }
        sets.append(SHDDataset(recordings, output="frames", **options))
    return sets[0], sets[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny network on a few samples, in seconds")
    parser.add_argument("--epochs", type=int, help="number of epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("snntorch_mixed.png"), help="the figure")
    args = parser.parse_args()
    settings = SMOKE if args.smoke else Settings()
    if args.epochs is not None:
        settings = Settings(**{**vars(settings), "num_epochs": args.epochs})
    torch.manual_seed(args.seed)
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        data, test = make_data(settings, progress)
        net = Network(data.num_channels, len(WORDS), settings)
        majority = float(data.labels.bincount().argmax().eq(test.labels).float().mean())
        history = train(net, data, test, settings, progress)
    draw(net, test, history, majority, settings).savefig(args.out, dpi=160)
    console.print(
        f"test accuracy {history.test[-1]:.1%} of {len(test)} samples, majority class {majority:.1%}; figure: {args.out}"
    )


if __name__ == "__main__":
    main()
