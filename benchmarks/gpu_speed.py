"""Speed of the neuron on a GPU beside torch's cuDNN LSTM of the same width, and where the time goes. Under four
minutes.

    PYTHONPATH=. python3 benchmarks/gpu_speed.py --out FOLDER [--rows N8 N32] [--sweep] [--upstream CHECKOUT]

Prints at most 80 lines; FOLDER/gpu_speed.json holds all numbers. Each row is measured only behind a check of its
outputs against the float64 reference. Needs torch and numpy alone. With a checkout of github.com/AaronSpieler/elmneuron
the authors' neuron is timed too, where it is no population and there are at most 1024 steps.

Longer than most: one file that a bare machine runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from elm_neuro import ALIF, ELM, BranchELM, ELMNetworkClassifier, SpikeEvents, backends
from elm_neuro.backends.cuda import (
    _alif,
    _compile,
    _driver,
    _frames,
    _input,
    _memory,
    _network,
    _plans,
    _readout,
    _weights,
)
from elm_neuro.backends.cuda._launch import address
from elm_neuro.backends.parts._surrogates import KERNEL_SURROGATES
from elm_neuro.functional import MultiGaussian


class Row(NamedTuple):
    num_input: int
    num_memory: int
    batch: int
    num_steps: int
    density: float  # 0: one input a step
    branched: bool
    num_neuron: int | None = None
    target: float | None = None  # ms forward and backward on an H100
    against_torch: bool = False


ROWS = {
    "N8": Row(1278, 20, 8, 500, 0.01, True, None, 1.0, True),
    "N32": Row(1278, 20, 32, 500, 0.01, True, None, 1.1),
    "N256": Row(1278, 20, 256, 500, 0.01, True, None, 2.5),
    "E20": Row(1278, 20, 8, 500, 0.01, False, None, 1.0),
    "S1000": Row(700, 100, 32, 1000, 0.02, False, None, 4.5),
    "S1000 B256": Row(700, 100, 256, 1000, 0.02, False),
    "L1k": Row(16, 150, 32, 1024, 0.0, False, None, 9.0),
    "L1k384": Row(16, 150, 384, 1024, 0.0, False, None, 35.0),
    "L16k": Row(16, 150, 2, 16384, 0.0, False, None, 140.0),
    "P64": Row(140, 8, 32, 100, 0.03, False, 64, 2.5),
    "T1": Row(1278, 20, 1, 1, 0.01, True),
}


class ALIFRow(NamedTuple):
    """128 inputs of which 10 % spike, 128 recurrent adaptive neurons."""

    num_steps: int
    latency: int
    batch: int


ALIF_ROWS = {"A512": ALIFRow(512, 10, 32), "A1024": ALIFRow(1024, 50, 128), "A2048": ALIFRow(2048, 100, 128)}


class NetworkRow(NamedTuple):
    """The published layers of ELM neurons: 8 samples of 700 inputs, of which 8 % spike, in 1000 steps; 19 classes."""

    num_neuron: int
    num_memory: int


NETWORK_ROWS = {"EN96": NetworkRow(96, 5), "EN57": NetworkRow(57, 9)}
LINES: list[str] = []


def say(text: str) -> None:
    print(text, flush=True)
    LINES.append(text)


def neuron_of(row: Row) -> ELM:
    options: dict[str, Any] = {"tau_m_init": (1.0, 150.0), "num_neuron": row.num_neuron}
    torch.manual_seed(0)
    if row.branched:
        return BranchELM(row.num_input, 2, row.num_memory, num_branch=45, num_synapse_per_branch=100, **options)
    return ELM(row.num_input, 2, row.num_memory, **options)


def frames_of(row: Row, device: str = "cuda") -> torch.Tensor:
    size = row.batch, row.num_steps
    if row.density:
        return (torch.rand(*size, row.num_input, device=device) < row.density).float()
    return torch.nn.functional.one_hot(torch.randint(row.num_input, size, device=device), row.num_input).float()


def kernel_of(row: Row, backward: bool) -> _memory.Kernel:
    return _memory.kernel_for(
        row.num_memory, 2 * row.num_memory, True, False, False, row.batch, row.num_neuron or 1, 0, backward
    )


def compile_one(job: tuple[Any, str, int]) -> str:
    try:
        _compile.machine_code(*job)
    except Exception as error:  # noqa: BLE001 - told in the parent
        return f"{type(error).__name__} {str(error)[:200]}"
    return ""


def compile_all(pool: Any, programs: list[Any], architecture: int) -> None:
    """In processes side by side."""
    start = time.perf_counter()
    jobs = [(program, name, architecture) for program in dict.fromkeys(programs) for name in program.kernels()]
    failed = [error for error in pool.map(compile_one, jobs, chunksize=1) if error]
    say(f"compiled {len(jobs)} kernels in {time.perf_counter() - start:.1f} s, failed {len(failed)} {failed[:2]}")


def timed(call: Any, repeats: int, between: int = 1) -> dict[str, float]:
    """Milliseconds of wall time and of the host alone, medians; `between` calls go out between looks at the clock."""
    wall, host = [], []
    for repeat in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(between):
            call()
        issued = time.perf_counter()
        torch.cuda.synchronize()
        if repeat >= 2:
            wall.append(1e3 * (time.perf_counter() - start) / between)
            host.append(1e3 * (issued - start) / between)
    return {"wall": statistics.median(wall), "host": statistics.median(host)}


def checked(row: Row, neuron: ELM, x: torch.Tensor) -> float:
    """Largest error of outputs on the first samples and steps, of their largest value."""
    part = x[:2, :64]
    exact = type(neuron).from_config(neuron.config, routing=neuron.cell.input_to_synapse_indices, backend="reference")
    exact = exact.cuda().double()
    exact.load_state_dict(neuron.state_dict())
    with torch.no_grad():
        wanted, found = exact(part.double())[0], neuron(part)[0]
        whole = neuron(x[:, :64])[0][:2]
    error = max(float((y.double() - wanted).abs().max() / wanted.abs().max()) for y in (found, whole))
    if not error < 2e-5:
        raise RuntimeError(f"outputs are off by {error:.1e}")
    return error


def times_of(record: dict[str, Any]) -> str:
    return f"{record['both']['wall']:.2f} ({record['forward']['wall']:.2f})"


def times(module: Any, given: Any, repeats: int, *, here: bool = True) -> dict[str, Any]:
    """Of a pass forward and backward, and of one forward; with the backward pass `here`, in the thread that asks for it
    and not in autograd's of the device.
    """
    call = both(module, given)
    found = {"both": timed(call, repeats), "forward": timed(alone(module, given), repeats)}
    if here:
        with torch.autograd.set_multithreading_enabled(False):
            found["here"] = timed(call, repeats)
    return found


def here_of(record: dict[str, Any], *variants: str) -> str:
    return ", ".join(f"{record[name]['here']['wall']:.2f}" for name in variants)


def both(module: Any, given: Any) -> Any:
    learned = list(module.parameters())

    def call() -> None:
        for parameter in learned:  # as an optimizer has it: a module's zero_grad looks for its parameters each time
            parameter.grad = None
        y = module(given)[0]
        y.backward(torch.ones_like(y))

    return call


def alone(module: Any, given: Any) -> Any:
    def call() -> None:
        with torch.no_grad():
            module(given)

    return call


def authors(upstream: Path, neuron: ELM) -> torch.nn.Module:
    """Their neuron with the same weights, called as ours is."""
    from peers import load_upstream, upstream_twin

    twin = upstream_twin(load_upstream(upstream), neuron).cuda()

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twin = twin

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.twin(x),)

    return Called()


def measure(name: str, row: Row, upstream: Path | None = None) -> dict[str, Any]:
    neuron, x = neuron_of(row).cuda(), frames_of(row)
    neuron.backend = "cuda"
    record: dict[str, Any] = {"error": checked(row, neuron, x)}
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(row.num_input, row.num_memory * (row.num_neuron or 1), batch_first=True).cuda()
    variants: dict[str, tuple[Any, Any]] = {
        "dense": (neuron, x),
        "events": (neuron, SpikeEvents.from_frames(x)),
        "lstm": (lstm, x),
    }
    if row.density:
        variants["bytes"] = (neuron, x.to(torch.uint8))
    if row.against_torch:
        plain = (
            type(neuron)
            .from_config(neuron.config, routing=neuron.cell.input_to_synapse_indices, backend="torch")
            .cuda()
        )
        variants["torch"] = (plain, x)
    if upstream is not None and 1 < row.num_steps <= 1024 and row.num_neuron is None:
        try:
            variants["authors"] = (authors(upstream, neuron), x)
        except Exception as error:  # noqa: BLE001 - the row stands without them
            say(f"{name} authors FAILED: {type(error).__name__} {str(error)[:150]}")
    big = row.batch * row.num_steps > 30000
    for variant, (module, given) in variants.items():
        repeats = 3 if variant in ("torch", "authors") or (big and variant == "lstm") else 6 if big else 20
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        record[variant] = times(module, given, repeats, here=variant in ("dense", "events", "lstm"))
        record[variant]["peak_mb"] = (torch.cuda.max_memory_allocated() - base) / 2**20
    if not big:
        record["graph"] = graphed(neuron, x)
    cells = [
        times_of(record[v]) if v in record else "-" for v in ("dense", "events", "bytes", "lstm", "torch", "authors")
    ]
    target = "" if row.target is None else f" {row.target:g}"
    say(
        f"{name:10s} {' | '.join(cells)} | {here_of(record, 'dense', 'events', 'lstm')} | "
        f"{record.get('graph', float('nan')):.2f} | {record['dense']['both']['host']:.2f} | "
        f"{record['dense']['peak_mb']:.0f}, {record['lstm']['peak_mb']:.0f} | {record['error']:.0e}{target}"
    )
    return record


def alif_of(row: ALIFRow) -> tuple[ALIF, torch.Tensor]:
    torch.manual_seed(0)
    latency, surrogate = float(row.latency), MultiGaussian()
    layer = ALIF(128, 128, latency=latency, recurrent=True, surrogate=surrogate, tau_v=10.0, backend="cuda").cuda()
    with torch.no_grad():  # a few per cent of spikes
        layer.cell.weight.mul_(3.0)
        layer.cell.bias.fill_(0.02)
    return layer, (torch.rand(row.batch, row.num_steps, 128, device="cuda") < 0.1).float()


def measure_alif(name: str, row: ALIFRow) -> dict[str, Any]:
    layer, x = alif_of(row)
    plain = ALIF.from_config(layer.config, backend="torch").cuda()
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        found, wanted = layer(x)[0], plain(x)[0]
    differ, rate = float((found != wanted).float().mean()), float(wanted.mean())
    if not differ < 1e-3 * rate:  # a membrane within a rounding of the threshold fires or not
        raise RuntimeError(f"{differ:.1e} of the spikes differ, where {rate:.1%} of the steps have one")
    record: dict[str, Any] = {"differ": differ, "rate": rate}
    for variant, module, given in (
        ("dense", layer, x), ("events", layer, SpikeEvents.from_frames(x)), ("torch", plain, x),
    ):  # fmt: skip
        repeats = 2 if variant == "torch" else 10
        record[variant] = times(module, given, repeats, here=variant != "torch")
    cells = [times_of(record[variant]) for variant in ("dense", "events", "torch")]
    cells.append(here_of(record, "dense", "events"))
    say(f"{name:10s} {' | '.join(cells)} | {rate:.1%} spikes, {differ:.0e} differ")
    return record


def network_of(row: NetworkRow) -> tuple[ELMNetworkClassifier, torch.Tensor]:
    torch.manual_seed(0)
    network = ELMNetworkClassifier(700, 19, row.num_neuron, row.num_memory).cuda().eval()
    return network, (torch.rand(8, 1000, 700, device="cuda") < 0.08).float()


def measure_network(name: str, row: NetworkRow) -> dict[str, Any]:
    network, x = network_of(row)
    with torch.no_grad():
        with backends.use("reference"):
            wanted = copy.deepcopy(network).double()(x[:, :64].double())[0]
        with backends.use("cuda"):
            found = network(x[:, :64])[0]
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error < 1e-3:
        raise RuntimeError(f"outputs are off by {error:.1e}")
    record: dict[str, Any] = {"error": error}
    for variant, given in (("dense", x), ("events", SpikeEvents.from_frames(x)), ("torch", x)):
        repeats = 2 if variant == "torch" else 10
        with backends.use("torch" if variant == "torch" else "cuda"):
            record[variant] = times(network, given, repeats, here=variant != "torch")
    cells = [times_of(record[variant]) for variant in ("dense", "events", "torch")]
    cells.append(here_of(record, "dense", "events"))
    say(f"{name:10s} {' | '.join(cells)} | error {error:.0e}")
    return record


def graphed(neuron: ELM, x: torch.Tensor) -> float:
    """Milliseconds of a forward and backward pass replayed as a CUDA graph: the device alone."""
    call, stream = both(neuron, x), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return timed(graph.replay, 10)["wall"]


def profiled(name: str) -> dict[str, Any]:
    """Kernels of one pass and their time."""
    from torch.profiler import ProfilerActivity, profile

    layer: torch.nn.Module
    if name in ROWS:
        layer, x = neuron_of(ROWS[name]).cuda(), frames_of(ROWS[name])
    else:
        layer, x = alif_of(ALIF_ROWS[name]) if name in ALIF_ROWS else network_of(NETWORK_ROWS[name])
    result: dict[str, Any] = {}
    for variant, given in (("dense", x), ("events", SpikeEvents.from_frames(x))):
        for _ in range(3):
            both(layer, given)()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            both(layer, given)()
            torch.cuda.synchronize()
        kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        spent: Counter[str] = Counter()
        for event in kernels:
            spent[event.name[:44]] += event.device_time
        total = sum(spent.values())
        most = ", ".join(f"{key} {us:.0f}" for key, us in spent.most_common(9))
        say(f"{name} {variant}: {len(kernels)} kernels, {total:.0f} us: {most}")
        result[variant] = {"kernels": len(kernels), "us": total, "by_kernel": dict(spent)}
    return result


SWEEP = [  # num_memory, batch, neurons, steps, threads, lanes, samples
    (20, 8, 1, 500, (64,), (1, 2), (1,)),
    (20, 256, 1, 500, (32, 64), (1,), (1,)),
    (8, 32, 64, 100, (32,), (1, 2), (1,)),
    (100, 32, 1, 500, (256,), (4, 8), (1,)),
    (150, 32, 1, 300, (256, 512), (4, 8), (1,)),
    (150, 384, 1, 200, (256, 512), (4, 8), (3,)),
    (256, 32, 1, 100, (256, 512), (4, 16), (1,)),
]
RESERVES = (0, 12, 24)  # registers left free beyond the count
DEPTHS = (None, 8)  # steps loaded ahead


def sweep_plans(device: _plans.Device) -> list[tuple[tuple[Any, ...], list[Any]]]:
    found = []
    for case in SWEEP:
        memory, _, _, _, threads, lanes, samples = case
        shape = _plans.Shape(memory, 2 * memory, 1, False, False)
        plans = [
            _plans.layout(shape, device, t, s, (lane, 2 * lane), backward=backward, reserve=reserve, depth=depth)
            for backward in (False, True) for t in threads for lane in lanes for s in samples
            for reserve in (RESERVES if memory >= 100 else (0,)) for depth in (DEPTHS if memory < 100 else (None,))
        ]  # fmt: skip
        found.append((case, [plan for plan in dict.fromkeys(plans) if plan is not None]))
    return found


class Steps:
    """The recurrence alone, of drawn numbers: relu, one hidden layer, 2 * memory wide."""

    def __init__(self, memory: int, batch: int, neurons: int, steps: int, device: str = "cuda") -> None:
        self.sizes = batch, steps, neurons, memory
        generator = torch.Generator(device).manual_seed(0)

        def draw(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator, device=device)

        first, rows = 2 * memory, (neurons, batch, steps)
        self.kappa_b, self.kappa = torch.tensor(0.8, device=device), draw(neurons, memory).sigmoid() * 0.5 + 0.49
        self.gain, self.v = 5 * (1 - self.kappa), draw(batch, steps, neurons, first)
        self.w1, self.w2 = draw(neurons, first, memory) / memory**0.5 / 4, draw(neurons, memory, first) / first**0.5 / 4
        self.b1, self.b2, self.grad_memory = draw(neurons, first), draw(neurons, memory), draw(*rows, memory)
        self.memory, self.tanhs, self.dq = (draw(*rows, memory) for _ in range(3))
        self.hidden, self.dz = draw(*rows, first), draw(*rows, first)
        self.m_last, self.dv = draw(batch, neurons, memory), torch.empty_like(self.v)
        self.sums = draw(neurons, batch, 3 * memory + first)

    def run(self, plan: _plans.Plan) -> Callable[[], None]:
        """What launches one direction in this layout."""
        recurrence = _memory.Recurrence(_memory.Kernel(plan), *self.sizes)
        packed = self.v.new_empty(recurrence.num_packed)
        matrices = (self.w1, self.w2, packed, None, self.kappa_b)
        records = (self.kappa, self.gain, self.memory, self.tanhs, self.hidden)
        tensors = (*matrices, self.v, None, None, self.b1, self.b2, *records, self.m_last)
        if plan.backward:
            flows = (self.dq, self.dz, None, self.dv, None, None, None, self.sums)
            tensors = (*matrices, None, *records, self.grad_memory, None, *flows)
        run, fields = recurrence.on(_driver.launcher().queue(self.v.device)), [address(tensor) for tensor in tensors]

        def launch(_alive: object = packed) -> None:
            run(*fields)

        return launch


def time_of(plan: _plans.Plan, plans: list[_plans.Plan], steps: Steps) -> float:
    """Milliseconds of one direction in this layout, the other direction in any."""
    if plan.backward:
        steps.run(next(entry for entry in plans if not entry.backward))()  # the records that it reads
    return timed(steps.run(plan), 3)["wall"]


def attributes(plan: _plans.Plan) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread."""
    driver: Any = _driver.launcher()
    name = "elm_backward" if plan.backward else "elm_forward"
    registers, local = (driver.attribute(0, _memory.program(plan), name, number) for number in (4, 3))
    return registers, local


def sweep(device: _plans.Device) -> list[dict[str, Any]]:
    """Time of the recurrence alone in several layouts, microseconds a step."""
    result = []
    for case, plans in sweep_plans(device):
        memory, batch, neurons, steps, *_ = case
        alone = Steps(memory, batch, neurons, steps)
        timings = []
        for plan in plans:
            try:
                timings.append((1e3 * time_of(plan, plans, alone) / steps, plan, *attributes(plan)))
            except Exception as error:  # noqa: BLE001 - one layout that fails must not hide the others
                say(f"  FAILED {plan.threads}/{plan.up.lanes}: {type(error).__name__} {str(error)[:150]}")
        for backward in (False, True):
            table = sorted((entry for entry in timings if entry[1].backward == backward), key=lambda entry: entry[0])
            shown = ", ".join(
                f"{us:.2f} {p.threads}/{p.up.lanes} kept {p.up.kept} depth {p.depth} r{r} l{loc}"
                for us, p, r, loc in table[:3]
            )
            say(f"{memory} B{batch} {'bwd' if backward else 'fwd'}: {shown}; worst {table[-1][0]:.2f}")
            result += [
                {"case": case, "backward": backward, "us": us, "threads": p.threads, "lanes": p.up.lanes,
                 "samples": p.samples, "kept": [h.kept for h in (p.up, p.down)],
                 "near": [h.near for h in (p.up, p.down)],
                 "depth": p.depth, "registers": r, "local": loc, "cycles": p.cycles}
                for us, p, r, loc in table
            ]  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--sweep", action="store_true", help="layouts of the recurrence too")
    parser.add_argument("--upstream", type=Path, metavar="CHECKOUT", help="time the authors' neuron too")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # the LSTM in exact float32 too
    result: dict[str, Any] = {"rows": {}}
    # forked before this process has a context on the GPU
    pool = multiprocessing.get_context("fork").Pool(min(15, os.cpu_count() or 1))
    properties = _driver.launcher().device(0)
    programs = [part.program(torch.float32) for part in (_input, _weights, _readout)]
    kind = KERNEL_SURROGATES[MultiGaussian]
    programs += [_frames.program(torch.float32, of_bytes=of_bytes) for of_bytes in (False, True)]
    programs += [*(_alif.program(torch.float32, 128, kind, ahead) for ahead in (11, 16))]
    programs += [_network.program(torch.float32, backward=backward) for backward in (False, True)]
    programs += [kernel_of(ROWS[name], backward).program for name in options.rows for backward in (False, True)]
    if options.sweep:
        programs += [_memory.program(plan) for _, plans in sweep_plans(properties) for plan in plans]
    compile_all(pool, programs, properties.architecture)
    pool.terminate()
    say(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {properties}")
    say("row: ms forward + backward (forward alone) | dense | events | bytes | cuDNN LSTM | torch | authors")
    say("     | dense, events and LSTM with the backward pass in the calling thread")
    say("     | as a CUDA graph | host alone of dense | peak MB of dense, of the LSTM | error, target")
    parts: list[tuple[str, Any]] = [
        (name, lambda name=name: result["rows"].update({name: measure(name, ROWS[name], options.upstream)}))
        for name in options.rows
    ]
    parts += [
        (name, lambda name=name: result["rows"].update({name: measure_alif(name, ALIF_ROWS[name])}))
        for name in (ALIF_ROWS if options.rows == list(ROWS) else ())
    ]
    parts += [
        (name, lambda name=name: result["rows"].update({name: measure_network(name, NETWORK_ROWS[name])}))
        for name in (NETWORK_ROWS if options.rows == list(ROWS) else ())
    ]
    parts += [
        (f"profile {name}", lambda name=name: result.update({f"profile {name}": profiled(name)}))
        for name in ("N8", "S1000", *(("A512", "A1024", "EN96") if options.rows == list(ROWS) else ()))
    ]
    if options.sweep:
        parts.append(("sweep", lambda: result.update({"sweep": sweep(properties)})))
    for name, part in parts:
        start = time.perf_counter()
        try:
            part()
        except Exception as error:  # noqa: BLE001 - a row that fails must not hide the others
            say(f"{name} FAILED: {type(error).__name__} {str(error)[:300]}")
        result.setdefault("seconds", {})[name] = time.perf_counter() - start
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu_speed.json").write_text(json.dumps(result, default=str))
        (options.out / "gpu_speed.txt").write_text("\n".join(LINES) + "\n")


if __name__ == "__main__":
    main()
