"""The layer's kernels, run on the CPU, against the reference: drawn layers, inputs, states, lengths and masks, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from elm_neuro.backends.cuda import _compile, _network
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.network import test_published
from tests.backends.network.cases import Call, calls, everything, made
from tests.tolerances import assert_close


def drawn(max_examples: int) -> Callable[[Any], Any]:
    fixture = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=fixture)


@drawn(10)
@given(call=calls())
def test_equals_the_reference(fake_driver: FakeDriver, call: Call) -> None:
    equals_the_reference(fake_driver, call)


@pytest.mark.slow
@drawn(150)
@given(call=calls())
def test_equals_the_reference_for_many(fake_driver: FakeDriver, call: Call) -> None:
    equals_the_reference(fake_driver, call)


def equals_the_reference(fake_driver: FakeDriver, call: Call) -> None:
    for found, wanted in zip(everything(call, "cuda"), everything(call, "reference"), strict=True):
        assert_close(found, wanted)
    assert [kernel for kernel, *_ in fake_driver.launched if "network" in kernel]


@pytest.mark.parametrize("given", ["frames", "events"])
@pytest.mark.parametrize("name", test_published.NAMES)
def test_the_published_network(fake_driver: FakeDriver, shared: Path, name: str, given: str) -> None:
    test_published.test_the_published_network(name, given, "cuda", shared)


def in_several_orders(fake_driver: FakeDriver, **layer: Any) -> list[Tensor]:
    """All that a layer of more neurons than a warp has lanes for gives, threads in order, backward and shuffled."""
    params, rule = made(5, sizes=(6, 13, 9, 3, 5), hidden=(7,), trace=True, **layer)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64).requires_grad_()
    found = []
    for seed in range(4):
        fake_driver.seed = seed
        results = everything(Call(x, params, None, rule, {}), "cuda")
        found.append(torch.cat([result.flatten() for result in results]))
    return found


def same(tensors: list[Tensor]) -> bool:
    """Whether all are equal; what nobody has written is NaN, which equals nothing."""
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:])


def test_the_order_of_the_threads_changes_nothing(fake_driver: FakeDriver) -> None:
    assert same(in_several_orders(fake_driver))


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Puts other text in place of some of a source."""

    def change(source: str, old: str, new: str) -> None:
        texts = dict(_compile.sources())
        assert old in texts[source]
        monkeypatch.setattr(_compile, "sources", lambda: texts | {source: texts[source].replace(old, new)})
        _network.program.cache_clear()

    yield change
    _network.program.cache_clear()


BETWEEN = "if (reads_layer) __syncthreads();"  # steps
WITHIN = "                __syncwarp();\n"  # the layers of a neuron's MLP


@pytest.mark.parametrize(
    ("direction", "sound", "planted"),
    [
        pytest.param("forward", BETWEEN, "", id="no barrier between steps, forward"),
        pytest.param("backward", BETWEEN, "", id="no barrier between steps, backward"),
        pytest.param("forward", "t % 2 * num_neuron", "0 * num_neuron", id="written where others read, forward"),
        *[
            pytest.param(*plant, marks=pytest.mark.slow, id=f"{name}, {plant[0]}")
            for name, plant in [
                ("a warp's barrier between steps", ("forward", BETWEEN, "__syncwarp();")),
                ("a warp's barrier between steps", ("backward", BETWEEN, "__syncwarp();")),
                ("no barrier within a step", ("forward", WITHIN, "")),
                ("no barrier within a step", ("backward", WITHIN, "")),
                ("two write one place", ("backward", "of_branches[(t % 2 * num_neuron + n)", "of_branches[(n / 2)")),
            ]
        ],
    ],
)
def test_a_missing_barrier_and_a_race_are_found(
    fake_driver: FakeDriver, changed: Callable[[str, str, str], None], direction: str, sound: str, planted: str
) -> None:
    changed(f"network_{direction}.cuh", sound, planted)
    assert not same(in_several_orders(fake_driver))
