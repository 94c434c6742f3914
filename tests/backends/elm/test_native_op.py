"""The native pass inside torch.compile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from elm_neuro import ELM
from elm_neuro.backends.parts._traced import LAYOUT
from tests.backends.compiled import looked_into
from tests.backends.native_cases import (
    native,
)
from tests.tolerances import assert_close

Fresh: TypeAlias = Callable[[str], Any]


@pytest.fixture
def fresh() -> Fresh:
    """What a program that is run by another interpreter prints, as JSON."""

    def run(code: str) -> Any:
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


@looked_into
@native
@pytest.mark.grid(every=4)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_neuron": 2}, {"tau_s": tuple(1.0 + i for i in range(80))}, {"num_memory": 60, "activation": "silu"}],
)
@pytest.mark.parametrize("learned_input", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_network_has_no_graph_break_and_the_same_gradients(
    options: dict[str, Any], learned_input: bool
) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    neuron = ELM(80, 3, **{"num_memory": 4, **options})
    before = torch.nn.Linear(80, 80)

    def run(x: torch.Tensor) -> torch.Tensor:
        y, state = neuron(torch.relu(before(x)) if learned_input else x)
        return y.square().sum() + state.b.sum() + state.m.sum()

    x = (torch.rand(3, 50, 80) < 0.05).float()
    leaves = [*neuron.parameters(), *(before.parameters() if learned_input else ())]
    loss = run(x)
    expected = torch.autograd.grad(loss, leaves)
    for sparse_input in ("auto", "off") if learned_input else ("auto", "on", "off"):
        torch._dynamo.reset()
        neuron.sparse_input = sparse_input
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x), loss)
        for got, wanted in zip(torch.autograd.grad(compiled(x), leaves), expected, strict=True):
            assert_close(got, wanted, scale=10.0)


@native
def test_operators_are_known_without_what_runs_them(fresh: Fresh) -> None:
    """The filter's, whose closed form is a sum: nothing of the package but its import comes before."""
    found = fresh(
        "import json, sys, torch, elm_neuro\n"
        "before = [name for name in sys.modules if name.startswith('elm_neuro.backends.native')]\n"
        f"how = repr(('native.filter', ('()', ()), (False, False, False, False, True, True, False), {LAYOUT}))\n"
        "given = [torch.ones(1, 3, 1), torch.tensor([0.5])]\n"
        "y, = torch.ops.elm_neuro.run_pass(given, [1, 3, 1], how, [0], [0.0], False)\n"
        "print(json.dumps([before, y.flatten().tolist()]))"
    )
    assert found == [[], [1.0, 1.5, 1.75]]


class Readout(torch.nn.Module):
    """Without the state, whose class a saved program does not know."""

    def __init__(self, neuron: ELM) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.neuron(x)[0]
        return y


@native
@pytest.mark.slow
def test_a_saved_program_runs_where_only_the_package_was_imported(tmp_path: Path, fresh: Fresh) -> None:
    torch.manual_seed(0)
    neuron = ELM(5, 2, num_memory=3, tau_s=tuple(1.0 + i for i in range(5)))
    x = torch.rand(2, 4, 5)
    torch.export.save(torch.export.export(Readout(neuron), (x,)), tmp_path / "neuron.pt2")
    torch.save(x, tmp_path / "x.pt")
    y, sums = fresh(
        "import json, torch, elm_neuro\n"
        f"program = torch.export.load({str(tmp_path / 'neuron.pt2')!r}).module()\n"
        f"y = program(torch.load({str(tmp_path / 'x.pt')!r}))\n"
        "y.sum().backward()\n"
        "sums = {name: parameter.grad.sum().item() for name, parameter in program.named_parameters()}\n"
        "print(json.dumps([y.tolist(), sums]))"
    )
    expected = neuron(x)[0]
    expected.sum().backward()
    assert_close(torch.tensor(y), expected)
    assert len(sums) > 3
    for name, parameter in neuron.named_parameters():
        assert parameter.grad is not None
        assert_close(torch.tensor(sums[f"neuron.{name}"]), parameter.grad.sum(), scale=10.0)
