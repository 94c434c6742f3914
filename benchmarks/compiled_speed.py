"""Training passes inside torch.compile against the same ones outside, in turns, one core.

    taskset -c 1 python benchmarks/compiled_speed.py [--repeats 31] [--rows N8-frames ALIF] [--json FILE] [--smoke]

Forward and backward of the layer and the sum of its squared output, one graph (``fullgraph=True``), torch's inductor.
A row is there once both gave the same gradients; its ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from arguments import count, writable

from elm_neuro import ALIF, ELM, BranchELM, ELMNetwork, SpikeEvents


def spikes(batch: int, num_steps: int, num_input: int, density: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(batch, num_steps, num_input, generator=generator) < density).float()


def n8() -> ELM:
    return BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100, routing="neuronio")


ROWS: dict[str, Callable[[], tuple[torch.nn.Module, tuple[Any, ...]]]] = {
    "N8-frames": lambda: (n8(), (spikes(8, 500, 1278, 0.01),)),
    "N8-events": lambda: (n8(), (SpikeEvents.from_frames(spikes(8, 500, 1278, 0.01)),)),
    "N8-lengths": lambda: (n8(), (spikes(8, 500, 1278, 0.01), None, torch.arange(500, 300, -25))),
    "narrow": lambda: (ELM(140, 64, 20), (spikes(32, 50, 140, 0.05),)),
    "ALIF": lambda: (ALIF(128, 128, recurrent=True, latency=10.0), (spikes(32, 512, 128, 0.05),)),
    "network": lambda: (ELMNetwork(128, 96), (spikes(8, 100, 128, 0.05),)),
}


def measured(name: str, repeats: int) -> dict[str, Any]:
    """Milliseconds outside and inside, and their ratio."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, inputs = ROWS[name]()

    def loss(*inputs: Any) -> torch.Tensor:
        total: torch.Tensor = layer(*inputs)[0].square().sum()
        return total

    compiled: Callable[..., torch.Tensor] = torch.compile(loss, fullgraph=True)

    def timed(call: Callable[..., torch.Tensor]) -> float:
        layer.zero_grad()
        start = time.perf_counter()
        call(*inputs).backward()
        return 1e3 * (time.perf_counter() - start)

    grads = []
    for call in (loss, compiled):
        timed(call)
        grads.append([parameter.grad for parameter in layer.parameters() if parameter.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    pairs = [(timed(loss), timed(compiled)) for _ in range(repeats)]
    outside, inside = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(inner / outer for outer, inner in pairs)
    return {"row": name, "outside_ms": outside, "inside_ms": inside, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=count, default=31)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", type=writable, help="write everything measured here")
    parser.add_argument("--smoke", action="store_true", help="one pair of one row")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rows, arguments.repeats = ["narrow"], 1
    warnings.filterwarnings("ignore", module="torch")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, ms forward + backward\n{'':12}{'outside':>10}{'inside':>10}{'ratio':>10}")
    rows = []
    for name in arguments.rows:
        rows.append(found := measured(name, arguments.repeats))
        print(f"{name:12}{found['outside_ms']:10.2f}{found['inside_ms']:10.2f}{found['ratio']:10.2f}", flush=True)
    if arguments.json:
        settings = {"torch": torch.__version__, "machine": platform.machine(), "repeats": arguments.repeats}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
