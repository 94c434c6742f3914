from __future__ import annotations

import math

import pytest
import torch

from elm_neuro import ELM
from elm_neuro.functional import ELMState, elm_step, memory_update, scaled_tanh
from tests.tolerances import assert_close


@pytest.mark.parametrize("kappa", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("num_step", [1, 63, 1000])
def test_memory_relaxes_to_its_closed_form(kappa: float, num_step: int) -> None:
    kappa_m, gain = torch.tensor([kappa], dtype=torch.float64), torch.tensor([5.0 * (1 - kappa)], dtype=torch.float64)
    m, delta_m = torch.full((1, 1), 2.0, dtype=torch.float64), torch.full((1, 1), 0.3, dtype=torch.float64)
    expected = kappa_m**num_step * m + 5.0 * (1 - kappa_m**num_step) * delta_m
    for _ in range(num_step):
        m = memory_update(m, delta_m, kappa_m, gain)
    torch.testing.assert_close(m, expected, rtol=1e-12, atol=0.0)


def test_scaled_tanh_has_the_published_constants() -> None:
    assert scaled_tanh(torch.tensor(1.5, dtype=torch.float64)).item() == pytest.approx(
        1.7159 * math.tanh(1.0), rel=1e-12
    )


def test_memory_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="kappa_m must end in 3 memory units"):
        memory_update(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(2), torch.ones(2))


def test_step_passes_gradcheck_in_all_its_parameters() -> None:
    neuron = ELM(3, 2, num_memory=2, activation="silu").double()
    leaves = [p.detach().requires_grad_() for p in neuron.parameters()]
    names = [name for name, _ in neuron.named_parameters()]
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(2, size, dtype=torch.float64, requires_grad=True) for size in (3, 2)]

    def step(x: torch.Tensor, b: torch.Tensor, m: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        call = {name.removeprefix("cell."): value for name, value in zip(names, values, strict=True)}
        y, after = torch.func.functional_call(neuron.cell, call, (x, ELMState(b, m)))
        return y, *after

    assert torch.autograd.gradcheck(step, (x, *state, *leaves))


def test_step_works_under_vmap_and_forward_mode() -> None:
    neuron = ELM(3, 2, num_memory=4).double()
    params = neuron.cell.effective_parameters()
    x, b, m = (torch.randn(5, 1, size, dtype=torch.float64) for size in (3, 3, 4))
    mapped = torch.func.vmap(lambda x, b, m: elm_step(x, ELMState(b, m), params)[0])(x, b, m)
    looped = torch.stack([elm_step(x[i], ELMState(b[i], m[i]), params)[0] for i in range(5)])
    assert_close(mapped, looped)
    jacobian = torch.func.jacfwd(lambda x: elm_step(x, ELMState(b[0], m[0]), params)[0])(x[0])
    backward = torch.func.jacrev(lambda x: elm_step(x, ELMState(b[0], m[0]), params)[0])(x[0])
    assert_close(jacobian, backward)
