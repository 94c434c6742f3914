"""What a pass on a GPU asks of its host and keeps for the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from elm_neuro import ELM, SpikeEvents
from elm_neuro.backends.elm._cuda_plan import plan
from elm_neuro.backends.parts._untraced import COMPILES
from elm_neuro.nn import _elm
from tests.backends.cuda.fake_driver import FakeDriver


class Counted(TorchDispatchMode):
    """Operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not COMPILES, reason="what older releases of torch are asked for is counted otherwise by them")
@pytest.mark.parametrize(("events", "most"), [(False, 28), (True, 26)])
def test_a_pass_asks_little_of_torch(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, events: bool, most: int
) -> None:
    """On a GPU each operation costs the host about as much as a launch."""
    monkeypatch.setattr(_elm, "may_look", lambda tensor: False)  # at a result, as on a GPU
    neuron = ELM(7, 2, num_memory=3, backend="cuda")
    x: Any = torch.ones(2, 5, 7)
    x = SpikeEvents.from_frames(x) if events else x
    grad = torch.ones(2, 5, 2)
    neuron(x)[0].backward(grad)  # looks at the routing, asks for the kernels
    neuron.zero_grad()
    with Counted() as counted:
        y, _ = neuron(x)
        y.backward(grad)
    assert len(counted.names) <= most, counted.names
    nodes = {type(node).__name__ for node, _ in y.grad_fn.next_functions if node is not None}
    assert nodes == {"AccumulateGrad"}  # one node between what is learned and the output


def test_a_pass_is_settled_once_for_its_sizes(fake_driver: FakeDriver) -> None:
    first, second = (ELM(7, 2, num_memory=3, backend="cuda") for _ in range(2))
    for neuron, num_steps, plans in ((first, 5, 1), (second, 5, 1), (first, 6, 2), (first, 5, 2)):
        neuron(torch.ones(2, num_steps, 7))[0].sum().backward()
        assert plan.cache_info().currsize == plans


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_what_is_kept_for_the_backward_pass_is_memory_tanhs_and_hidden_units(
    fake_driver: FakeDriver, activation: str
) -> None:
    torch.manual_seed(0)
    neuron = ELM(7, 2, num_memory=32, activation=activation, backend="cuda")
    x, sizes = torch.ones(4, 50, 7), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = neuron(x)
    own = [size for size in sizes if size not in {t.numel() for t in (x, *neuron.state_dict().values())}]
    assert len(own) == 1 and 0 <= own[0] - 4 * 50 * (32 + 32 + 64) <= 4 * 7 + 7 + 2 * 32 + 1 + 7 * 64  # alignment
    y.sum().backward()  # the kernels read what hooks gave back
