"""A twin of a biophysical neuron in ONNX: the input spikes of a simulated pyramidal cell in, spike probability and
somatic voltage out.

    python examples/onnx_twin.py [--smoke] [--checkpoint FOLDER] [--data FILE] [--provider cuda] [--out onnx_twin]

The authors' Branch-ELM num_memory_20, exported in the form "sequence" with its NeuronIO head, runs in onnxruntime on a
window of a simulation from NeuronIO (``--data``, a .npz with input spikes, output spikes and voltage), beside torch.
The figure shows the input, both outputs with the simulation's own, and how far onnxruntime and torch are apart.
Checkpoint and window are looked for in ../shared/data; without them the weights are random and the input is Poisson,
which says nothing about a real cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from elm_neuro import BranchELM, plotting
from elm_neuro.checkpoints import from_upstream, neuronio_head
from elm_neuro.export import to_onnx
from elm_neuro.export.onnx_neuron import OnnxNeuron
from elm_neuro.plotting import BLUE, GREEN, INK, ORANGE, PALE, VERMILION

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_OPSET = 18  # onnxruntime's CUDA provider has no Scan of a newer one
BURN_IN = 150  # ms before the neuron's state, which begins at zero, is that of the simulation
CAP_MV = -55.0  # voltages above it are spikes; the neuron is trained on voltages capped there
Array = np.ndarray[Any, Any]


class Window(NamedTuple):
    """Input of a cell in steps of 1 ms, and what its simulation gave."""

    x: Array  # (time, input): excitatory spikes +1, then inhibitory ones -1
    spike: Array | None  # (time,) 0 or 1
    soma_mv: Array | None  # (time,)


def read_window(path: Path, number: int, num_input: int) -> Window:
    with np.load(path) as archive:
        if f"w{number}_input_t" not in archive:
            raise SystemExit(f"--window must be one of those in {path}, got {number}")
        step, channel, spike, soma = (
            archive[f"w{number}_{name}"] for name in ("input_t", "input_ch", "y_spike", "y_soma_mV")
        )
    x = np.zeros((len(spike), num_input), np.float32)
    np.add.at(x, (step.astype(int), channel.astype(int)), np.where(channel < num_input // 2, 1.0, -1.0))
    return Window(x, spike, soma)


def poisson_window(num_steps: int, num_input: int) -> Window:
    """About eleven spikes a second and input, with a slow rise and fall."""
    rate = 0.011 * (1.0 + 0.6 * np.sin(2 * np.pi * np.arange(num_steps) / 300.0))[:, None]
    x = (np.random.default_rng(0).random((num_steps, num_input)) < rate).astype(np.float32)
    x[:, num_input // 2 :] *= -1.0
    return Window(x, None, None)


@plotting.styled
def draw(window: Window, twin: dict[str, Array], expected: dict[str, Array]) -> Figure:
    """Input, spike probability, somatic voltage, and the distance between onnxruntime and torch."""
    num_steps, num_input = window.x.shape
    time = np.arange(num_steps) + 0.5
    figure = Figure(figsize=(7.2, 6.6))
    raster, probability, soma, distance = figure.subplots(4, 1, sharex=True, height_ratios=[1.3, 1.0, 1.3, 0.8])
    plotting.draw_raster(raster, window.x > 0, delta_t=1.0, colour=VERMILION)
    plotting.draw_raster(raster, window.x < 0, delta_t=1.0, colour=BLUE)
    raster.set_yticks([num_input / 4, 3 * num_input / 4], ["excitatory", "inhibitory"], rotation=90, va="center")
    plotting.label_panel(raster, "a", "input spikes", "synapse")
    probability.plot(time, twin["spike_probability"], color=GREEN)
    probability.set_ylim(0, max(0.05, 1.25 * twin["spike_probability"].max()))
    plotting.label_panel(probability, "b", "spike probability of the twin", "per ms")
    if window.spike is not None and window.soma_mv is not None:
        for t in time[window.spike > 0]:
            probability.axvline(t, ymin=0.88, color=INK, linewidth=1.2)
        soma.plot(time, np.minimum(window.soma_mv, CAP_MV), color=PALE, linewidth=2.2, label="simulation, capped")
        for axis in (probability, soma):
            axis.axvspan(0, BURN_IN, color="#EEEEEE", linewidth=0, zorder=0)  # its state settles
    soma.plot(time, twin["soma_mv"], color=ORANGE, linewidth=1.1, label="twin")
    soma.legend(loc="upper right", ncols=2, bbox_to_anchor=(1.0, 1.24))
    plotting.label_panel(soma, "c", "somatic voltage", "mV")
    for name, colour, label in (("soma_mv", ORANGE, "voltage (mV)"), ("spike_probability", GREEN, "probability")):
        apart = np.abs(twin[name].astype(np.float64) - expected[name])
        distance.plot(time, np.where(apart > 0, apart, np.nan), ".", color=colour, markersize=2.2, label=label)
    distance.set(yscale="log", xlabel="time (ms)", xlim=(0, num_steps))
    distance.yaxis.set_major_locator(LogLocator(numticks=4))
    distance.legend(loc="upper right", ncols=2, bbox_to_anchor=(1.0, 1.42), markerscale=3)
    plotting.label_panel(distance, "d", "distance between onnxruntime and torch", "absolute")
    figure.align_ylabels()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, default=SHARED / "checkpoints" / "num_memory_20", help="a folder of the authors"
    )
    parser.add_argument(
        "--data", type=Path, default=SHARED / "neuronio" / "reference_outputs.npz", help="windows of simulations"
    )
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument(
        "--provider", choices=sorted(PROVIDERS), default="cpu", help="cuda needs onnxruntime-gpu and a GPU"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("onnx_twin"), help="the model, .onnx, and the figure, .png and .pdf"
    )
    parser.add_argument("--smoke", action="store_true", help="random weights and Poisson input, in seconds")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.smoke or not args.checkpoint.is_dir():
        print(f"random weights: {'--smoke' if args.smoke else f'there is no {args.checkpoint}'}")
        neuron = BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100, tau_m_init=(1.0, 150.0)).eval()
    else:
        neuron = from_upstream(args.checkpoint).eval()
    num_input = neuron.config.input_size
    if args.smoke or not args.data.is_file():
        print(f"Poisson input: {'--smoke' if args.smoke else f'there is no {args.data}'}")
        window = poisson_window(300 if args.smoke else 1000, num_input)
    else:
        window = read_window(args.data, args.window, num_input)

    path = args.out.with_suffix(".onnx")
    options: dict[str, Any] = {"opset": CUDA_OPSET} if args.provider == "cuda" else {}
    source = args.checkpoint if args.checkpoint.is_dir() and not args.smoke else None
    to_onnx(neuron, path, form="sequence", head="neuronio", source=source, **options)
    try:
        twin = OnnxNeuron(path, providers=[PROVIDERS[args.provider]])
    except ValueError as error:  # says what is missing
        raise SystemExit(str(error)) from error
    outputs, _ = twin.run(window.x[None])
    twin_outputs = {name: value[0] for name, value in outputs.items()}
    with torch.no_grad():
        prediction = neuronio_head(neuron(torch.from_numpy(window.x)[None])[0][0])
    expected = {name: value.double().numpy() for name, value in prediction._asdict().items()}
    off = {name: float(np.abs(twin_outputs[name] - expected[name]).max()) for name in expected}
    print(f"{path} in onnxruntime, {twin.providers[0]}: off from torch by at most", *(f"{v:.1e}" for v in off.values()))
    if not (off["spike_probability"] < 2e-5 and off["soma_mv"] < 2e-3):  # 2e-5 of 100 mV
        raise SystemExit("the twin must compute what torch computes")
    if window.soma_mv is not None and not args.smoke:
        error = twin_outputs["soma_mv"][BURN_IN:] - np.minimum(window.soma_mv[BURN_IN:], CAP_MV)
        rmse = np.sqrt((error**2).mean())
        print(f"after {BURN_IN} ms the twin's voltage is off from the simulation's by {rmse:.2f} mV (root mean square)")
    figure = draw(window, twin_outputs, expected)
    if window.soma_mv is None:
        plotting.note(figure, "made-up Poisson input")
    png, pdf = plotting.save(figure, args.out)
    print(f"figure: {png}, {pdf}")


if __name__ == "__main__":
    main()
