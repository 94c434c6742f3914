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
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn

from elm_neuro import LIF, BranchELM, plotting

ANSWERS = ("it was A", "it was B")
EARLY_COST = 0.05  # loss of a spike before the question
MOST_EARLY = 1  # spikes before the question that an answer may come with
GROUPS, NUM_CURRENTS = (15, 15, 10), 8  # channels of A, of B and of the question
DELTA_T, DURATION, WINDOW, BURST = 5.0, 400.0, 60.0, 20.0  # ms
ASKED = DURATION - WINDOW  # ms


def make_data(num_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spikes (num_samples, time, 40) and which sound it was (num_samples,)."""
    time = DELTA_T * torch.arange(round(DURATION / DELTA_T))
    sound = torch.randint(0, 2, (num_samples,), generator=generator)
    onset = torch.full((num_samples, 3), float("inf"))  # ms, of A, B and the question
    onset[:, 2] = ASKED
    onset[torch.arange(num_samples), sound] = ASKED - 80.0 - 200.0 * torch.rand(num_samples, generator=generator)
    since = time[None, :, None] - onset[:, None, :]
    burst = ((since >= 0) & (since < BURST)).float().repeat_interleave(torch.tensor(GROUPS), dim=2)
    rate = 0.004 + 0.08 * burst  # spikes per ms
    return torch.poisson(rate * DELTA_T, generator=generator).clamp(max=1.0), sound


class Network(nn.Module):
    """Something that gives currents, and two LIF neurons that turn them into spikes."""

    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front, self.lif = front, LIF(front.output_size, len(ANSWERS), delta_t=DELTA_T, tau_v=20.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Currents (batch, time, num_currents) and spikes (batch, time, 2)."""
        current, _ = self.front(x)
        return current, self.lif(current)[0]


def counted(spikes: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes of the two neurons from the question on, (batch, 2), and those of both before it, (batch,)."""
    asked = round(ASKED / DELTA_T)
    return spikes[:, asked:].sum(1), spikes[:, :asked].sum((1, 2))


def right(spikes: Tensor, sound: Tensor) -> Tensor:
    """Whether the right neuron spiked more often, and both kept silent until asked; a tie is no answer."""
    counts, early = counted(spikes)
    rows = torch.arange(len(sound))
    return (counts[rows, sound] > counts[rows, 1 - sound]) & (early <= MOST_EARLY)


def train(
    net: Network, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], epochs: int, name: str
) -> list[float]:
    """Test accuracy after every epoch."""
    optimizer, curve = torch.optim.Adam(net.parameters(), lr=1e-2), []
    for _ in track(range(epochs), description=name):
        for chosen in torch.randperm(len(data[0])).split(64):
            counts, early = counted(net(data[0][chosen])[1])
            loss = nn.functional.cross_entropy(counts, data[1][chosen])
            loss = loss + EARLY_COST * (early - MOST_EARLY).relu().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            curve.append(float(right(net(test[0])[1], test[1]).float().mean()))
    return curve


@plotting.styled
def draw(net: Network, curves: dict[str, list[float]], test: tuple[Tensor, Tensor]) -> Figure:
    """A sample of each sound with a long wait, if possible answered rightly, through the network; learning curves."""
    with torch.no_grad():
        current, spikes = net(test[0])
        into_lif = nn.functional.linear(current, net.lif.cell.weight, net.lif.cell.bias)
    early = test[0][:, :40].sum((1, 2))  # many spikes by then: an early sound, a long wait
    figure = Figure(figsize=(10.0, 5.0))
    grid = figure.add_gridspec(3, 3, height_ratios=[1.6, 1.3, 0.7])
    time = DELTA_T * (torch.arange(test[0].shape[1]) + 0.5)
    for column, word in enumerate(ANSWERS):
        good = (right(spikes, test[1]) & (test[1] == column)).float()
        sample = int((early + 1e3 * good).argmax())
        axes = [figure.add_subplot(grid[row, column]) for row in range(3)]
        plotting.draw_raster(axes[0], test[0][sample], delta_t=DELTA_T)
        for neuron, colour in enumerate((plotting.BLUE, plotting.VERMILION)):
            axes[1].plot(time, into_lif[sample, :, neuron], color=colour)
            axes[2].vlines(time[spikes[sample, :, neuron] > 0], 1.1 - neuron, 1.9 - neuron, color=colour)
        plotting.label_panel(axes[0], "ab"[column], f"input: {word}", "channel")
        axes[1].set_ylabel("current into the\nLIF neurons")
        axes[2].set(ylim=(0, 2), yticks=[1.5, 0.5], yticklabels=ANSWERS, xlabel="time (ms)")
        for axis in axes:
            axis.axvspan(ASKED, DURATION, color=plotting.ORANGE, alpha=0.2, linewidth=0)
            axis.set_xlim(0, DURATION)
            axis.tick_params(labelbottom=axis is axes[-1])
    curve = figure.add_subplot(grid[:, 2])
    plotting.draw_accuracy(curve, curves, chance=0.5, guess="guessing when asked")
    plotting.label_panel(curve, "c", "test accuracy")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few samples, in seconds; the accuracies mean nothing")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("branch_elm_into_lif.png"), help="the figure")
    args = parser.parse_args()
    num_train, num_test, epochs = (64, 32, 2) if args.smoke else (1024, 512, args.epochs)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    data, test = make_data(num_train, generator), make_data(num_test, generator)
    branches = {"num_branch": 8, "num_synapse_per_branch": 10, "routing": "random"}
    times = {"delta_t": DELTA_T, "tau_m_init": (5.0, 300.0), "tau_m_bounds": (1.0, 1000.0)}
    nets = {
        "Branch-ELM into LIF": Network(BranchELM(sum(GROUPS), NUM_CURRENTS, num_memory=16, **branches, **times)),
        "LIF into LIF": Network(LIF(sum(GROUPS), 32, delta_t=DELTA_T, tau_v=10.0)),
    }
    curves = {name: train(net, data, test, epochs, name) for name, net in nets.items()}
    figure = draw(nets["Branch-ELM into LIF"], curves, test)
    plotting.save(plotting.note(figure, "made-up spikes"), args.out)
    for name, net in nets.items():
        size = sum(p.numel() for p in net.parameters())
        print(f"{name}: {curves[name][-1]:.1%} of {num_test} test samples (guessing: 50 %), {size} parameters")
    print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
