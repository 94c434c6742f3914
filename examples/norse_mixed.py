"""A population of ELM neurons in a norse network, trained on spoken digits, no download.

    python examples/norse_mixed.py [--smoke] [--epochs 20] [--out norse_mixed.png]

    spikes (140 channels) -> 48 Branch-ELM neurons -> Linear -> 64 LIF neurons of norse -> Linear -> norse's leaky
    integrators, one per digit

A ``norse.torch.SequentialState`` like any other: the ELM layer takes whole sequences, time first, here even as events
instead of frames, and gives a spike train per neuron. The figure shows one digit on its way through the network, the
memory of one of its ELM neurons, and what the network has learned.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which norse uses on import
    import norse.torch as norse

from elm_neuro import SpikeEvents
from elm_neuro.adapters.norse import BranchELM, suggest
from elm_neuro.datasets import SHDDataset, SpokenDigits

WORDS = "zero one two three four five six seven eight nine null eins zwei drei vier fünf sechs sieben acht neun".split()
BLUE, VERMILION, GREEN, INK, PALE = "#0072B2", "#D55E00", "#009E73", "#222222", "#9A9A9A"


@dataclass(frozen=True)
class Settings:
    """Sizes of the data and the network; times in seconds, as norse has them."""

    num_train: int = 1440
    num_test: int = 480
    num_epochs: int = 20
    batch: int = 48
    dt: float = 0.02
    duration: float = 0.8
    pool: int = 5
    num_neuron: int = 48
    num_memory: int = 10
    num_lif: int = 64
    learning_rate: float = 5e-3


SMOKE = Settings(
    num_train=40,
    num_test=20,
    num_epochs=2,
    batch=20,
    dt=0.04,
    duration=0.4,
    pool=20,
    num_neuron=8,
    num_memory=5,
    num_lif=8,
)


@dataclass
class History:
    loss: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)


def network(num_channels: int, settings: Settings) -> norse.SequentialState:
    """ELM neurons, LIF neurons and leaky integrators."""
    times = suggest(settings.dt, round(settings.duration / settings.dt))
    elm = BranchELM(
        num_channels, 1, settings.num_memory, num_neuron=settings.num_neuron, num_branch=8, num_synapse_per_branch=num_channels // 4,
        routing="random", w_s_init=0.1, threshold=0.5, reset="subtract", **times,
    )  # fmt: skip
    slow = {
        "tau_syn_inv": torch.tensor(1 / 0.04),
        "tau_mem_inv": torch.tensor(1 / 0.06),
    }  # norse's defaults are faster than these steps
    return norse.SequentialState(
        elm,
        norse.Lift(nn.Linear(settings.num_neuron, settings.num_lif)),
        norse.LIF(norse.LIFParameters(**slow, v_th=torch.tensor(0.5), alpha=torch.tensor(5.0)), dt=settings.dt),
        norse.Lift(nn.Linear(settings.num_lif, len(WORDS))),
        norse.LI(norse.LIParameters(**slow), dt=settings.dt),
    )


def batches(data: SHDDataset, size: int, *, shuffle: bool) -> Iterator[tuple[SpikeEvents, Tensor]]:
    order = torch.randperm(len(data)) if shuffle else torch.arange(len(data))
    for indices in order.split(size):
        events, labels, _ = data.batch(indices.numpy())
        assert isinstance(events, SpikeEvents)
        yield events, labels


def logits(net: norse.SequentialState, events: SpikeEvents) -> Tensor:
    voltage, _ = net(events)  # (time, batch, class)
    return voltage.mean(0)


def accuracy(net: norse.SequentialState, data: SHDDataset, size: int) -> float:
    with torch.no_grad():
        right = sum(
            int((logits(net, x).argmax(-1) == labels).sum()) for x, labels in batches(data, size, shuffle=False)
        )
    return right / len(data)


def train(
    net: norse.SequentialState, data: SHDDataset, test: SHDDataset, settings: Settings, progress: Progress
) -> History:
    history = History()
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    steps = settings.num_epochs * -(-len(data) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    task = progress.add_task("training", total=steps)
    for epoch in range(settings.num_epochs):
        losses, right = [], 0
        for x, labels in batches(data, settings.batch, shuffle=True):
            answers = logits(net, x)
            loss = nn.functional.cross_entropy(10.0 * answers, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            right += int((answers.argmax(-1) == labels).sum())
            progress.update(
                task, advance=1, description=f"epoch {epoch + 1:2}/{settings.num_epochs}, loss {losses[-1]:.2f}"
            )
        history.loss.append(sum(losses) / len(losses))
        history.train.append(right / len(data))
        history.test.append(accuracy(net, test, settings.batch))
    return history


def raster(axis: Axes, spikes: Tensor, step: float, colours: str) -> None:
    """Spikes (time, channel), a cell a time step, darker where it holds several."""
    extent = (0.0, step * len(spikes), 0.0, float(spikes.shape[1]))
    highest = max(1.0, float(spikes.flatten().quantile(0.999)))
    axis.imshow(
        spikes.T,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap=colours,
        vmin=0.0,
        vmax=1.2 * highest,
        extent=extent,
    )


def by_latency(spikes: Tensor) -> Tensor:
    """Spikes (time, neuron) with the neurons ordered by the middle of their activity, silent ones last."""
    time = torch.arange(len(spikes), dtype=spikes.dtype)[:, None]
    middle = (time * spikes).sum(0) / spikes.sum(0)
    return spikes[:, middle.nan_to_num(float("inf")).argsort(stable=True)]


def draw_memory(figure: Figure, axis: Axes, memory: Tensor, tau_m: Tensor, time: Tensor) -> None:
    """Memory units of one neuron, (time, num_memory), coloured by their time constants (num_memory,) in ms."""
    norm, colours = LogNorm(float(tau_m.min()) * 0.9, float(tau_m.max()) * 1.1), colormaps["viridis_r"]
    for unit in tau_m.argsort():
        axis.plot(time, memory[:, unit], color=colours(norm(float(tau_m[unit]))), linewidth=1.5)
    axis.axhline(0.0, color=PALE, linewidth=0.6, zorder=0)
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=axis.inset_axes((1.02, 0.0, 0.018, 1.0)))
    bar.set_ticks([t for t in (10, 20, 50, 100, 200, 500, 1000, 2000) if norm.vmin <= t <= norm.vmax])
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter("{x:.0f}")
    bar.ax.set_title("$\\tau_m$ (ms)", fontsize=9, loc="left")


def draw(net: norse.SequentialState, test: SHDDataset, history: History, majority: float, settings: Settings) -> Figure:
    """The test digit answered most clearly on its way through the network, and the learning curve."""
    elm, milliseconds = net[0], 1000.0 * settings.dt
    with torch.no_grad():
        events, labels = next(batches(test, len(test), shuffle=False))
        spikes, _ = elm(events)
        lif, _ = net[2](net[1](spikes))
        voltage, _ = net[4](net[3](lif))
        answers = voltage.mean(0)
        margin = answers[torch.arange(len(labels)), labels] - answers.scatter(1, labels[:, None], -1e9).amax(1)
        sample = int(margin.argmax())
        word, x = int(labels[sample]), events.to_dense()[sample]
        neuron = int((spikes[:, sample].sum(0) - spikes.mean((0, 1)) * len(spikes)).argmax())
        memory = elm.core.core.traces(x[None]).memory[
            0, :, neuron
        ]  # the wrapped neuron itself, batch first, times in ms
        tau_m = elm.core.core.tau_m[neuron]
    time = milliseconds * (torch.arange(len(x)) + 0.5)
    style: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "font.size": 9,
    }
    with rc_context(style):
        figure = Figure(figsize=(10.5, 7.2), layout="constrained")
        grid = figure.add_gridspec(4, 2, width_ratios=[1.4, 1.0], height_ratios=[1.3, 1.0, 1.3, 1.1])
        left = [figure.add_subplot(grid[row, 0]) for row in range(4)]
        raster(left[0], x, milliseconds, "Greys")
        raster(left[1], by_latency(spikes[:, sample]), milliseconds, "Blues")
        draw_memory(figure, left[2], memory, tau_m, time)
        others = [c for c in range(len(WORDS)) if c != word]
        left[3].plot(time, voltage[:, sample, others], color=PALE, linewidth=0.7)
        left[3].plot(time, voltage[:, sample, word], color=VERMILION, linewidth=2.0)
        left[3].text(
            time[-1],
            float(voltage[-1, sample, word]),
            f" {WORDS[word]}",
            color=VERMILION,
            va="center",
            fontweight="bold",
            clip_on=False,
        )
        left[0].set(title=f"$\\bf{{a}}$  input spikes: “{WORDS[word]}”, a test sample", ylabel="channel")
        left[1].set(
            title=f"$\\bf{{b}}$  spikes of the {settings.num_neuron} ELM neurons, in the order of their activity",
            ylabel="neuron",
        )
        left[2].set(title="$\\bf{c}$  memory units of the ELM neuron that this digit excites most", ylabel="memory")
        left[3].set(title="$\\bf{d}$  norse's leaky integrators, one per digit", ylabel="voltage", xlabel="time (ms)")
        for axis in left:
            axis.set_xlim(0.0, milliseconds * len(x))
            axis.tick_params(labelbottom=axis is left[3])
        curve = figure.add_subplot(grid[:2, 1])
        epochs = range(1, len(history.test) + 1)
        curve.plot(epochs, history.train, color=GREEN, linestyle="--", linewidth=1.4, label="training")
        curve.plot(epochs, history.test, color=BLUE, linewidth=2.0, label="test")
        curve.axhline(majority, color=INK, linestyle=":", linewidth=1.0, label="majority class")
        curve.set(title="$\\bf{e}$  accuracy", xlabel="epoch", ylim=(0, 1))
        curve.yaxis.set_major_formatter(PercentFormatter(1.0))
        curve.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        curve.grid(axis="y", color="#E2E2E2", linewidth=0.6)
        curve.legend(frameon=False, loc="upper left")
        rates = figure.add_subplot(grid[2:, 1])
        bins = torch.linspace(
            0.0, float(max(spikes.mean((0, 1)).max(), lif.mean((0, 1)).max()).clamp(min=0.01)) / settings.dt, 25
        ).tolist()
        rates.hist(
            spikes.mean((0, 1)) / settings.dt,
            bins=bins,
            color=BLUE,
            alpha=0.75,
            label=f"{settings.num_neuron} ELM neurons",
        )
        rates.hist(
            lif.mean((0, 1)) / settings.dt,
            bins=bins,
            histtype="step",
            color=VERMILION,
            linewidth=1.6,
            label=f"{settings.num_lif} LIF neurons",
        )
        rates.set(title="$\\bf{f}$  firing rates on the test set", xlabel="spikes per second", ylabel="neurons")
        rates.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        rates.legend(frameon=False)
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
        sets.append(
            SHDDataset(
                recordings, bin_ms=1000.0 * settings.dt, duration_ms=1000.0 * settings.duration, pool=settings.pool
            )
        )
    return sets[0], sets[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny network on a few samples, in seconds; the accuracy means nothing"
    )
    parser.add_argument("--epochs", type=int, help="number of epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("norse_mixed.png"), help="the figure")
    args = parser.parse_args()
    settings = SMOKE if args.smoke else Settings()
    settings = settings if args.epochs is None else replace(settings, num_epochs=args.epochs)
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
        net = network(data.num_channels, settings)
        majority = float(data.labels.bincount().argmax().eq(test.labels).float().mean())
        history = train(net, data, test, settings, progress)
    draw(net, test, history, majority, settings).savefig(args.out, dpi=160)
    console.print(
        f"test accuracy {history.test[-1]:.1%} of {len(test)} samples, majority class {majority:.1%}; figure: {args.out}"
    )


if __name__ == "__main__":
    main()
