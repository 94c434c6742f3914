"""The native backend against the reference: every size of tile and vector, layouts, lengths, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ELM, SpikeEvents, backends
from elm_neuro.backends.native import _library
from tests.backends.native_cases import (
    gradients,
    native,
    sizes,
)
from tests.tolerances import assert_close


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_size_equals_the_reference(dtype: torch.dtype) -> None:
    sizes(dtype)


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
def test_half_precision_parameters_are_computed_with_in_float32() -> None:
    neuron = ELM(3, 1, num_memory=2).bfloat16()
    x = torch.rand(1, 4, 3).bfloat16()
    assert "backend='native'" in repr(neuron)
    y, state = neuron(x)
    neuron.backend = "native"
    assert torch.equal(neuron(x)[0], y) and y.dtype == torch.bfloat16 and state.m.dtype == torch.float32


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
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_where_no_backward_pass_follows(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(_library, "large", lambda like, size: kept.append(size) or like.new_empty(size))
    neuron, x = ELM(30, 2, num_memory=4, sparse_input="off", backend="native"), torch.rand(2, 20, 30)
    with context():
        neuron(x)
    neuron(x)
    assert kept[0] == 0 and kept[1] > 0
