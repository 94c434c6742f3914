from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elm_neuro.functional import bounded_tau, decay, memory_gain, proto_tau, spaced_tau
from tests.tolerances import assert_close


@given(tau=st.floats(0.1, 1e5), delta_t=st.floats(0.01, 100.0), lambda_=st.floats(0.1, 20.0))
def test_gains_follow_their_formulas(tau: float, delta_t: float, lambda_: float) -> None:
    tau_m = torch.tensor([tau], dtype=torch.float64)
    kappa = math.exp(-delta_t / tau)
    assert_close(decay(tau_m, delta_t), torch.tensor([kappa], dtype=torch.float64))
    assert_close(
        memory_gain(tau_m, delta_t, lambda_=lambda_, variant="v1"),
        torch.tensor([lambda_ * (1 - kappa)], dtype=torch.float64),
    )
    assert_close(
        memory_gain(tau_m, delta_t, lambda_=lambda_, variant="v2"),
        torch.tensor([1 - math.exp(-delta_t * lambda_ / tau)], dtype=torch.float64),
    )


@pytest.mark.parametrize("tau", [1.0, 150.0, 2e4])
def test_memory_driven_by_a_constant_settles_at_lambda_times_it_in_float32(tau: float) -> None:
    tau_m = torch.tensor([tau])
    settled = memory_gain(tau_m, 1.0, lambda_=5.0, variant="v1") / (1.0 - decay(tau_m, 1.0))
    assert settled.item() == pytest.approx(5.0, rel=2e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "bounds", [(1.0, 1000.0), (1.0, 500.0), (0.0, 500.0), (0.0, 1000.0), (1.0, 4000.0), (1.0, 20000.0), (1.0, 150.0)]
)
def test_time_constants_on_a_bound_stay_finite_and_learnable_in_every_dtype(
    bounds: tuple[float, float], dtype: torch.dtype
) -> None:
    proto = proto_tau(torch.tensor(bounds, dtype=torch.float64), bounds, dtype=dtype).requires_grad_()
    tau = bounded_tau(proto, bounds)
    tau.sum().backward()
    assert proto.grad is not None
    assert proto.isfinite().all() and tau.isfinite().all()
    if dtype in (torch.float64, torch.float32):
        assert (proto.grad > 0).all()
        assert_close(tau, torch.tensor(bounds, dtype=dtype), dtype=torch.float32)


@given(low=st.floats(0.0, 10.0), width=st.floats(0.5, 1e4), fraction=st.floats(0.001, 0.999))
def test_proto_tau_inverts_bounded_tau(low: float, width: float, fraction: float) -> None:
    tau = torch.tensor([low + fraction * width], dtype=torch.float64)
    bounds = (low, low + width)
    assert_close(bounded_tau(proto_tau(tau, bounds), bounds), tau)


def test_a_time_constant_of_zero_forgets_at_once() -> None:
    assert decay(torch.tensor([0.0]), 1.0).item() == 0.0


def test_spacing_has_equal_ratios_or_equal_differences() -> None:
    log, linear = spaced_tau(7, (1.0, 150.0), "log"), spaced_tau(7, (1.0, 150.0), "linear")
    assert_close(log.log().diff(), torch.full((6,), math.log(150) / 6, dtype=torch.float64))
    assert_close(linear.diff(), torch.full((6,), 149 / 6, dtype=torch.float64))
    assert spaced_tau(1, (2.0, 9.0), "log").tolist() == [2.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spaced_tau(3, (0.0, 5.0), "log"), "tau_m_init must start above 0 ms for log spacing"),
        (lambda: spaced_tau(3, (1.0, 5.0), "cubic"), 'tau_m_spacing must be "log" or "linear", got \'cubic\''),
        (
            lambda: memory_gain(torch.ones(1), 1.0, lambda_=5.0, variant="v3"),
            'variant must be "v1" or "v2", got \'v3\'',
        ),
    ],
)
def test_unknown_words_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
