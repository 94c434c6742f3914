"""The backend `cuda` on a GPU: right in all sizes, and at home in torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, backends
from tests.gpu.cases import CASES, NUM_INPUT, Case
from tests.gpu.checks import (
    assert_a_graph_repeats,
    assert_compiles_as_one_graph,
    assert_waits_for_nothing,
    assert_works_on_the_current_stream,
)
from tests.tolerances import assert_close


def small(**options: Any) -> ELM:
    torch.manual_seed(0)
    return ELM(NUM_INPUT, 3, num_memory=20, backend="cuda", **options).cuda()


def spikes(batch: int = 3, num_steps: int = 40) -> torch.Tensor:
    return (torch.rand(batch, num_steps, NUM_INPUT, generator=torch.Generator().manual_seed(3)) < 0.2).float().cuda()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.options['num_memory']}")
def test_outputs_and_all_gradients_equal_the_reference(case: Case) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(case.batch, case.num_steps, NUM_INPUT, generator=generator) < 0.2).double()
    neuron = case.neuron()
    parts = neuron.cell.initial_state(case.batch)
    start = [torch.randn(part.shape, generator=generator).double() for part in parts] if case.with_state else None
    lengths = (
        torch.randint(0, case.num_steps + 1, (case.batch,), generator=generator).cuda() if case.with_lengths else None
    )
    results = []
    for backend, dtype in (("cuda", case.dtype), ("reference", torch.float64)):
        copy = case.neuron().to("cuda", dtype)
        copy.load_state_dict(neuron.state_dict())
        state = None if start is None else ELMState(*(part.to("cuda", dtype).requires_grad_() for part in start))
        frames = x.to("cuda", dtype)
        given = SpikeEvents.from_frames(frames) if case.events else frames.requires_grad_()
        results.append(everything_on(copy, backend, given, state, lengths))
    for index, (result, wanted) in enumerate(zip(*results, strict=True)):
        assert_close(result.double(), wanted, dtype=case.dtype, scale=1.0 if index < 3 else 10.0)


def everything_on(neuron: ELM, backend: str, x: Any, state: ELMState | None, lengths: Any) -> list[torch.Tensor]:
    """As `everything`, whose random numbers are the CPU's."""
    neuron.backend = backend
    leaves = [*neuron.parameters(), *([x] if isinstance(x, torch.Tensor) else []), *(state or ())]
    y, after = neuron(x, state, lengths)
    generator = torch.Generator().manual_seed(7)
    results = [y, *after]
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results]
    torch.stack([(r * weight).sum() for r, weight in zip(results, weights, strict=True)]).sum().backward()
    return [r.detach() for r in results] + [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves
    ]


def test_auto_is_cuda_on_the_gpu() -> None:
    assert backends.resolve("auto", torch.ones(1, device="cuda")) == "cuda"
    assert backends.resolve("auto", torch.ones(1)) != "cuda"
    assert not backends.available()["cuda"].startswith("cannot run")


def test_the_same_call_gives_the_same_bits() -> None:
    neuron = small()
    for x in (spikes(8, 200), SpikeEvents.from_frames(spikes(8, 200))):
        neuron.zero_grad()
        first = everything_on(neuron, "cuda", x, None, None)
        neuron.zero_grad()
        for one, other in zip(first, everything_on(neuron, "cuda", x, None, None), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("events", [False, True])
def test_nothing_waits_for_the_device(events: bool) -> None:
    neuron, x = small(), spikes()
    given: Any = SpikeEvents.from_frames(x) if events else x
    neuron(given)[0].sum().backward()
    assert_waits_for_nothing(neuron, given)


def test_an_evaluated_routing_is_looked_at_once() -> None:
    branches: Any = {"num_branch": 3, "num_synapse_per_branch": 4, "routing": "random"}
    neuron = BranchELM(NUM_INPUT, 2, num_memory=5, backend="cuda", **branches).cuda().eval()
    x = spikes()
    neuron(x)[0].sum().backward()
    assert_waits_for_nothing(neuron, x)


@pytest.mark.parametrize("events", [False, True])
def test_lengths_are_looked_at_once(events: bool) -> None:
    neuron, x, lengths = small(), spikes(), torch.tensor([40, 0, 17], device="cuda")
    given: Any = SpikeEvents.from_frames(x) if events else x
    call = partial(neuron, lengths=lengths)
    call(given)[0].sum().backward()
    assert_waits_for_nothing(call, given)
    on_the_host = partial(neuron, lengths=lengths.cpu())
    assert_waits_for_nothing(on_the_host, given)
    lengths[1] = 41
    with pytest.raises(ValueError, match="between 0 and the 40 steps of x, got 17 to 41"):
        call(given)


@pytest.mark.parametrize("every", [None, 7])
def test_recomputed_gradients_are_the_same(every: int | None) -> None:
    neuron, x = small(), spikes()
    expected = everything_on(neuron, "cuda", x, None, None)
    neuron.zero_grad()
    neuron.recompute_every = every
    for result, wanted in zip(everything_on(neuron, "cuda", x, None, None), expected, strict=True):
        assert_close(result, wanted)


def test_a_cuda_graph_repeats_the_pass() -> None:
    neuron = small()
    assert_a_graph_repeats(neuron, spikes, neuron.cell.w_y.weight)


def test_torch_captures_a_neuron_with_its_gradients() -> None:
    neuron, x = small(), spikes()
    expected = everything_on(neuron, "cuda", x.requires_grad_(), None, None)
    neuron.zero_grad(set_to_none=True)

    class Readout(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = neuron

        def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y, state = self.neuron(frames)
            return y, state.b, state.m

    captured: Any = torch.cuda.make_graphed_callables(Readout(), (spikes().requires_grad_(),))
    frames = x.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(7)
    results = captured(frames)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results]
    torch.stack([(r * weight).sum() for r, weight in zip(results, weights, strict=True)]).sum().backward()
    found = [*results, *[p.grad for p in neuron.parameters()], frames.grad]
    for result, wanted in zip(found, expected, strict=True):
        assert_close(result.detach(), wanted)


def test_work_goes_to_the_current_stream() -> None:
    assert_works_on_the_current_stream(small(), spikes)


def test_autocast_lowers_products_alone() -> None:
    neuron, x = small(), spikes()
    expected = neuron(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y, state = neuron(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and state.m.dtype == torch.float32
    assert_close(y.float(), expected[0], dtype=torch.bfloat16)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in neuron.parameters())


@pytest.mark.parametrize("output_size", [3, 12])  # whose gradients are kernels' and torch's products
def test_a_backward_pass_inside_autocast_is_exact(output_size: int) -> None:
    torch.manual_seed(0)
    neuron, x = ELM(NUM_INPUT, output_size, num_memory=20, backend="cuda").cuda(), spikes()
    gradients = []
    for inside in (False, True):
        neuron.zero_grad()
        loss = neuron(x)[0].square().sum()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=inside):
            loss.backward()
        gradients.append([p.grad.clone() for p in neuron.parameters() if p.grad is not None])
    for outside, inside_ in zip(*gradients, strict=True):
        assert torch.equal(outside, inside_)


def test_pinned_lengths_may_be_changed_while_the_device_is_busy() -> None:
    neuron, x = small(), spikes()
    expected, lengths = neuron(x, lengths=torch.tensor([40, 3, 17]))[0], torch.tensor([40, 3, 17]).pin_memory()
    torch.cuda._sleep(200_000_000)
    y = neuron(x, lengths=lengths)[0]
    lengths.zero_()
    assert torch.equal(y, expected)


def test_a_routing_of_inference_runs() -> None:
    with torch.inference_mode():
        neuron = BranchELM(NUM_INPUT, 2, 5, num_branch=9, num_synapse_per_branch=10, routing="random").cuda()
        found = neuron(spikes())[0]
        neuron.backend = "reference"
        assert_close(found, neuron(spikes())[0])


def test_compiled_code_has_no_graph_break() -> None:
    neuron, x = small(), spikes()
    expected = everything_on(neuron, "cuda", x, None, None)
    neuron.zero_grad()

    def run(x: torch.Tensor) -> torch.Tensor:
        return backends.scan(x, neuron.cell.effective_parameters(), None, backend="cuda")[0]

    y = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert_close(y.detach(), expected[0])
    y.sum().backward()


def test_inputs_that_are_not_finite_pass_through() -> None:
    x = spikes()
    x[1, 5, 3] = float("nan")
    y = small()(x)[0]
    assert y[1, 5:].isnan().all() and not y[0].isnan().any() and not y[1, :5].isnan().any()


def test_many_channels_many_events_and_weights_of_events() -> None:
    torch.manual_seed(0)
    neuron = BranchELM(20000, 2, 5, num_branch=9, num_synapse_per_branch=40, routing="random", backend="cuda").cuda()
    frames = torch.zeros(4, 30, 20000, device="cuda")
    frames[torch.rand_like(frames) < 0.01] = 2.5
    expected = everything_on(neuron, "cuda", frames, None, None)
    neuron.zero_grad()
    found = everything_on(neuron, "cuda", SpikeEvents.from_frames(frames), None, None)
    for result, wanted in zip(found, expected[: len(found)], strict=True):
        assert_close(result, wanted, scale=3.0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("num_neuron", [None, 3])
def test_frames_of_bytes_give_what_floats_give(num_neuron: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    neuron = BranchELM(
        1278, 2, 5, num_branch=45, num_synapse_per_branch=100, num_neuron=num_neuron, backend="cuda"
    ).cuda()
    limits, own = torch.iinfo(dtype), () if num_neuron is None else (num_neuron,)
    x = torch.randint(limits.min // 16, limits.max // 16, (6, 130, *own, 1278), device="cuda")
    x = (x * (torch.rand(x.shape, device="cuda") < 0.05)).to(dtype)
    lengths = torch.tensor([130, 0, 1, 77, 129, 130], device="cuda")
    expected = everything_on(neuron, "cuda", x.float(), None, lengths)
    neuron.zero_grad()
    found = everything_on(neuron, "cuda", x, None, lengths)
    of_x = 3 + len(list(neuron.parameters()))  # bytes have no gradient
    for index, (result, wanted) in enumerate(zip(found, expected, strict=True)):
        if index != of_x:
            assert_close(result, wanted, scale=3.0)
    neuron.zero_grad()
    for one, other in zip(found, everything_on(neuron, "cuda", x, None, lengths), strict=True):
        assert torch.equal(one, other)


def test_a_grid_beyond_the_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="populations of at most 65535 neurons"):
        ELM(1, 1, num_memory=1, num_neuron=70000, backend="cuda").cuda()(torch.ones(1, 1, 1, device="cuda"))


def test_memory_that_runs_out_is_torchs_error() -> None:
    neuron = small()
    with pytest.raises(torch.OutOfMemoryError):
        neuron(torch.zeros(1, 1, NUM_INPUT, device="cuda").expand(4_000_000, 1000, NUM_INPUT))


def test_two_devices_each_have_their_kernels() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("no second GPU")
    neuron, x = small(), spikes()
    assert_close(neuron.to("cuda:1")(x.to("cuda:1"))[0].cpu(), small()(x)[0].cpu())


@pytest.mark.parametrize("given", ["frames", "events"])
def test_compiled_code_has_no_graph_break_of_events_and_lengths(given: str) -> None:
    x = spikes()
    assert_compiles_as_one_graph(small(), x if given == "frames" else SpikeEvents.from_frames(x))


@pytest.mark.parametrize("options", [{"tau_s": (5.0,) * 30}, {"num_neuron": 2, "recompute_every": 20}])
def test_compiled_code_has_no_graph_break_on_other_ways(options: dict[str, Any]) -> None:
    assert_compiles_as_one_graph(small(**options), spikes())


def test_inductor_compiles_a_neuron() -> None:
    pytest.importorskip("triton")
    assert_compiles_as_one_graph(small(), spikes(), "inductor")
