"""The native backend of the ELM Network beside what every backend is held to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elm_neuro import SpikeEvents, backends
from elm_neuro.backends.native import _library
from elm_neuro.backends.network import _native_pass, scan
from elm_neuro.functional import ATan, NetworkRule
from tests.backends.native_cases import native, run_python
from tests.backends.network.cases import Call, everything, made
from tests.backends.network.native_sizes import in_dtype, sizes
from tests.tolerances import assert_close

pytestmark = native


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_every_size_is_what_the_loop_gives(dtype: torch.dtype) -> None:
    sizes(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_every_instruction_set_is_what_the_loop_gives(name: str) -> None:
    code = "import torch; from tests.backends.network.native_sizes import sizes"
    code += "; sizes(torch.float32); sizes(torch.float64); print('clean')"
    assert "clean" in run_python(code, ELM_NEURO_ISA=name, OMP_NUM_THREADS="1")


def test_it_is_the_default_on_the_cpu() -> None:
    assert backends.resolve("auto", operator="network") == "native"


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_samples_and_add_up_their_gradients(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    params, rule = made(4, trace=True, activation="silu")
    x = torch.rand(21, 19, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    call = Call(x, params, None, rule, {})
    monkeypatch.setattr(_native_pass, "_threads", lambda *_: threads)
    for found, wanted in zip(everything(call, "native"), everything(call, "reference"), strict=True):
        assert_close(found, wanted)


def test_the_number_of_threads_may_change_between_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    params, rule = made(4)
    x = torch.rand(8, 19, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    found = {}
    for before, after in ((1, 1), (1, 8), (8, 1)):
        monkeypatch.setattr(_native_pass, "_threads", lambda *_, number=before: number)
        record, _ = scan(x, params, None, rule, backend="native")
        monkeypatch.setattr(_native_pass, "_threads", lambda *_, number=after: number)
        (found[before, after],) = torch.autograd.grad(record.a.square().sum(), x)
    assert_close(found[1, 8], found[1, 1])
    assert_close(found[8, 1], found[1, 1])


@pytest.mark.parametrize("output", ["relu", "spike"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanes_of_samples_and_of_neurons_give_the_same(
    output: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of neurons a small batch, of samples a large one or a single step; it decides how fast they are, not what they
    give.
    """
    lanes_for = _library.library().elm_network_lanes
    double = dtype == torch.float64
    if _library.instruction_set() != "baseline" or not double:  # two of them are all that fit there
        assert lanes_for(double, 1, 96, 100, 1) == 1
    assert lanes_for(double, 1, 96, 1, 1) > 1
    widths = sorted({1, *(lanes_for(double, batch, 96, 100, 1) for batch in (1, 2, 4, 8, 16))})
    assert len(widths) > 1
    params, rule = made(4, sizes=(6, 19, 3, 4, 2), trace=True, output=output, activation="silu", surrogate=ATan())
    x = torch.rand(3, 70, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    call = in_dtype(Call(x, params, None, rule, {"lengths": torch.tensor([70, 0, 69])}), dtype)
    found = []
    plan_of = _native_pass.Plan.of
    for lanes in widths:
        monkeypatch.setattr(_native_pass.Plan, "of", lambda *args, number=lanes: plan_of(*args)._replace(lanes=number))
        found.append(everything(call, "native"))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert_close(one, same, dtype=dtype, scale=10.0)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("bias", [-1e9, -0.6, 0.0, 0.6, 1e9])
def test_spikes_of_every_density_send_what_every_synapse_would_read(bias: float, batch: int) -> None:
    params, rule = made(6, sizes=(5, 21, 4, 6, 3), output="spike", surrogate=ATan(), activation="silu")
    params = params._replace(bias=torch.full_like(params.bias, bias))
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 40, 5, generator=generator, dtype=torch.float64)
    options: dict[str, Tensor | None] = {"recurrent_mask": 1.25 * (torch.rand(batch, 21, generator=generator) < 0.8)}
    options["recurrent_mask"] = options["recurrent_mask"].double()  # type: ignore[union-attr]
    call = Call(x.requires_grad_(), params, None, rule, options)
    for found, wanted in zip(everything(call, "native"), everything(call, "reference"), strict=True):
        assert_close(found, wanted)


def test_operands_may_lie_in_memory_as_they_like() -> None:
    params, rule = made(4, trace=True, activation="silu")
    x = torch.rand(7, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).transpose(0, 1)
    apart = params._replace(
        index=params.index.t().contiguous().t(),
        w_s=params.w_s.t().contiguous().t(),
        mlp_weight=tuple(one.mT.contiguous().mT for one in params.mlp_weight),
        bias=torch.stack([params.bias, params.bias], 1)[:, 0],
    )
    wanted, _ = scan(x.contiguous(), params, None, rule, backend="reference")
    for frames in (x, x.contiguous().repeat_interleave(2, -1)[..., ::2], x.float().double()):
        record, _ = scan(frames, apart, None, rule, backend="native")
        assert_close(record.a, wanted.a, dtype=torch.float32)


def test_gradients_of_a_part_of_the_record_alone() -> None:
    """What is not asked for, not differentiated or a view of one number costs nothing and changes nothing."""
    params, rule = made(4)
    x = torch.rand(3, 20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    for pick in (lambda r, s: r.a.sum(), lambda r, s: r.change[1, 2], lambda r, s: s.m[0].sum() + s.a[1, 0]):
        grads = []
        for backend in ("native", "reference"):
            leaf = in_dtype(params, torch.float64)._replace(w_s=params.w_s.clone().requires_grad_())
            grads.append(torch.autograd.grad(pick(*scan(x, leaf, None, rule, backend=backend)), [leaf.w_s, x]))
        for found, wanted in zip(*grads, strict=True):
            assert_close(found, wanted)


def test_what_was_changed_between_the_passes_is_refused() -> None:
    params, rule = made(4)
    params.w_s.requires_grad_()
    events = SpikeEvents.from_frames((torch.rand(2, 9, 6) < 0.5).double())
    loss = scan(events, params, None, rule, backend="native")[0].a.sum()
    events.channel.data[0] = 7
    with pytest.raises(ValueError, match="x was changed after it had been made"):
        loss.backward()
    loss = scan(torch.rand(2, 9, 6).double(), params, None, rule, backend="native")[0].a.sum()
    params.index.data[0, 0] = 11
    with pytest.raises(ValueError, match="index must be from 0 to 10: 6 inputs, then 5 neurons"):
        loss.backward()


def test_what_it_does_not_compute_is_refused_and_runs_elsewhere() -> None:
    def surrogate(distance: Tensor) -> Tensor:
        return (distance > 0).to(distance.dtype)

    x = torch.rand(2, 4, 6, dtype=torch.float64)
    params, rule = made(4, hidden=(3,) * _library.MAX_LAYERS)
    with pytest.raises(ValueError, match="its MLPs have at most 8 layers, got 9"):
        scan(x, params, None, rule, backend="native")
    assert scan(x, params, None, rule)[0].a.shape == (2, 4, 5)
    params, _ = made(4)
    with pytest.raises(ValueError, match="it knows the surrogates ATan"):
        scan(x, params, None, NetworkRule(output="spike", surrogate=surrogate), backend="native")
    half = in_dtype(params, torch.bfloat16)
    with pytest.raises(ValueError, match=r"it runs in float32 and float64, got torch\.bfloat16"):
        scan(x.bfloat16(), half, None, rule, backend="native")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_come_out_as_none(number: float) -> None:
    params, rule = made(4)
    x = torch.rand(3, 9, 6, dtype=torch.float64)
    x[1, 4, 2] = number
    found, wanted = (scan(x, params, None, rule, backend=name)[0].a for name in ("native", "reference"))
    torch.testing.assert_close(found, wanted, equal_nan=True)
