"""First look at a GPU: are the kernels right, how long do rows take, which layouts are fast.

    PYTHONPATH=. python3 benchmarks/gpu_session.py --out FOLDER [--parts check rows layouts profile]

Whatever fails prints its error, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, backends
from elm_neuro.backends.cuda import _compile, _driver, _input, _memory, _plans
from elm_neuro.backends.elm import _cuda

ROWS: dict[str, tuple[Any, ...]] = {  # input, memory, batch, steps, density, branched, neurons
    "N8": (1278, 20, 8, 500, 0.01, True, None),
    "N32": (1278, 20, 32, 500, 0.01, True, None),
    "N256": (1278, 20, 256, 500, 0.01, True, None),
    "E20": (1278, 20, 8, 500, 0.01, False, None),
    "S1000": (700, 100, 32, 1000, 0.02, False, None),
    "L1k": (16, 150, 32, 1024, 0.0, False, None),
    "L1k384": (16, 150, 384, 1024, 0.0, False, None),
    "L16k": (16, 150, 2, 16384, 0.0, False, None),
    "P64": (140, 8, 32, 100, 0.03, False, 64),
    "T1": (1278, 20, 1, 1, 0.01, True, None),
}
LINES: list[str] = []
RESULT: dict[str, Any] = {}


def say(text: str) -> None:
    print(text, flush=True)
    LINES.append(text)


def run(x: Any, neuron: ELM, state: Any = None, **options: Any) -> Any:
    return _cuda.scan(x, neuron.cell.effective_parameters(), state, **options)


def neuron_of(row: tuple[Any, ...]) -> ELM:
    size, memory, _, _, _, branched, num_neuron = row
    options: dict[str, Any] = {"learn_tau_m": False, "tau_m_init": (1.0, 150.0), "num_neuron": num_neuron}
    torch.manual_seed(0)
    if branched:
        return BranchELM(size, 2, memory, num_branch=45, num_synapse_per_branch=100, **options)
    return ELM(size, 2, memory, **options)


def input_of(row: tuple[Any, ...]) -> torch.Tensor:
    size, _, batch, steps, density, _, _ = row
    if density == 0:
        return torch.nn.functional.one_hot(torch.randint(size, (batch, steps)), size).float()
    return (torch.rand(batch, steps, size) < density).float()


def compile_one(job: tuple[Any, int]) -> tuple[float, str]:
    start = time.perf_counter()
    try:
        _compile.machine_code(*job)
    except Exception as error:  # noqa: BLE001
        return time.perf_counter() - start, str(error)[:300]
    return time.perf_counter() - start, ""


def compile_all(programs: list[Any], architecture: int) -> None:
    """In processes of their own: forked before this one has used the GPU."""
    start = time.perf_counter()
    jobs = [(program, architecture) for program in dict.fromkeys(programs)]
    with multiprocessing.get_context("fork").Pool(min(15, os.cpu_count() or 1)) as pool:
        done = pool.map(compile_one, jobs, chunksize=1)
    failed = [error for _, error in done if error]
    say(
        f"compiled {len(jobs)} programs in {time.perf_counter() - start:.1f} s; slowest {max(t for t, _ in done):.1f} s, failed {len(failed)}"
    )
    for error in failed[:3]:
        say(f"  {error}")


def drawn() -> list[tuple[dict[str, Any], int, int, bool, bool, bool, torch.dtype]]:
    """Neuron, batch, steps, with a state, with lengths, as events, dtype."""
    cases = []
    generator = torch.Generator().manual_seed(5)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    for memory in (1, 3, 8, 20, 20, 32, 50, 64, 100, 100, 128, 150, 150, 200, 256, 20, 7, 13):
        options = {
            "num_memory": memory,
            "num_mlp_layers": pick(1, 1, 1, 0),
            "activation": pick("relu", "relu", "silu"),
            "variant": pick("v1", "v2"),
            "num_neuron": pick(None, None, 3) if memory <= 32 else None,
            "mlp_hidden_size": pick(None, None, 9) if memory <= 64 else None,
            "tau_s": pick(5.0, 5.0, tuple(1.0 + i for i in range(12))),
            "branched": pick(False, True),
        }
        double = pick(False, False, True) and memory <= 100
        dtype = torch.float64 if double else torch.float32
        cases.append(
            (
                options,
                pick(1, 3, 5, 150),
                pick(1, 7, 40),
                pick(False, True),
                pick(False, True),
                pick(False, True),
                dtype,
            )
        )
    return cases


def make_drawn(options: dict[str, Any]) -> ELM:
    options = dict(options)
    torch.manual_seed(1)
    if options.pop("branched"):
        return BranchELM(30, 3, num_branch=12, num_synapse_per_branch=4, routing="random", **options)
    tau = options.pop("tau_s")
    return ELM(30, 3, tau_s=5.0 if isinstance(tau, tuple) else tau, **options)


def check(device: torch.device) -> None:
    worst_out = worst_grad = 0.0
    for options, batch, steps, with_state, with_lengths, as_events, dtype in drawn():
        label = f"{options} B{batch} T{steps} {with_state} {with_lengths} {as_events} {dtype}"
        try:
            neuron = make_drawn(options)
            generator = torch.Generator().manual_seed(3)
            x = (torch.rand(batch, steps, 30, generator=generator) < 0.2).double()
            zeros = neuron.cell.initial_state(batch)
            state = (
                ELMState(*(torch.randn(s.shape, generator=generator).double() for s in zeros)) if with_state else None
            )
            lengths = torch.randint(0, steps + 1, (batch,), generator=generator) if with_lengths else None
            found = []
            for backend, kind in (("cuda", dtype), ("reference", torch.float64)):
                copy = make_drawn(options).to(device, kind)
                copy.load_state_dict(neuron.state_dict())
                x_own = x.to(device, kind)
                s_own = None if state is None else ELMState(*(s.to(device, kind).requires_grad_() for s in state))
                l_own = None if lengths is None else lengths.to(device)
                given: Any = SpikeEvents.from_frames(x_own) if as_events else x_own.requires_grad_()
                params = copy.cell.effective_parameters()
                if backend == "cuda":
                    y, after = _cuda.scan(given, params, s_own, lengths=l_own)
                else:
                    y, after = backends.scan(given, params, s_own, lengths=l_own, backend="reference")
                weights = torch.Generator().manual_seed(9)
                results = [y, *after]
                loss = sum(
                    (r.double() * torch.randn(r.shape, generator=weights, dtype=torch.float64).to(device)).sum()
                    for r in results
                )
                assert isinstance(loss, torch.Tensor)
                loss.backward()
                grads = [p.grad for p in copy.parameters()] + ([] if as_events else [x_own.grad])
                grads += [] if s_own is None else [s.grad for s in s_own]
                found.append(([r.detach() for r in results], grads))

            def off(ours: Any, wanted: Any) -> float:
                errors = [
                    float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-2))
                    for a, b in zip(ours, wanted, strict=True)
                    if a is not None and a.numel()
                ]
                return max(float("inf") if e != e else e for e in errors)

            out, grad = off(found[0][0], found[1][0]), off(found[0][1], found[1][1])
            limit = (1e-9, 1e-8) if dtype == torch.float64 else (1e-5, 2e-4)
            if not (out <= limit[0] and grad <= limit[1]):
                say(f"WRONG outputs {out:.1e} gradients {grad:.1e}: {label}")
            if dtype == torch.float32:
                worst_out, worst_grad = max(worst_out, out), max(worst_grad, grad)
        except Exception as error:  # noqa: BLE001
            say(f"FAILED {label}: {type(error).__name__} {str(error)[:300]}")
            traceback.print_exc(file=sys.stderr)
    say(f"{len(drawn())} drawn neurons: float32 outputs off by at most {worst_out:.1e}, gradients {worst_grad:.1e}")
    RESULT["check"] = {"outputs": worst_out, "gradients": worst_grad}


def timed(call: Any, repeats: int) -> tuple[float, float]:
    """Milliseconds between events on the device, and of wall time; medians."""
    device_times, wall_times = [], []
    for repeat in range(repeats + 2):
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start = time.perf_counter()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if repeat >= 2:
            wall_times.append(1e3 * (time.perf_counter() - start))
            device_times.append(begin.elapsed_time(end))
    return statistics.median(device_times), statistics.median(wall_times)


def rows(device: torch.device) -> None:
    say(
        "row: ms forward + backward (forward alone), wall, medians | cuda dense | cuda events | torch | cuDNN LSTM | peak MB of cuda dense"
    )
    RESULT["rows"] = {}
    for name, row in ROWS.items():
        cells = []
        try:
            neuron = neuron_of(row).to(device)
            x = input_of(row).to(device)
            events = SpikeEvents.from_frames(x)
            width = row[1] * (row[6] or 1)
            lstm = torch.nn.LSTM(row[0], width, batch_first=True).to(device)
            big = row[2] * row[3] > 30000
            torch_too = name in ("N8", "N32", "E20", "P64", "T1")

            def ours(given: Any, neuron: ELM = neuron) -> Any:
                return run(given, neuron)[0]

            def plain(given: Any, neuron: ELM = neuron) -> Any:
                return backends.scan(given, neuron.cell.effective_parameters(), None, backend="torch")[0]

            variants: dict[str, Any] = {
                "dense": (ours, x, neuron),
                "events": (ours, events, neuron),
                "torch": (plain, x, neuron) if torch_too else None,
                "lstm": (lambda given, lstm=lstm: lstm(given)[0], x, lstm),
            }
            record: dict[str, Any] = {}
            for variant, what in variants.items():
                if what is None:
                    cells.append("-")
                    continue
                call, given, module = what
                repeats = 3 if variant == "torch" or (variant == "lstm" and big) else 7 if big else 15
                try:
                    torch.cuda.reset_peak_memory_stats()
                    base = torch.cuda.memory_allocated()

                    def both(call: Any = call, given: Any = given, module: Any = module) -> None:
                        module.zero_grad(set_to_none=True)
                        call(given).square().sum().backward()

                    def alone(call: Any = call, given: Any = given) -> None:
                        with torch.no_grad():
                            call(given)

                    both_ms = timed(both, repeats)
                    peak = (torch.cuda.max_memory_allocated() - base) / 2**20
                    alone_ms = timed(alone, repeats)
                    record[variant] = {"both": both_ms, "forward": alone_ms, "peak_mb": peak}
                    cells.append(f"{both_ms[1]:.2f} ({alone_ms[1]:.2f})")
                except Exception as error:  # noqa: BLE001
                    cells.append(f"{type(error).__name__} {str(error)[:100]}")
                    traceback.print_exc(file=sys.stderr)
            RESULT["rows"][name] = record
            cells.append(f"{record['dense']['peak_mb']:.0f}" if "dense" in record else "-")
        except Exception as error:  # noqa: BLE001
            cells.append(f"{type(error).__name__} {str(error)[:200]}")
            traceback.print_exc(file=sys.stderr)
        say(f"{name:7s} " + " | ".join(cells))


class Timed(_driver.Driver):
    """Notes the events around each launch of a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: dict[str, list[Any]] = {}

    def launch(self, program: Any, kernel: str, *rest: Any) -> None:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        super().launch(program, kernel, *rest)
        end.record()
        self.spans.setdefault(kernel, []).append((begin, end))


SWEEP = [  # memory, batch, neurons, steps, threads, lanes, samples
    (20, 8, 1, 500, (32, 64, 128), (1, 2, 4), (1,)),
    (20, 256, 1, 500, (32, 64), (1, 2), (1, 2)),
    (8, 32, 64, 100, (32,), (1, 2), (1, 2, 4)),
    (50, 32, 1, 500, (64, 128, 256), (1, 2, 4), (1,)),
    (100, 32, 1, 500, (128, 256, 512), (2, 4, 8, 16), (1,)),
    (100, 256, 1, 300, (128, 256), (4, 8), (1, 2)),
    (150, 32, 1, 300, (128, 256, 512), (4, 8, 16), (1,)),
    (150, 384, 1, 200, (256, 512), (8, 16), (1, 2, 3)),
    (256, 32, 1, 100, (256, 512), (8, 16), (1,)),
]


def sweep_plans(device: _plans.Device) -> list[tuple[tuple[Any, ...], list[Any]]]:
    found = []
    for case in SWEEP:
        memory, batch, neurons, _, threads, lanes, samples = case
        shape = _plans.Shape(memory, 2 * memory, 1, False, False)
        plans = []
        for backward in (False, True):
            plans.append(_plans.choose(shape, device, batch, neurons, backward=backward))
            for t in threads:
                for lane in lanes:
                    for s in samples:
                        down = min(32, 2 * lane)
                        plan = _plans.layout(shape, device, t, s, (lane, down), backward=backward)
                        if plan is not None:
                            plans.append(plan)
        found.append((case, list(dict.fromkeys(plans))))
    return found


def layouts(device: torch.device, properties: _plans.Device) -> None:
    driver = Timed()
    _driver.launcher = lambda: driver  # type: ignore[assignment]
    choose = _memory.choose
    RESULT["layouts"] = []
    for case, plans in sweep_plans(properties):
        memory, batch, neurons, steps, *_ = case
        shape = (neurons,) if neurons > 1 else ()
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*size, generator=generator).to(device)

        kappa = torch.rand(*shape, memory, generator=generator).to(device) * 0.5 + 0.49
        operands = _memory.Recurrence(
            None, torch.tensor(0.8, device=device), draw(batch, steps, *shape, 2 * memory), None, draw(*shape, 2 * memory), None,
            kappa, 5 * (1 - kappa), draw(*shape, 2 * memory, memory) / memory**0.5,
            draw(*shape, memory, 2 * memory) / (2 * memory) ** 0.5, draw(*shape, memory),
        )  # fmt: skip
        chosen = {b: choose(plans[0].shape, properties, batch, neurons, backward=b) for b in (False, True)}
        grad = draw(neurons, batch, steps, memory)
        _memory.choose = lambda *_, backward, chosen=chosen, **__: chosen[backward]  # type: ignore[assignment]
        records = _memory.run_forward(operands, silu=False, save=True)
        wanted = (True,) * len(operands)
        expected = [g for g in _memory.run_backward(operands, records, grad, None, wanted, silu=False) if g is not None]
        for backward in (False, True):
            kernel = "elm_backward" if backward else "elm_forward"
            table = []
            for plan in (p for p in plans if p.backward == backward):
                _memory.choose = lambda *_, plan=plan, chosen=chosen, backward, **__: (
                    plan if backward == plan.backward else chosen[backward]
                )  # type: ignore[assignment]
                try:
                    driver.spans.clear()
                    for _ in range(5):
                        if backward:
                            out = _memory.run_backward(operands, records, grad, None, wanted, silu=False)
                            off = max(
                                float((a - b).abs().max() / b.abs().max())
                                for a, b in zip([g for g in out if g is not None], expected, strict=True)
                            )
                        else:
                            again = _memory.run_forward(operands, silu=False, save=True)
                            off = float((again.memory - records.memory).abs().max() / records.memory.abs().max())
                    torch.cuda.synchronize()
                    best = min(a.elapsed_time(b) for a, b in driver.spans[kernel]) / steps * 1e3
                    index = torch.cuda.current_device()
                    registers, local = (driver.attribute(index, _memory.program(plan), kernel, n) for n in (4, 3))
                    table.append((best, plan, registers, local, off))
                except Exception as error:  # noqa: BLE001
                    say(
                        f"  FAILED {plan.threads} threads {plan.up.lanes} lanes: {type(error).__name__} {str(error)[:200]}"
                    )
            table.sort(key=lambda entry: entry[0])
            say(
                f"{kernel[4:]} memory {memory} batch {batch} neurons {neurons}: us, threads/lanes/samples, registers, spills, near"
            )
            for best, plan, registers, local, off in table:
                RESULT["layouts"].append(
                    {"memory": memory, "batch": batch, "neurons": neurons, "backward": backward, "us": best, "threads": plan.threads,
                     "lanes": plan.up.lanes, "lanes_down": plan.down.lanes if plan.down else 0, "samples": plan.samples, "registers": registers,
                     "local": local, "cycles": plan.cycles, "kept": plan.up.kept, "near": plan.up.near, "vectors": plan.up.vectors, "off": off}
                )  # fmt: skip
            shown = table[:4] + [entry for entry in table[4:] if entry[1] == chosen[backward]]
            for best, plan, registers, local, off in shown:
                mark = f" <- {plan.cycles / 1755:.2f}" if plan == chosen[backward] else ""
                wrong = f" OFF {off:.0e}" if not off < 1e-4 else ""
                say(
                    f"  {best:.3f} {plan.threads}/{plan.up.lanes}/{plan.samples} {registers} {local} {plan.up.near}{mark}{wrong}"
                )
    _memory.choose = choose


def profile(device: torch.device) -> None:
    """Where the time of one small pass goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    row = ROWS["N8"]
    neuron, x = neuron_of(row).to(device), input_of(row).to(device)
    for given, name in ((x, "dense"), (SpikeEvents.from_frames(x), "events")):
        for _ in range(3):
            run(given, neuron)[0].square().sum().backward()
        with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            run(given, neuron)[0].square().sum().backward()
            torch.cuda.synchronize()
        kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        total = sum(e.device_time for e in kernels)
        say(f"N8 {name}: {len(kernels)} kernels, {total:.0f} us on the device")
        by_name: dict[str, list[float]] = {}
        for event in kernels:
            by_name.setdefault(event.name[:60], []).append(event.device_time)
        for kernel, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:8]:
            say(f"  {sum(times):7.1f} us in {len(times)} of {kernel}")
        RESULT[f"profile {name}"] = dict(by_name.items())


def main() -> None:
    torch.backends.cudnn.allow_tf32 = False  # peers in exact float32 too
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--parts", nargs="+", default=["check", "profile", "rows", "layouts"])
    options = parser.parse_args()
    began = time.perf_counter()
    # before this process uses the GPU: the pool below is forked
    properties = _plans.Device(132, 232448, 90)
    programs: list[Any] = [_input.program(torch.float32), _input.program(torch.float64)]
    if "check" in options.parts:
        for case, batch, _, _, _, _, dtype in drawn():
            neuron = make_drawn(case)
            layers = len(neuron.cell.mlp) - 1
            shape = _plans.Shape(
                case["num_memory"],
                neuron.cell.mlp[0].weight.shape[-2],
                layers,
                bool(layers) and case["activation"] == "silu",
                dtype == torch.float64,
            )
            for backward in (False, True):
                plan = _plans.choose(shape, properties, batch, case["num_neuron"] or 1, backward=backward)
                programs.append(_memory.program(plan))
    if "rows" in options.parts or "profile" in options.parts:
        for row in ROWS.values():
            shape = _plans.Shape(row[1], 2 * row[1], 1, False, False)
            programs += [
                _memory.program(_plans.choose(shape, properties, row[2], row[6] or 1, backward=b))
                for b in (False, True)
            ]
    if "layouts" in options.parts:
        programs += [_memory.program(plan) for _, plans in sweep_plans(properties) for plan in plans]
    try:
        version = ".".join(map(str, _compile.compiler().version))
        compile_all(programs, 90)
    except Exception as error:  # noqa: BLE001
        version = f"{type(error).__name__} {error}"
    device = torch.device("cuda")
    say(f"torch {torch.__version__}, NVRTC {version}, {torch.cuda.get_device_name()}, missing: {_cuda.missing()}")
    actual = _driver.launcher().device(0)
    say(f"device {actual}")
    start = time.perf_counter()
    try:
        neuron = ELM(5, 2, num_memory=11).to(device)
        torch.zeros(1, device=device).sum().item()
        start = time.perf_counter()
        y = run(torch.ones(2, 3, 5, device=device), neuron)[0]
        y.sum().backward()
        torch.cuda.synchronize()
        say(f"first call of a new shape {time.perf_counter() - start:.2f} s")
    except Exception as error:  # noqa: BLE001
        say(f"first call FAILED: {type(error).__name__} {str(error)[:500]}")
        traceback.print_exc(file=sys.stderr)
    parts = {
        "check": lambda: check(device),
        "profile": lambda: profile(device),
        "rows": lambda: rows(device),
        "layouts": lambda: layouts(device, actual),
    }
    for part in options.parts:
        start = time.perf_counter()
        try:
            parts[part]()
        except Exception as error:  # noqa: BLE001
            say(f"{part} FAILED: {type(error).__name__} {str(error)[:500]}")
            traceback.print_exc(file=sys.stderr)
        say(f"-- {part} took {time.perf_counter() - start:.1f} s, {time.perf_counter() - began:.0f} s in all")
        (options.out / "gpu_session.json").write_text(json.dumps(RESULT, default=str))
        (options.out / "gpu_session.txt").write_text("\n".join(LINES) + "\n")


if __name__ == "__main__":
    main()
