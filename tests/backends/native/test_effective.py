"""The kernel that makes effective parameters of learned ones gives torch's numbers and derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from elm_neuro import ELM, backends
from elm_neuro.backends.elm import _effective
from elm_neuro.backends.elm._effective import Timescales, effective

pytestmark = pytest.mark.skipif(backends.resolve() != "native", reason="the native backend is not built")


def results(protos: list[torch.Tensor], tau_s: torch.Tensor, timescales: Timescales, twice: bool) -> list[torch.Tensor]:
    """Effective numbers, a loss's gradients, and those of the second one's square."""
    found = list(effective(protos[0], protos[1], tau_s, timescales))
    weights = [torch.arange(1.0, r.numel() + 1, dtype=r.dtype).view(r.shape) for r in found]
    loss = torch.stack([(r * w).nansum() for r, w in zip(found, weights, strict=True)]).sum()
    grads = torch.autograd.grad(loss, protos, create_graph=twice)
    second = torch.autograd.grad((grads[1] ** 2).sum(), protos[1]) if twice else ()
    return [tensor.detach() for tensor in (*found, *grads, *second)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("bounds", [(0.0, 4.0), (1.0, 900.0)])
def test_numbers_and_derivatives_equal_torchs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, variant: str, bounds: tuple[float, float]
) -> None:
    timescales = Timescales(bounds, 0.5, 5.0, variant)
    torch.manual_seed(0)
    protos = [torch.randn(2, 13, 30, dtype=dtype), torch.randn(2, 7, dtype=dtype)]
    protos[0][0, 0, :3] = torch.tensor([0.0, -0.0, float("nan")])
    protos[1][0, 0] = -1e4  # a time constant of 0 where the bound is
    tau_s = torch.tensor([0.0, 1e-9, 5.0], dtype=dtype)
    for proto in protos:
        proto.requires_grad_()
    once, twice = (results(protos, tau_s, timescales, second) for second in (False, True))
    assert "_Fused" in str(effective(protos[0], protos[1], tau_s, timescales).w_s.grad_fn)
    monkeypatch.setattr(_effective, "_kernels", lambda *_: None)
    expected = results(protos, tau_s, timescales, False) + results(protos, tau_s, timescales, True)
    tolerance = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 3e-6, "atol": 1e-7}
    for result, wanted in zip(once + twice, expected, strict=True):
        assert_close(result, wanted, equal_nan=True, **tolerance)


def test_what_is_not_learned_needs_no_gradient() -> None:
    params = ELM(3, 1, 4, learn_tau_m=False, learn_w_s=False).cell.effective_parameters()
    assert not any(tensor.requires_grad for tensor in (params.w_s, params.kappa_m, params.gain, params.kappa_b))
    cell = ELM(3, 1, 4, learn_tau_m=False).cell
    params = cell.effective_parameters()
    assert params.w_s.requires_grad and not params.kappa_m.requires_grad and not params.gain.requires_grad
    (params.w_s.sum() + params.gain.sum() + params.kappa_m.sum()).backward()
    assert_close(cell._proto_w_s.grad, torch.ones_like(cell._proto_w_s))
    params = ELM(3, 1, 4, learn_w_s=False).cell.effective_parameters()
    assert not params.w_s.requires_grad and params.kappa_m.requires_grad and params.gain.requires_grad
