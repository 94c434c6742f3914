"""The figure of docs/explanation/timescales.md: four functions of the equations, no data and no training.

python docs/figures/timescales.py [--out docs/figures/timescales.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from elm_neuro import plotting

COLOURS = (plotting.VERMILION, plotting.ORANGE, plotting.GREEN, plotting.BLUE)


def draw() -> Figure:
    """Decay, gain, branch trace and response to a step."""
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    decay, gain, branch, step = figure.subplots(2, 2).flat
    time = np.arange(0.0, 500.0)
    for tau, colour in zip((5, 50, 150, 500), COLOURS, strict=True):
        decay.plot(time, np.exp(-time / tau), color=colour, label=f"{tau} ms")
        step.plot(time, 5.0 * (1 - np.exp(-time / tau)), color=colour, label=f"{tau} ms")
    plotting.label_panel(decay, "a", "what is left of a push, by tau_m", "memory")
    taus = np.geomspace(0.5, 1000.0, 200)
    for lambda_, style in ((1.0, ":"), (5.0, "-")):
        gain.plot(taus, lambda_ * (1 - np.exp(-1 / taus)), style, color=plotting.BLUE, label=f"v1, lambda {lambda_:g}")
        gain.plot(taus, 1 - np.exp(-lambda_ / taus), style, color=plotting.VERMILION, label=f"v2, lambda {lambda_:g}")
    gain.set(xscale="log", yscale="log", xlabel="tau_m (ms), steps of 1 ms")
    plotting.label_panel(gain, "b", "gain on the proposal", "gain")
    spikes = np.zeros(200)
    spikes[[20, 24, 28, 90, 150, 152]] = 1
    for tau, colour in ((5.0, plotting.GREEN), (50.0, plotting.ORANGE)):
        trace = np.zeros_like(spikes)
        for t in range(len(spikes)):
            trace[t] = np.exp(-1 / tau) * (trace[t - 1] if t else 0.0) + 0.5 * spikes[t]
        branch.plot(trace, color=colour, label=f"tau_s {tau:g} ms")
    branch.vlines(np.flatnonzero(spikes), -0.25, -0.1, color=plotting.INK)
    branch.set_xlabel("time (ms)")
    plotting.label_panel(branch, "c", "a branch that receives six spikes", "trace")
    plotting.label_panel(step, "d", "a constant proposal of 1, lambda 5", "memory")
    for axis in (decay, step):
        axis.set_xlabel("time (ms)")
    for axis in (decay, gain, branch, step):
        axis.legend(fontsize=7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    plotting.styled(draw)().savefig(parser.parse_args().out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
