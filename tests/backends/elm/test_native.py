"""The compiled backend: every size of tile and vector against the reference, every instruction set, threads, processes,
bad memory.

Long, because all of it runs through one library and shares how it is built and driven.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, backends
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import SPARSE_DENSITY, Events
from tests.tolerances import assert_close

REPOSITORY = Path(__file__).resolve().parents[3]
X86_SETS = ast.literal_eval(
    re.search(r"X86_SETS = (\{.*?\n\})", (REPOSITORY / "setup.py").read_text(encoding="utf-8"), re.DOTALL)[1]
)  # type: ignore[index]
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def test_the_library_is_there_wherever_there_is_a_compiler() -> None:
    assert COMPILER is None or not _library.missing()


def gradients(neuron: ELM, x: torch.Tensor | SpikeEvents, start: ELMState | None = None) -> list[torch.Tensor]:
    """Output, last state and gradients of a random function of them in all parameters and the first state."""
    leaves = [*neuron.parameters(), *(start or ())]
    for leaf in leaves:
        leaf.grad = None
    y, after = neuron(x, start)
    generator = torch.Generator().manual_seed(3)
    results = [y, *after]
    sum(
        (r * torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)).sum() for r in results
    ).backward()  # type: ignore[union-attr]
    return [r.detach() for r in results] + [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


def compare(neuron: ELM, x: torch.Tensor, start: ELMState | None, *, scale: float) -> None:
    """Native equals the float64 reference; `scale` as in assert_close."""
    neuron.backend = "native"
    results = gradients(neuron, x, start)
    double = ELM.from_config(neuron.config, routing=neuron.cell.input_to_synapse_indices, backend="reference").double()
    double.load_state_dict(neuron.state_dict())
    start64 = None if start is None else ELMState(*(part.detach().double().requires_grad_() for part in start))
    for index, (result, wanted) in enumerate(zip(results, gradients(double, x.double(), start64), strict=True)):
        assert_close(
            result.double(), wanted, dtype=x.dtype, scale=scale if x.dtype == torch.float64 or index < 3 else 10.0
        )


def sizes(dtype: torch.dtype) -> None:
    """Memories from 1 unit to more than a hundred, batches of every remainder of a tile, odd lengths, all depths."""
    generator = torch.Generator().manual_seed(0)
    for num_memory, batch, num_steps, options in [
        (1, 1, 1, {}),
        (2, 3, 5, {"num_mlp_layers": 0}),
        (7, 15, 17, {"activation": "silu", "num_mlp_layers": 2}),
        (16, 2, 33, {"mlp_hidden_size": 3}),
        (17, 9, 70, {"num_mlp_layers": 3}),
        (33, 4, 129, {"variant": "v2", "activation": "silu"}),
        (100, 5, 40, {"num_mlp_layers": 2, "mlp_hidden_size": 49}),
        (300, 2, 20, {"num_mlp_layers": 0}),
        (150, 3, 13, {}),
        (5, 13, 19, {"num_neuron": 3}),
        (3, 2, 300, {"num_neuron": 2, "num_mlp_layers": 0}),
    ]:
        neuron = ELM(90, 2, num_memory=num_memory, generator=generator, **options).to(dtype)  # type: ignore[arg-type]
        for density in (0.02, 0.7):
            x = (torch.rand(batch, num_steps, 90, generator=generator) < density).to(dtype)
            zeros = neuron.cell.initial_state(batch)
            start = ELMState(
                *(torch.randn(part.shape, generator=generator).to(dtype).requires_grad_() for part in zeros)
            )
            compare(neuron, x, start if num_steps % 2 else None, scale=1e-3 if dtype == torch.float64 else 1.0)


native = pytest.mark.skipif(bool(_library.missing()), reason="no C++ compiler")


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_size_equals_the_reference(dtype: torch.dtype) -> None:
    sizes(dtype)


def run_python(code: str, cwd: Path = REPOSITORY, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(cwd)} | environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@native
@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_every_instruction_set_equals_the_reference(name: str) -> None:
    code = "import json, torch; from elm_neuro import backends; from tests.backends.elm import test_native as t"
    code += "; t.sizes(torch.float32); t.sizes(torch.float64); print(json.dumps(backends.available()))"
    used = json.loads(run_python(code, ELM_NEURO_ISA=name, OMP_NUM_THREADS="1"))["native"]
    best = backends.available()["native"]
    assert f"({name})" in used or (name not in best and "baseline" in best)


@native
def test_repeated_runs_are_bit_identical_and_threads_change_only_the_rounding() -> None:
    torch.manual_seed(0)
    neuron = ELM(100, 2, num_memory=40, backend="native")
    x = (torch.rand(13, 200, 100) < 0.03).float()
    before = torch.get_num_threads()
    try:
        results = {}
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results[threads] = gradients(neuron, x)
            for again, once in zip(gradients(neuron, x), results[threads], strict=True):
                assert torch.equal(again, once)
    finally:
        torch.set_num_threads(before)
    for threads in (2, 5):
        assert torch.equal(results[threads][0], results[1][0])
        for some, one in zip(results[threads], results[1], strict=True):
            assert_close(some, one, scale=10.0)


@native
def test_two_models_in_two_threads_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    models = [
        ELM(100, 2, num_memory=8, backend="native"),
        BranchELM(100, 2, num_memory=30, num_branch=20, num_synapse_per_branch=10, backend="native"),
    ]
    x = (torch.rand(9, 150, 100) < 0.05).float()
    alone = [gradients(model, x) for model in models]
    failures: list[str] = []

    def work(model: ELM, wanted: list[torch.Tensor]) -> None:
        same = [all(torch.equal(a, b) for a, b in zip(gradients(model, x), wanted, strict=True)) for _ in range(20)]
        failures.extend([type(model).__name__] * same.count(False))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@native
@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 2])
def test_two_models_for_some_seconds_in_two_threads_give_what_each_gives_alone(num_threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)  # also the number in the threads that are started below
        stress(seconds=5.0, num_threads=num_threads)
    finally:
        torch.set_num_threads(before)


def stress(*, seconds: float, num_threads: int) -> None:
    """Models of other sizes, dtypes and kinds of input, each in its own thread, against the same alone, bit for bit."""
    torch.manual_seed(0)
    wide = ELM(130, 3, num_memory=70, num_mlp_layers=2, activation="silu", backend="native")
    branched = BranchELM(
        100, 2, num_memory=30, num_branch=20, num_synapse_per_branch=10, num_neuron=3, backend="native"
    ).double()
    dense, sparse = torch.randn(11, 120, 130), (torch.rand(13, 90, 100) < 0.05).double()
    cases = [(wide, dense), (branched, sparse)]
    alone = [gradients(model, x) for model, x in cases]
    rounds, failures = [0, 0], [0, 0]
    end = time.monotonic() + seconds

    def work(index: int) -> None:
        torch.set_num_threads(num_threads)
        while time.monotonic() < end or rounds[index] < 3:
            failures[index] += not all(
                torch.equal(a, b) for a, b in zip(gradients(*cases[index]), alone[index], strict=True)
            )
            rounds[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(rounds) >= 3
    assert failures == [0, 0]


class Outputs(torch.utils.data.Dataset[torch.Tensor]):
    """Outputs of a neuron, computed in the loader's workers, and how many threads the library would use there for any amount of work."""

    def __init__(self, neuron: ELM, x: torch.Tensor) -> None:
        self.neuron, self.x = neuron, x

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with torch.no_grad():
            y: torch.Tensor = self.neuron(self.x[index : index + 1])[0][0]
        return y, _library.threads_for(1e12)


@native
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_started_after_a_call_with_threads_compute_the_same_on_one_thread(start: str) -> None:
    torch.manual_seed(0)
    neuron = ELM(64, 2, num_memory=64, backend="native")
    x = (torch.rand(6, 300, 64) < 0.1).float()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert _library.threads_for(1e12) == 2
        y = neuron(x)[0].detach()
        loader = torch.utils.data.DataLoader(
            Outputs(neuron, x), batch_size=3, num_workers=2, multiprocessing_context=start
        )
        outputs, threads = zip(*loader, strict=True)
        assert torch.cat(threads).tolist() == [1] * 6
        assert torch.equal(torch.cat(outputs), torch.cat([neuron(x[i : i + 1])[0].detach() for i in range(6)]))
        assert_close(torch.cat(outputs), y)
    finally:
        torch.set_num_threads(before)


@native
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds on Linux only")
def test_too_little_memory_is_an_error_and_not_the_end_of_the_interpreter() -> None:
    """With ever more room left to the process, a pass fails in torch, then in the library, then not at all."""
    code = """
import collections, resource, torch
from elm_neuro import ELM
torch.set_num_threads(1)
neuron, x = ELM(3, 1, num_memory=1500, backend="native"), torch.rand(1, 3, 3)
def run():
    neuron.zero_grad()
    neuron(x)[0].sum().backward()
    return neuron.cell.w_y.weight.grad.clone()
expected, outcomes, soft = run(), collections.Counter(), resource.getrlimit(resource.RLIMIT_AS)
for room in range(4, 400, 12):
    neuron.zero_grad()
    size = 4096 * int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (size + room * 2**20, soft[1]))
    try:
        outcomes["equal" if torch.equal(run(), expected) else "different"] += 1
    except MemoryError as error:
        outcomes[str(error).split(" of ")[0]] += 1
    except RuntimeError as error:
        outcomes["torch" if "allocate memory" in str(error) else str(error)] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, soft)
print(dict(outcomes))
assert torch.equal(run(), expected)
"""
    outcomes = ast.literal_eval(run_python(code, OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="1"))
    assert set(outcomes) <= {"equal", "torch", "no memory for the working copy", "no memory for the gradients"}
    assert outcomes["equal"] > 3
    assert len(outcomes) > 2, outcomes


@native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
@pytest.mark.parametrize("given", ["events", "frames"])
def test_a_recomputed_pass_takes_the_memory_of_its_parts(given: str) -> None:
    """16,384 rows of 60 + 120 units in float32 are 12 MiB; of 256 steps at a time they are 0.4, and the frames' product adds as much."""
    code = f"""
import torch
from elm_neuro import ELM, SpikeEvents
from neuron_speed import peak_above_start
torch.manual_seed(0)
torch.set_num_threads(1)
x = (torch.rand(2, 8192, 40) < 0.05).float()
x = SpikeEvents.from_frames(x) if {given!r} == "events" else x + 0.1
neuron = ELM(40, 1, num_memory=60, backend="native")
for neuron.recompute_every in (256, None):
    neuron.recompute_every, every = 20, neuron.recompute_every  # what is loaded once
    neuron(x.steps(0, 40) if {given!r} == "events" else x[:, :40])[0].sum().backward()
    neuron.recompute_every = every
    print(peak_above_start(lambda: neuron(x)[0].square().sum().backward()))
"""
    path = f"{REPOSITORY / 'benchmarks'}{os.pathsep}{REPOSITORY}"
    recomputed, kept = map(
        float, run_python(code, PYTHONPATH=path, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536").split()
    )
    assert kept > 11.0
    assert recomputed < kept / 4


@native
def test_layouts_of_the_input_do_not_matter() -> None:
    torch.manual_seed(0)
    neuron = ELM(70, 2, num_memory=6, backend="native")
    for density in (0.03, 0.6):
        x = (torch.rand(3, 11, 70) < density).float()
        wanted = gradients(neuron, x)
        wide = torch.zeros(3, 11, 140)
        wide[..., ::2] = x
        far = torch.zeros(3, 5000, 70)[:, ::450]
        far[:, :11] = x
        for same in (
            x.transpose(0, 1).contiguous().transpose(0, 1),
            wide[..., ::2],
            x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
            far[:, :11],
        ):
            for result, expected in zip(gradients(neuron, same), wanted, strict=True):
                assert_close(result, expected)
        alike = x[:1].expand(3, -1, -1)
        assert_close(neuron(alike)[0], neuron(alike.contiguous())[0])


@native
@pytest.mark.parametrize("num_input", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_events_found_in_frames_are_those_that_are_there(num_input: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 9, num_input, dtype=dtype) * (torch.rand(4, 9, num_input) < 0.05)
    x[1, 2, 0], x[2] = float("nan"), -0.0
    found = Events.compacted(x, dtype)
    assert found is not None
    for row, frame in enumerate(x.view(36, num_input)):
        part = slice(int(found.begin[row]), int(found.end[row]))
        expected = frame.nonzero().squeeze(-1)
        assert found.channel[part].tolist() == expected.tolist()
        assert found.value is not None
        torch.testing.assert_close(found.value[part], frame[expected], rtol=0.0, atol=0.0, equal_nan=True)


@native
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_with_too_many_spikes_are_left_dense(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for shape in ((4, 300, 2000), (5, 7, 64), (1, 1, 64)):
            torch.manual_seed(0)
            assert (
                Events.compacted((torch.rand(shape) < 2 * SPARSE_DENSITY).float(), torch.float32) is None
                or shape[1] == 1
            )
            assert Events.compacted(torch.ones(shape), torch.float32) is None
            assert Events.compacted(torch.zeros(shape), torch.float32) is not None
    finally:
        torch.set_num_threads(before)


@native
def test_infinite_input_gives_what_the_reference_gives() -> None:
    torch.manual_seed(0)
    x = (torch.rand(2, 20, 70) < 0.05).float()
    x[0, 5, 3] = float("inf")
    for activation in ("relu", "silu"):
        neuron = ELM(70, 2, num_memory=4, activation=activation)
        outcomes = []
        for backend in ("reference", "native"):
            neuron.backend = backend
            try:
                outcomes.append(neuron(x)[0].isfinite().tolist())
            except ValueError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


@native
def test_nan_in_the_input_is_refused_and_does_not_reach_other_samples() -> None:
    neuron = ELM(70, 2, num_memory=4, backend="native")
    x = torch.zeros(2, 20, 70)
    x[0, 5, 3] = float("nan")
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \[0, 5, 3\]"):
        neuron(x)
    params, state = neuron.cell.effective_parameters(), neuron.cell.initial_state(2)
    y, _ = backends.scan(x, params, state, backend="native")
    assert y[0, 5:].isnan().all() and y[0, :5].isfinite().all() and y[1].isfinite().all()


@native
def test_more_layers_than_it_has_are_refused_by_name_and_left_to_torch_otherwise() -> None:
    neuron = ELM(3, 1, num_memory=2, num_mlp_layers=_library.MAX_LAYERS + 1)
    y = neuron(torch.rand(1, 4, 3))[0]
    with backends.use("torch"):
        assert_close(neuron(torch.rand(1, 4, 3) * 0)[0], neuron(torch.zeros(1, 4, 3))[0])
    assert y.shape == (1, 4, 1)
    neuron.backend = "native"
    with pytest.raises(ValueError, match='backend "native" cannot run this: it runs at most 8 hidden layers, got 9'):
        neuron(torch.rand(1, 4, 3))


@native
def test_half_precision_parameters_are_refused_by_name_and_left_to_torch_otherwise() -> None:
    neuron = ELM(3, 1, num_memory=2).bfloat16()
    assert "backend='torch'" in repr(neuron)
    assert neuron(torch.rand(1, 4, 3).bfloat16())[0].dtype == torch.bfloat16
    neuron.backend = "native"
    with pytest.raises(ValueError, match=r"it runs in float32 and float64, got torch\.bfloat16"):
        neuron(torch.rand(1, 4, 3).bfloat16())


def test_without_a_library_auto_is_torch_and_the_name_raises_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_library", None)
    monkeypatch.setattr(_library, "_missing", "there was no compiler")
    assert backends.available()["native"] == "cannot run: there was no compiler"
    neuron = ELM(3, 1, num_memory=2)
    assert "backend='torch'" in repr(neuron)
    assert neuron(torch.rand(1, 4, 3))[0].shape == (1, 4, 1)
    for attempt in (
        lambda: ELM(3, 1, backend="native"),
        lambda: backends.resolve("native"),
        lambda: backends.use("native").__enter__(),
    ):
        with pytest.raises(RuntimeError, match='backend "native" cannot run: there was no compiler'):
            attempt()


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels.cpp").write_text("// another\n", encoding="utf-8")
    monkeypatch.setattr(_library, "FOLDER", tmp_path)
    library, reason = _library._open()
    assert library is None
    assert "built from other sources" in reason or "without a C++ compiler" in reason
    monkeypatch.setattr(_library, "LIBRARY", tmp_path / "kernels.cpp")
    assert "does not load" in _library._open()[1]


@native
@pytest.mark.parametrize("recompute_every", [None, 7])
@pytest.mark.parametrize(
    "branches", [{}, {"num_branch": 10, "num_synapse_per_branch": 8, "routing": "window"}], ids=["ELM", "Branch-ELM"]
)
def test_autocast_lowers_the_projection_only(branches: dict[str, Any], recompute_every: int | None) -> None:
    torch.manual_seed(0)
    neuron = (BranchELM if branches else ELM)(
        40, 2, num_memory=20, backend="native", recompute_every=recompute_every, **branches
    )
    x = torch.rand(2, 30, 40)
    exact = neuron(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = neuron(x)
    assert y.dtype == torch.bfloat16 and state.m.dtype == state.b.dtype == torch.float32
    assert 0.0 < float((y - exact).detach().abs().max())
    assert_close(y.float(), exact, dtype=torch.bfloat16)
    y.float().square().sum().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all())
        for p in neuron.parameters()
    )


@native
@pytest.mark.parametrize(
    "options",
    [{}, {"num_neuron": 2}, {"tau_s": tuple(1.0 + i for i in range(80))}, {"num_memory": 60, "activation": "silu"}],
)
@pytest.mark.parametrize("learned_input", [False, True])
def test_a_compiled_network_has_no_graph_break_and_the_same_gradients(
    options: dict[str, Any], learned_input: bool
) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    neuron = ELM(80, 3, **{"num_memory": 4, **options})
    before = torch.nn.Linear(80, 80)

    def run(x: torch.Tensor) -> torch.Tensor:
        y, state = neuron(torch.relu(before(x)) if learned_input else x)
        return y.square().sum() + state.b.sum() + state.m.sum()

    x = (torch.rand(3, 50, 80) < 0.05).float()
    leaves = [*neuron.parameters(), *(before.parameters() if learned_input else ())]
    loss = run(x)
    expected = torch.autograd.grad(loss, leaves)
    for sparse_input in ("auto", "off") if learned_input else ("auto", "on", "off"):
        torch._dynamo.reset()
        neuron.sparse_input = sparse_input
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x), loss)
        for got, wanted in zip(torch.autograd.grad(compiled(x), leaves), expected, strict=True):
            assert_close(got, wanted, scale=10.0)


@native
@pytest.mark.parametrize("given", ["events", "sparse frames", "dense frames"])
def test_lengths_may_lie_anywhere_in_memory(given: str) -> None:
    torch.manual_seed(0)
    neuron = ELM(30, 2, num_memory=4, backend="native")
    x = (torch.rand(4, 20, 30) < (0.7 if given == "dense frames" else 0.05)).float()
    frames: Any = SpikeEvents.from_frames(x) if given == "events" else x
    table = torch.tensor([[5, 99], [10, 99], [20, 99], [0, 99]])
    for lengths in (table[:, 0], table[:1, 0].expand(4)):
        y, after = neuron(frames, None, lengths)
        wanted, end = neuron(frames, None, lengths.contiguous())
        for one, other in ((y, wanted), (after.b, end.b), (after.m, end.m)):
            assert torch.equal(one, other)


@native
@pytest.mark.parametrize("options", [{"tau_s": tuple(1.0 + i for i in range(64))}, {"branch_activation": "tanh"}, {}])
@pytest.mark.parametrize("density", [0.02, 0.7])
@pytest.mark.parametrize("threads", [(1, 4), (4, 1)])
def test_checkpoints_may_run_again_with_another_number_of_threads(
    options: dict[str, Any], density: float, threads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved in the second pass is laid out for its own number of threads."""
    monkeypatch.setattr(_library, "threads_for", lambda work: torch.get_num_threads())
    torch.manual_seed(0)
    neuron, x = ELM(64, 2, num_memory=6, backend="native", **options), (torch.rand(9, 40, 64) < density).float()
    expected = torch.autograd.grad(neuron(x)[0].square().sum(), list(neuron.parameters()))
    before = torch.get_num_threads()
    try:
        for every in (13, None):
            neuron.recompute_every = every
            torch.set_num_threads(threads[0])
            loss = torch.utils.checkpoint.checkpoint(lambda: neuron(x)[0].square().sum(), use_reentrant=False)
            torch.set_num_threads(threads[1])
            for grad, wanted in zip(torch.autograd.grad(loss, list(neuron.parameters())), expected, strict=True):
                assert_close(grad, wanted, scale=10.0)
    finally:
        torch.set_num_threads(before)


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"tau_s": tuple(1.0 + i for i in range(30))}])
def test_under_autocast_a_state_of_another_dtype_counts_as_what_it_is(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    neuron, x = ELM(30, 2, num_memory=4, backend="native", **options), (torch.rand(2, 20, 30) < 0.05).float()
    state = ELMState(*(torch.randn(part.shape).to(dtype) for part in neuron.cell.initial_state(2)))
    same = ELMState(*(part.float() for part in state))
    for given in (x, SpikeEvents.from_frames(x)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for one, other in zip(neuron(given, state)[1], neuron(given, same)[1], strict=True):
                assert one.dtype == torch.float32 and torch.equal(one, other)


@native
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_where_no_backward_pass_follows(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(_library, "large", lambda like, size: kept.append(size) or like.new_empty(size))
    neuron, x = ELM(30, 2, num_memory=4, backend="native"), torch.rand(2, 20, 30)
    with context():
        neuron(x)
    neuron(x)
    assert kept[0] == 0 and kept[1] > 0


@native
def test_a_backward_pass_inside_autocast_is_exact() -> None:
    torch.manual_seed(0)
    neuron, x = ELM(40, 2, num_memory=6, backend="native"), torch.randn(3, 25, 40, requires_grad=True)
    leaves = [x, *neuron.parameters()]
    expected = torch.autograd.grad(neuron(x)[0].square().sum(), leaves)
    loss = neuron(x)[0].square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for grad, wanted in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            assert_close(grad, wanted)


@native
def test_compiled_operators_refuse_second_derivatives() -> None:
    torch._dynamo.reset()
    neuron = ELM(3, 1, num_memory=2, backend="native")
    x = torch.rand(1, 4, 3, requires_grad=True)
    compiled = torch.compile(lambda x: neuron(x)[0].sum(), backend="eager")
    (gradient,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="elm_neuro"):
        gradient.sum().backward()


def driver(tmp_path: Path, compiler: str, *flags: str) -> Path:
    """native_driver.cpp and the kernels, of every instruction set, as one program."""
    sources = Path(_library.__file__).parent
    x86 = "aarch64" not in compiler and platform.machine().lower() in ("x86_64", "amd64")
    sets = X86_SETS if x86 else {"baseline": []}
    common = [
        compiler,
        "-O2",
        "-g",
        "-std=c++17",
        "-fno-math-errno",
        "-fno-exceptions",
        "-fno-rtti",
        "-w",
        f"-I{sources}",
        *flags,
    ]
    steps = [("library", [*(["-DELM_X86"] if x86 else []), '-DELM_SOURCES="driven"'], sources / "library.cpp")]
    steps += [(name, [*extra, f"-DELM_ISA={name}"], sources / "kernels.cpp") for name, extra in sets.items()]
    steps += [("driver", [], Path(__file__).parents[1] / "native" / "native_driver.cpp")]
    for name, extra, source in steps:
        subprocess.run([*common, *extra, "-c", source, "-o", tmp_path / f"{name}.o"], check=True)
    program = tmp_path / "driver"
    subprocess.run(
        [compiler, *flags, *(tmp_path / f"{name}.o" for name, _, _ in steps), "-o", program, "-lpthread"], check=True
    )
    return program


def drive(program: Path, *before: str, isa: str = "") -> None:
    done = subprocess.run([*before, program], capture_output=True, text=True, env=os.environ | {"ELM_NEURO_ISA": isa})
    assert done.returncode == 0 and "clean" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@native
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    """Odd sizes in buffers of exactly the size promised; valgrind knows no AVX-512."""
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind")
    program = driver(tmp_path, COMPILER or "c++")
    for isa in ("avx2", "baseline"):
        drive(program, "valgrind", "-q", "--error-exitcode=9", isa=isa)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clang_compiles_the_same_numbers(tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("no clang++")
    program = driver(tmp_path, "clang++")
    for isa in ("avx512", "avx2", "baseline"):
        drive(program, isa=isa)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arm_processors_compute_the_same_numbers(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no compiler and emulator for AArch64")
    drive(driver(tmp_path, compiler, "-static"), emulator)


def copy_built_with(tmp_path: Path, *sanitizers: str) -> tuple[Path, str]:
    """A copy of the checkout whose library is built with these sanitizers, and the runtimes to load before Python."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.so", "reports"
    )
    copy = Path(shutil.copytree(REPOSITORY, tmp_path / "checkout", symlinks=True, ignore=ignored))
    flags = f"-fsanitize={','.join(sanitizers)} -g -O1" + (
        " -fno-sanitize-recover=undefined" if "undefined" in sanitizers else ""
    )
    short = {"address": "asan", "thread": "tsan", "undefined": "ubsan"}
    found = [
        subprocess.run([COMPILER, f"-print-file-name=lib{short[name]}.so"], capture_output=True, text=True)
        for name in sanitizers
    ]
    build = subprocess.run(
        [sys.executable, "setup.py", "build_native", "--inplace"],
        cwd=copy,
        env=os.environ | {"CXXFLAGS": flags},
        capture_output=True,
    )
    assert build.returncode == 0 and (copy / "elm_neuro/backends/native/libelm_native.so").is_file(), build.stderr
    return copy, " ".join(done.stdout.strip() for done in found)


@native
def test_a_forked_child_does_not_wait_for_the_threads_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's pool does not survive a fork; the child starts threads of its own and gets the same numbers."""
    monkeypatch.setattr(_library, "threads_for", lambda work: 2)
    torch.manual_seed(0)
    neuron, x = ELM(5, 2, num_memory=4, backend="native"), torch.rand(32, 3, 5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = neuron(x)[0]
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # torch's own operators would wait for ever; the kernels still take two
            with torch.no_grad():
                os._exit(0 if torch.equal(neuron(x)[0], expected) else 1)
        for _ in range(300):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.1)
        else:
            os.kill(child, 9)
            pytest.fail("the child hangs")
        assert status == 0
    finally:
        torch.set_num_threads(before)


@native
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    """All sizes under AddressSanitizer and UBSan."""
    copy, runtime = copy_built_with(tmp_path, "address", "undefined")
    code = "import torch; from tests.backends.elm import test_native as t; t.sizes(torch.float32); t.sizes(torch.float64); print('clean')"
    options = "detect_leaks=0:abort_on_error=0:verify_asan_link_order=0"
    for name in ("avx512", "avx2", "baseline"):
        assert "clean" in run_python(
            code,
            copy,
            LD_PRELOAD=runtime,
            ASAN_OPTIONS=options,
            ELM_NEURO_ISA=name,
            ELM_NEURO_THREADS="own",
            OMP_NUM_THREADS="1",
        )


@native
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="ThreadSanitizer is loaded before Python on Linux only")
def test_threads_do_not_race(tmp_path: Path) -> None:
    """Two models in two threads, three threads a call, under ThreadSanitizer; torch, which it does not know, stays on one."""
    copy, runtime = copy_built_with(tmp_path, "thread")
    code = "from elm_neuro.backends import _library; _library.threads_for = lambda work: 3"
    code += "; from tests.backends.elm import test_native as t; t.stress(seconds=2.0, num_threads=1); print('clean')"
    assert "clean" in run_python(
        code,
        copy,
        LD_PRELOAD=runtime,
        TSAN_OPTIONS="halt_on_error=1 exitcode=66",
        ELM_NEURO_THREADS="own",
        OMP_NUM_THREADS="1",
    )
