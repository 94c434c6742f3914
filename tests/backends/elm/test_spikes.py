"""The threshold inside the pass gives what torch gives behind it: spikes, readouts, states and all gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, SpikingELM, backends
from elm_neuro.backends.native import _library
from elm_neuro.functional import ATan, Boxcar, FastSigmoid
from tests.tolerances import assert_close

native = pytest.mark.skipif(bool(_library.missing()), reason="no C++ compiler")
BACKENDS = ["torch", "reference", *([] if _library.missing() else ["native"])]
OPTIONS: dict[str, dict[str, Any]] = {
    "ELM": {},
    "silu, two layers": {"activation": "silu", "num_mlp_layers": 2},
    "linear": {"num_mlp_layers": 0},
    "population": {"num_neuron": 3},
    "own time constants": {"tau_s": tuple(1.0 + i for i in range(30))},
    "branch nonlinearity": {"branch_activation": "tanh"},
}


def draw(neuron: ELM, batch: int, num_steps: int, seed: int = 0) -> tuple[torch.Tensor, ELMState]:
    generator = torch.Generator().manual_seed(seed)
    dtype = neuron.cell.tau_m.dtype
    x = (torch.rand(batch, num_steps, 30, generator=generator) < 0.2).to(dtype)
    zeros = neuron.initial_state(batch)
    return x, ELMState(*(torch.randn(part.shape, generator=generator).to(dtype).requires_grad_() for part in zeros))


def everything(
    neuron: ELM, rule: backends.SpikeRule, x: Any, state: ELMState | None, lengths: torch.Tensor | None, *, inside: bool
) -> list[torch.Tensor]:
    """Spikes, readout, state and the gradients of a random function of them, from one pass or from torch behind it."""
    options: Any = {"lengths": lengths, "recompute_every": neuron.recompute_every}
    params = neuron.cell.effective_parameters()
    if inside:
        spikes, y, after = backends.spiking_scan(x, params, state, rule, backend=neuron.backend, **options)
    else:
        y, after = backends.scan(x, params, state, backend="torch", **options)
        spikes = rule.fire(y)
        if lengths is not None:
            spikes = spikes * (torch.arange(y.shape[1]) < lengths[:, None]).view(*y.shape[:2], *[1] * (y.ndim - 2))
    generator = torch.Generator().manual_seed(7)
    results = [spikes, y, *after]
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    leaves = [*neuron.parameters(), *(state or ()), rule.threshold]
    loss = torch.stack([(r * w).sum() for r, w in zip(results, weights, strict=True)]).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [r.detach() for r in results] + [
        torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)
    ]


def assert_equal(neuron: ELM, rule: backends.SpikeRule, x: Any, state: Any = None, lengths: Any = None) -> None:
    """Spikes where the readout lies on the threshold but for rounding may differ: none of these do."""
    ours = everything(neuron, rule, x, state, lengths, inside=True)
    theirs = everything(neuron, rule, x, state, lengths, inside=False)
    assert torch.equal(ours[0], theirs[0])
    if not torch.equal(theirs[0], torch.zeros_like(theirs[0])):
        assert set(ours[0].unique().tolist()) <= {0.0, 1.0}
    for result, wanted in zip(ours[1:], theirs[1:], strict=True):
        assert_close(result, wanted, scale=10.0)


@pytest.mark.grid(every=4)
@native
@pytest.mark.parametrize("surrogate", [ATan(), ATan(5.0), FastSigmoid(), FastSigmoid(25.0)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_native_pass_fires_as_torch_does(surrogate: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    neuron = ELM(30, 5, num_memory=7, backend="native", **options).to(dtype)
    rule = backends.SpikeRule(torch.full((5,), 0.1, dtype=dtype).requires_grad_(), surrogate)
    assert backends.elm.OPERATOR.named("native").fires(neuron.cell.effective_parameters(), rule)  # type: ignore[union-attr]
    for batch, num_steps in ((1, 1), (3, 1), (1, 37), (13, 21)):
        x, state = draw(neuron, batch, num_steps)
        assert_equal(neuron, rule, x, state)
        assert_equal(neuron, rule, SpikeEvents.from_frames(x))


@native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("recompute_every", [None, 5])
def test_past_a_samples_end_nothing_fires_and_nothing_is_learned(
    options: dict[str, Any], recompute_every: int | None
) -> None:
    torch.manual_seed(0)
    neuron = ELM(30, 5, num_memory=7, backend="native", **options).double()
    neuron.recompute_every = recompute_every
    rule = backends.SpikeRule(torch.tensor(-0.3, dtype=torch.float64).requires_grad_(), ATan())  # silence would fire
    x, state = draw(neuron, 6, 23)
    lengths = torch.tensor([23, 0, 1, 12, 22, 7])
    assert_equal(neuron, rule, x, state, lengths)
    assert_equal(neuron, rule, x, state)
    spikes, _, _ = backends.spiking_scan(x, neuron.cell.effective_parameters(), state, rule, lengths=lengths)
    assert not bool(spikes[1].any()) and not bool(spikes[3, 12:].any()) and bool(spikes[0].any())


@native
def test_time_first_frames_and_gradients_give_the_same() -> None:
    torch.manual_seed(0)
    neuron = ELM(30, 9, num_memory=20, backend="native")
    params, rule = neuron.cell.effective_parameters(), backends.SpikeRule(torch.tensor(0.05), ATan())
    x = torch.rand(4, 19, 30)
    results = []
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        spikes, y, _ = backends.spiking_scan(given, params, None, rule, backend="native")
        weight = torch.randn(4, 19, 18, generator=torch.Generator().manual_seed(1))
        for strided in (weight[..., ::2], weight[..., ::2].transpose(0, 1).contiguous().transpose(0, 1)):
            loss = (spikes * strided).sum() + (y * strided).sum()
            results.append((spikes, y, *torch.autograd.grad(loss, list(neuron.parameters()), retain_graph=True)))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert_close(one, same, scale=10.0)


@native
@pytest.mark.parametrize("output", ["spikes", "readout", "state"])
def test_a_loss_of_one_output_alone_is_differentiated(output: str) -> None:
    torch.manual_seed(0)
    neuron = ELM(30, 5, num_memory=7, backend="native").double()
    rule = backends.SpikeRule(torch.tensor(0.1, dtype=torch.float64).requires_grad_(), FastSigmoid())
    x, _ = draw(neuron, 3, 21)
    grads = []
    for name in ("native", "torch"):
        spikes, y, after = backends.spiking_scan(x, neuron.cell.effective_parameters(), None, rule, backend=name)
        chosen = {"spikes": spikes, "readout": y, "state": after.m}[output]
        leaves = [*neuron.parameters(), rule.threshold]
        grads.append(torch.autograd.grad(chosen.square().sum(), leaves, allow_unused=True, materialize_grads=True))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_surrogate_fires_behind_the_pass(backend: str) -> None:
    torch.manual_seed(0)
    neuron = ELM(30, 5, num_memory=7, backend=backend)
    rule = backends.SpikeRule(torch.tensor(0.1).requires_grad_(), Boxcar())
    chosen = backends.elm.OPERATOR.named(backend)
    assert chosen is not None and not chosen.fires(neuron.cell.effective_parameters(), rule)
    x, state = draw(neuron, 3, 8)
    assert_equal(neuron, rule, x, state, torch.tensor([8, 0, 3]))


@pytest.mark.grid(every=4)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("recompute_every", [None, 5])
@pytest.mark.parametrize("learning", [False, True])
def test_the_last_readout_alone_is_that_of_the_whole_record(
    backend: str, options: dict[str, Any], recompute_every: int | None, learning: bool
) -> None:
    torch.manual_seed(0)
    neuron = ELM(30, 5, num_memory=7, **options).double()
    rule = backends.SpikeRule(torch.tensor(-0.1, dtype=torch.float64), ATan())
    x, state = draw(neuron, 6, 23)
    ends = torch.tensor([23, 0, 1, 12, 22, 7])
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1), SpikeEvents.from_frames(x)):
        for lengths in (None, ends):
            run: Any = partial(
                backends.spiking_scan, given, neuron.cell.effective_parameters(), state, rule,
                lengths=lengths, recompute_every=recompute_every, backend=backend,
            )  # fmt: skip
            with torch.set_grad_enabled(learning):
                spikes, whole, after = run()
                fired, last, same = run(last_readout=True)
            wanted = whole[:, -1] if lengths is None else whole[torch.arange(6), (lengths - 1).clamp(min=0)]
            wanted = wanted if lengths is None else wanted * (lengths > 0).view(-1, *[1] * (wanted.ndim - 1))
            assert torch.equal(last, wanted) and torch.equal(fired, spikes)
            assert all(torch.equal(one, other) for one, other in zip(same, after, strict=True))
            assert last.requires_grad == learning and not last._is_view()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_without_steps_keeps_its_readout_in_the_state(backend: str) -> None:
    torch.manual_seed(0)
    layer = SpikingELM(ELM(30, 5, num_memory=7, backend=backend), threshold=0.05)
    x, _ = draw(layer.core, 4, 13)
    with torch.no_grad():
        _, before = layer(x)
        for lengths in (torch.tensor([13, 0, 5, 1]), torch.zeros(4, dtype=torch.int64)):
            _, v_all, whole = layer.forward_with_readout(x, before, lengths)
            _, after = layer(x, before, lengths)
            ended = lengths == 0
            assert torch.equal(after.v[ended], before.v[ended]) and torch.equal(after.s[ended], before.s[ended])
            assert torch.equal(after.v[~ended], v_all[torch.arange(4), (lengths - 1).clamp(min=0)][~ended])
            assert all(torch.equal(one, other) for one, other in zip(after, whole, strict=True))
        for lengths in (None, torch.zeros(4, dtype=torch.int64)):
            assert all(torch.equal(*pair) for pair in zip(layer(x[:, :0], before, lengths)[1], before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("core", ["layer", "branches", "population", "flat population"])
def test_a_spiking_layer_is_its_core_and_its_output_one_after_the_other(
    backend: str, learned: bool, core: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    wide: dict[str, Any] = {"num_neuron": 3, "flatten_output": core == "flat population"} if "pop" in core else {}
    if core == "branches":
        wide = {"num_branch": 6, "num_synapse_per_branch": 10}
    neuron = (BranchELM if core == "branches" else ELM)(30, 2, num_memory=5, backend=backend, **wide).double()
    threshold = torch.linspace(0.0, 0.2, 6 if core == "flat population" else 2)
    layer = SpikingELM(neuron, threshold=threshold, learn_threshold=learned).double()
    x, _ = draw(neuron, 4, 13)
    lengths = torch.tensor([13, 0, 5, 12])
    outcomes = []
    for inside in (True, False):
        if not inside:
            monkeypatch.setattr("elm_neuro.nn._spiking.forward_spiking", lambda core: None)
        spikes, state = layer(x, None, lengths)
        spikes, state = layer(x, state)
        layer.zero_grad()
        (spikes.sum() + sum(part.square().sum() for part in state)).backward()
        outcomes.append([spikes.detach(), *state, *(p.grad for p in layer.parameters())])
    for one, other in zip(*outcomes, strict=True):
        assert_close(one, other, scale=10.0)


def test_hooks_and_forwards_of_ones_own_are_heeded() -> None:
    layer, x, seen = SpikingELM(ELM(30, 2, num_memory=5), threshold=0.1), torch.rand(2, 9, 30), []
    expected = layer(x)[0]
    handle = layer.core.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    assert torch.equal(layer(x)[0], expected) and seen == [(2, 9, 2)]
    handle.remove()

    class Loud(ELM):
        def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
            y, after = super().forward(x, state, lengths)
            return y + 100.0, after

    assert bool(SpikingELM(Loud(30, 2, num_memory=5), threshold=0.1)(x)[0].all())


def test_nan_in_the_input_of_a_spiking_layer_is_refused() -> None:
    x = torch.zeros(1, 5, 30)
    x[0, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \[0, 2, 3\]"):
        SpikingELM(ELM(30, 2, num_memory=5))(x)


@native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("recompute_every", [None, 1, 4, 1000])
@pytest.mark.parametrize("density", [0.05, 0.6])
def test_spikes_are_differentiated_twice_whatever_is_computed_again(
    options: dict[str, Any], recompute_every: int | None, density: float
) -> None:
    found = []
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        core = ELM(30, 5, num_memory=7, backend=backend, recompute_every=recompute_every, **options)
        layer = SpikingELM(core, threshold=0.1, surrogate=FastSigmoid(), learn_threshold=True).double()
        spikes, after = layer((torch.rand(2, 9, 30) < density).double())
        leaves = [p for p in layer.parameters() if p.requires_grad]
        loss = (spikes * torch.randn_like(spikes)).sum() + after.m.square().sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True, allow_unused=True)
        total = sum(grad.square().sum() for grad in first)
        assert isinstance(total, torch.Tensor)
        second = torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True)
        found.append((*first, *second))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, scale=10.0)
