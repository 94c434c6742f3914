"""How far the gradient of Blocks lies from that of the loop, over the latency.

    python benchmarks/alif_gradients.py [--latencies 0 1 4 ...] [--seeds 3] [--markdown FILE] [--json FILE] [--smoke]

A layer of adaptive LIF neurons (128 inputs of which 10 % spike, 128 neurons, 512 steps of 1 ms, batch 16, double
precision) with a leaky readout of 20 classes summed over time and the cross entropy of random targets. Both gradients
are taken at the same weights, and their spikes are checked to be equal. For each kind of parameter the cosine of the
two gradients and the ratio of their norms, Blocks to loop; medians over the seeds, which draw weights, input and
targets.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from typing import Any, NamedTuple

import torch
from arguments import count, writable
from rich.console import Console
from torch import Tensor

import elm_neuro
from elm_neuro import ALIF
from elm_neuro.functional import FastSigmoid, MultiGaussian, Surrogate

SURROGATES: dict[str, Surrogate] = {"multi-Gaussian": MultiGaussian(), "fast sigmoid": FastSigmoid()}
SHOWN = {"weight": "W_in", "w_rec": "W_rec", "beta": "beta", "p": "p", "b": "b"}
Pair = tuple[float, float]


class Sizes(NamedTuple):
    num_neuron: int = 128  # and inputs
    num_steps: int = 512
    batch: int = 16


def gradients(layer: ALIF, x: Tensor, readout: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Spikes, and the gradient of each parameter."""
    spikes, _ = layer(x)
    num_steps = x.shape[1]
    # a leaky integrator of 20 ms summed over time weighs each step by what its decay still lets through
    left = 1.0 - torch.exp(torch.arange(num_steps, 0, -1, dtype=x.dtype) * (-1.0 / 20.0))
    logits = (spikes * left[:, None]).sum(1) @ readout.mT / num_steps
    torch.nn.functional.cross_entropy(logits, targets).backward()
    return spikes.detach(), {name: p.grad for name, p in layer.cell.named_parameters() if p.grad is not None}


def compare(latency: int, surrogate: Surrogate, *, recurrent: bool, seed: int, sizes: Sizes) -> dict[str, Any]:
    """(cosine, norm ratio) of each parameter, and the rate of spikes."""
    generator, (num_neuron, num_steps, batch) = torch.Generator().manual_seed(seed), sizes
    x = (torch.rand(batch, num_steps, num_neuron, generator=generator) < 0.1).double()
    readout = torch.randn(20, num_neuron, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 20, (batch,), generator=generator)
    found, start = {}, None
    for gradient in ("loop", "blocks"):
        options: Any = {"latency": float(latency), "recurrent": recurrent, "surrogate": surrogate}
        layer = ALIF(num_neuron, num_neuron, gradient=gradient, tau_v=10.0, generator=generator, **options).double()
        with torch.no_grad():  # a few per cent of spikes
            layer.cell.weight.mul_(3.0)
            layer.cell.bias.fill_(0.02)
            if layer.cell.w_rec is not None:
                layer.cell.w_rec.copy_(0.1 * torch.randn(num_neuron, num_neuron, generator=generator))
        start = layer.state_dict() if start is None else start
        layer.load_state_dict(start)
        found[gradient] = gradients(layer, x, readout, targets)
    (spikes, loop), (same, blocks) = found["loop"], found["blocks"]
    if not torch.equal(spikes, same):
        raise SystemExit(f"spikes differ in {int((spikes != same).sum())} places")
    pairs = {name: apart(loop[name], blocks[name]) for name in SHOWN if name in loop}
    return {"rate": float(spikes.mean()), **pairs}


def apart(loop: Tensor, blocks: Tensor) -> Pair:
    norms = float(loop.norm()), float(blocks.norm())
    return float((loop * blocks).sum()) / (norms[0] * norms[1]), norms[1] / norms[0]


def middle(runs: list[dict[str, Any]], name: str) -> Pair:
    return tuple(statistics.median(run[name][i] for run in runs) for i in (0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latencies", type=int, nargs="+", default=[0, 1, 2, 4, 10, 20, 50, 100], metavar="STEPS")
    parser.add_argument("--seeds", type=count, default=3, help="how many")
    parser.add_argument("--markdown", type=writable, help="write the table here")
    parser.add_argument("--json", type=writable, help="write everything measured here")
    parser.add_argument("--smoke", action="store_true", help="a tiny layer: whether it runs")
    options = parser.parse_args()
    small = ([0, 4], 1, Sizes(16, 40, 2))
    latencies, seeds, sizes = small if options.smoke else (options.latencies, options.seeds, Sizes())
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    console.print(f"elm_neuro {elm_neuro.__version__}, torch {torch.__version__}, {platform.processor()}, double")
    results: list[dict[str, Any]] = []
    head = ["surrogate", "recurrent", "latency", "spikes", *SHOWN.values()]
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|" + "---:|" * len(SHOWN)]
    for title, surrogate in SURROGATES.items():
        for recurrent in (True, False):
            for latency in latencies:
                runs = [compare(latency, surrogate, recurrent=recurrent, seed=s, sizes=sizes) for s in range(seeds)]
                rate = statistics.median(run["rate"] for run in runs)
                pairs = {name: middle(runs, name) for name in SHOWN if name in runs[0]}
                cells = [f"{pairs[name][0]:.3f}, {pairs[name][1]:.3g}x" if name in pairs else "–" for name in SHOWN]
                line = [title, "yes" if recurrent else "no", str(latency), f"{rate:.1%}", *cells]
                lines.append(f"| {' | '.join(line)} |")
                console.print(lines[-1], highlight=False)
                results.append({"surrogate": title, "recurrent": recurrent, "latency": latency, "runs": runs})
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.json:
        settings = {"seeds": seeds, "torch": torch.__version__}
        options.json.write_text(json.dumps({"settings": settings, "rows": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
