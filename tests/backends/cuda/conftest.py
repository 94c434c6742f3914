"""The backend `cuda` on a machine without a GPU: its kernels run on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from elm_neuro.backends.cuda import _driver, _frames
from elm_neuro.backends.cuda._backend import CudaBackend
from elm_neuro.backends.cuda._memory import kernel_for
from elm_neuro.backends.elm._cuda_plan import plan
from tests.backends.cuda.fake_driver import COMPILER, FakeDriver


@pytest.fixture
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """Every launch of the test goes to the CPU."""
    if COMPILER is None:
        pytest.skip("no compiler")
    driver = FakeDriver()
    forget()
    monkeypatch.setattr(_driver, "launcher", lambda: driver)
    monkeypatch.setattr(CudaBackend, "device_type", "cpu")
    monkeypatch.setattr(CudaBackend, "missing", lambda self: None)
    yield driver
    forget()


def forget() -> None:
    """Settle passes anew: another device, or other layouts."""
    kernel_for.cache_clear()
    _frames.settled.cache_clear()
    plan.cache_clear()
    _driver.expect.cache_clear()
