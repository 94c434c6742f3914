"""Fit an adaptive LIF neuron to a recorded one, and score it on a stimulus that it has not seen.

    python examples/ephys.py [--smoke] [--data FILE] [--out ephys]

FILE is ephys.nwb of a cell of the Allen Cell Types Database (celltypes.brain-map.org) that was driven by "Noise 1" and
"Noise 2". Without it a made-up neuron of known numbers stands in: its score says nothing about recorded neurons, its
numbers beside the fitted ones say how well spikes alone tell them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from elm_neuro import plotting, pretrained
from elm_neuro.datasets import KnownNeuron, cut_sweeps, make_ephys, read_sweeps
from elm_neuro.training import explained_temporal_variance, fit_neuron, spike_trains_beside

WIDTHS = (50, 100, 150)  # of the Gaussian, in steps of 0.1 ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FILE", help="a recording; a made-up neuron by default")
    parser.add_argument("--out", type=Path, default=Path("ephys"), metavar="DIR")
    parser.add_argument("--smoke", action="store_true", help="seconds: few candidates, few spikes")
    options = parser.parse_args()
    console = Console()

    options.out.mkdir(parents=True, exist_ok=True)
    starts = (0.1, 1.3) if options.smoke and options.data is None else (2.0, 10.0, 18.0)
    file: Path = options.data or options.out / "made_up.nwb"
    if options.data is None:
        make_ephys(file, starts_s=starts, duration_s=1.0)
    train, test = (cut_sweeps(read_sweeps(file, name), starts_s=starts) for name in ("Noise 1", "Noise 2"))
    rounds = 4 if options.smoke else 30
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("fitting", total=rounds)
        fit = fit_neuron(
            train.current[0],
            train.spikes,
            step_ms=train.step_ms,
            num_candidates=100 if options.smoke else 400,
            num_rounds=rounds,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    pretrained.save_pretrained(fit.neuron, options.out / "neuron")

    numbers = Table("", *fit.numbers(), title="tau in ms")
    numbers.add_row("fitted", *(f"{value:.4g}" for value in fit.numbers().values()))
    if options.data is None:
        numbers.add_row("known", *(f"{getattr(KnownNeuron(), name):.4g}" for name in fit.numbers()))
    console.print(numbers)
    made_up = " of a made-up neuron" if options.data is None else ""
    scores = Table("smoothed by", *(f"{width * train.step_ms:g} ms" for width in WIDTHS))
    scores.title = f"explained temporal variance{made_up}, {len(train.spikes)} repeats"
    for title, trains in (("Noise 1, fitted to", train), ("Noise 2", test)):
        found = fit.spikes(trains.current[:1])
        scores.add_row(title, *(f"{explained_temporal_variance(found, trains.spikes, width):.3f}" for width in WIDTHS))
    console.print(scores)
    figure = spike_trains_beside(test, fit.spikes(test.current[0]))
    plotting.note(figure, f"Noise 2, not fitted to{', made up' if options.data is None else ''}")
    for path in plotting.save(figure, options.out / "spikes"):
        console.print(path)


if __name__ == "__main__":
    main()
