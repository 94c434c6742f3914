"""Threads, processes and forks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from elm_neuro import ALIF, ELM, BranchELM, ELMNetwork
from elm_neuro.backends.native import _library
from tests.backends.native_cases import (
    gradients,
    native,
    stress,
)
from tests.tolerances import assert_close


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


class Outputs(torch.utils.data.Dataset[torch.Tensor]):
    """Outputs of a neuron, computed in the loader's workers, and how many threads the library would use there for any
    amount of work."""

    def __init__(self, neuron: ELM, x: torch.Tensor) -> None:
        self.neuron, self.x = neuron, x

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with torch.no_grad():
            y: torch.Tensor = self.neuron(self.x[index : index + 1])[0][0]
        return y, _library.threads_for(1e12)


@pytest.mark.grid(every=2)
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


WIDE: dict[str, Callable[[], Any]] = {
    "ELMNetwork": lambda: ELMNetwork(20, 64, num_memory=3, num_branch=8, num_synapse_per_branch=8),
    "ALIF": lambda: ALIF(20, 64, recurrent=True),
    "population": lambda: ELM(20, 3, num_memory=7, num_neuron=8),
}


@native
@pytest.mark.parametrize(("batch", "threads"), [(8, (1, 2)), (8, (2, 1)), (32, (8, 16)), (32, (16, 8))])
@pytest.mark.parametrize("name", WIDE)
def test_a_pass_that_is_run_again_with_other_threads_has_the_same_gradients(
    name: str, batch: int, threads: tuple[int, int]
) -> None:
    """What is kept lies as the second run's threads have it: the lanes of a network's tasks depend on them."""
    torch.manual_seed(0)
    layer, x, before = WIDE[name](), torch.rand(batch, 60, 20), torch.get_num_threads()
    leaves = list(layer.parameters())
    expected = torch.autograd.grad(layer(x)[0].square().sum(), leaves, allow_unused=True)
    try:
        torch.set_num_threads(threads[0])
        loss = torch.utils.checkpoint.checkpoint(lambda: layer(x)[0].square().sum(), use_reentrant=False)
        torch.set_num_threads(threads[1])
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    finally:
        torch.set_num_threads(before)
    for grad, wanted in zip(found, expected, strict=True):
        assert (grad is None) == (wanted is None)
        if grad is not None:
            assert_close(grad, wanted, scale=10.0)


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
