"""What a host's face costs on top of the neuron it wraps: interleaved in one run, same weights, behind a check of equal
numbers.

    taskset -c 1 python benchmarks/adapter_overhead.py [--host HOST] [--rows ROW ...] [--repeats 15] [--json FILE]
    [--smoke]

Medians of processor time on one thread, forward and forward + backward. One step: a loop over single calls against the
same loop over the bare cell, which does not fire. Sequence: one call against the forward of the ELM inside. Targets:
1.5 and 1.15.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from arguments import count, writable
from rich.console import Console
from rich.table import Table
from torch import Tensor

import elm_neuro
from elm_neuro import ELM

STEP_TARGET, SEQUENCE_TARGET = 1.5, 1.15
TOLERANCE = 1e-5  # float32, readouts of the two, relative to the largest


class Row(NamedTuple):
    input_size: int
    output_size: int
    num_memory: int
    batch: int
    num_steps: int
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed


class Pair(NamedTuple):
    """A face and what it wraps, each from frames (time, batch, channel) to a readout or spikes (time, batch,
    output).
    """

    what: str
    target: float
    bare: Callable[[Tensor], Tensor]
    face: Callable[[Tensor], Tensor]
    readout: Callable[[Tensor], Tensor]  # of the face, to compare with the bare one
    module: torch.nn.Module


POPULATION = {"num_neuron": 32, "num_branch": 10, "num_synapse_per_branch": 20, "routing": "random"}
ROWS = {
    "layer": Row(140, 64, 20, 32, 50),
    "wide": Row(700, 20, 100, 32, 50),
    "population": Row(140, 1, 10, 32, 50, POPULATION),
    "long": Row(700, 20, 100, 8, 500),
}
SMOKE = {"smoke": Row(12, 3, 4, 2, 8)}


def step_loop(step: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        state, records = None, []
        for x_t in x:
            y_t, state = step(x_t, state)
            records.append(y_t)
        return torch.stack(records)

    return run


def bare_sequence(core: ELM) -> Callable[[Tensor], Tensor]:
    return lambda x: core(x.transpose(0, 1))[0].transpose(0, 1)


def snntorch_pairs(row: Row) -> Iterator[Pair]:
    faces = importlib.import_module("elm_neuro.adapters.snntorch")
    sizes = (row.input_size, row.output_size, row.num_memory)
    explicit, hidden = faces.ELM(*sizes, **row.options), faces.ELM(*sizes, **row.options, init_hidden=True)

    def with_states(x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        states = explicit.reset_mem()
        for x_t in x:
            out = explicit(x_t, *states)
            states = out[1:]
            yield out

    def keeping_them(x: Tensor) -> Tensor:
        hidden.reset_mem()
        return torch.stack([hidden(x_t) for x_t in x])

    def membrane(x: Tensor) -> Tensor:
        hidden.output = True
        try:
            hidden.reset_mem()
            return torch.stack([hidden(x_t)[-1] for x_t in x])
        finally:
            hidden.output = False

    loop = step_loop(explicit.core.cell)
    yield Pair(
        "step, explicit", STEP_TARGET, loop, lambda x: torch.stack([out[0] for out in with_states(x)]),
        lambda x: torch.stack([out[-1] for out in with_states(x)]), explicit,
    )  # fmt: skip
    yield Pair("step, hidden", STEP_TARGET, step_loop(hidden.core.cell), keeping_them, membrane, hidden)
    sequence = faces.ELMSequence(*sizes, **row.options, output=True)
    yield Pair(
        "sequence",
        SEQUENCE_TARGET,
        bare_sequence(sequence.core),
        lambda x: sequence(x)[0],
        lambda x: sequence(x)[1],
        sequence,
    )


def norse_pairs(row: Row) -> Iterator[Pair]:
    faces = importlib.import_module("elm_neuro.adapters.norse")
    cell = faces.ELMCell(row.input_size, row.output_size, row.num_memory, **row.options)
    readouts = faces.ELMCell(row.input_size, row.output_size, row.num_memory, **row.options, spiking=False)
    readouts.load_state_dict(cell.state_dict())
    yield Pair("step", STEP_TARGET, step_loop(cell.core.core.cell), step_loop(cell), step_loop(readouts), cell)
    layer = faces.ELM(row.input_size, row.output_size, row.num_memory, **row.options)
    plain = faces.ELM(row.input_size, row.output_size, row.num_memory, **row.options, spiking=False)
    plain.load_state_dict(layer.state_dict())
    yield Pair(
        "sequence", SEQUENCE_TARGET, bare_sequence(layer.core.core), lambda x: layer(x)[0], lambda x: plain(x)[0], layer
    )


def spikingjelly_pairs(row: Row) -> Iterator[Pair]:
    faces = importlib.import_module("elm_neuro.adapters.spikingjelly")
    functional = importlib.import_module("spikingjelly.activation_based.functional")

    def freshly(face: Any, x: Tensor) -> Tensor:
        functional.reset_net(face)
        y: Tensor = face(x) if face.step_mode == "m" else torch.stack([face(x_t) for x_t in x])
        return y

    for what, target, mode in (("step", STEP_TARGET, "s"), ("sequence", SEQUENCE_TARGET, "m")):
        make = partial(faces.ELM, row.input_size, row.output_size, row.num_memory, step_mode=mode, **row.options)
        spiking, readout = make(), make(spiking=False)
        readout.load_state_dict(spiking.state_dict())
        core = spiking.core.core
        bare = step_loop(core.cell) if mode == "s" else bare_sequence(core)
        yield Pair(what, target, bare, partial(freshly, spiking), partial(freshly, readout), spiking)


HOSTS = {"snntorch": snntorch_pairs, "norse": norse_pairs, "spikingjelly": spikingjelly_pairs}


def check(pair: Pair, x: Tensor) -> None:
    """The face's readout is the bare neuron's. Raises otherwise."""
    with torch.no_grad():
        expected, actual = pair.bare(x), pair.readout(x)
    error = float((actual.flatten(2) - expected.flatten(2)).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise SystemExit(f"{pair.what}: readouts differ by {error:.1e}: no speed is reported")


def measure(pair: Pair, x: Tensor, repeats: int, *, backward: bool) -> dict[str, float]:
    times: dict[str, list[float]] = {"bare": [], "face": []}
    for repeat in range(repeats + 2):
        for name, run in (("bare", pair.bare), ("face", pair.face)):
            pair.module.zero_grad(set_to_none=True)
            with torch.set_grad_enabled(backward):
                start = time.process_time()
                out = run(x)
                if backward:
                    out.square().sum().backward()
                spent = time.process_time() - start
            if repeat >= 2:
                times[name].append(spent)
    bare, face = (1000.0 * statistics.median(values) for values in times.values())
    return {"bare_ms": bare, "face_ms": face, "ratio": face / bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="all", choices=[*HOSTS, "all"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--repeats", type=count, default=15)
    parser.add_argument("--json", type=writable, help="write all figures to this file")
    parser.add_argument("--smoke", action="store_true", help="one tiny row, in seconds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console, results = Console(), []
    table = Table(
        title=(
            f"face / bare neuron, float32, 1 thread, torch {torch.__version__}, {platform.machine()}; median ms (ratio)"
        )
    )
    for column in ("host", "row", "call", "forward", "forward + backward", "target"):
        table.add_column(column)
    for host in HOSTS if args.host == "all" else [args.host]:
        if importlib.util.find_spec(f"elm_neuro.adapters.{host}") is None or importlib.util.find_spec(host) is None:
            console.print(f"{host}: the host or its face is not here, left out")
            continue
        for name, row in (SMOKE if args.smoke else {name: ROWS[name] for name in args.rows}).items():
            torch.manual_seed(0)
            x = (torch.rand(row.num_steps, row.batch, row.input_size) < 0.05).float()
            for pair in HOSTS[host](row):
                check(pair, x)
                forward, both = (measure(pair, x, args.repeats, backward=backward) for backward in (False, True))
                cells = [
                    f"{found['face_ms']:.1f} / {found['bare_ms']:.1f} ({found['ratio']:.2f}x)"
                    for found in (forward, both)
                ]
                table.add_row(host, name, pair.what, *cells, f"{pair.target}x")
                results.append(
                    {
                        "host": host,
                        "row": name,
                        **row._asdict(),
                        "call": pair.what,
                        "forward": forward,
                        "forward_backward": both,
                    }
                )
    console.print(table)
    if args.json:
        settings = {"torch": torch.__version__, "elm_neuro": elm_neuro.__version__, "machine": platform.machine()}
        args.json.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
