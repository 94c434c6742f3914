"""Faces over sequences inside torch.compile: one graph, the same numbers both ways."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from elm_neuro import nn
from tests.backends.compiled import as_one_graph, spikes
from tests.backends.native_cases import native
from tests.tolerances import assert_close

# dynamo of torch 2.13 warns of what it does itself
COMPILER_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)
POPULATION: dict[str, Any] = {"num_branch": 3, "num_synapse_per_branch": 4, "routing": "random", "num_neuron": 5}

FACES: dict[str, Callable[[Any], torch.nn.Module]] = {
    "norse ELM": lambda host: host.ELM(12, 3, num_memory=4),
    "norse readout": lambda host: host.ELM(12, 3, num_memory=4, spiking=False),
    "norse BranchELM": lambda host: host.BranchELM(12, 1, num_memory=4, **POPULATION),
    "norse ALIF": lambda host: host.ALIF(12, 3, recurrent=True),
    "snntorch ELMSequence": lambda host: host.ELMSequence(12, 3, num_memory=4),
    "snntorch output": lambda host: host.ELMSequence(12, 1, num_memory=4, num_neuron=5, output=True),
    "snntorch ALIF": lambda host: host.Layer(nn.ALIF(12, 3, recurrent=True)),
    "spikingjelly ELM": lambda host: host.ELM(12, 3, num_memory=4, step_mode="m"),
    "spikingjelly BranchELM": lambda host: host.BranchELM(12, 1, num_memory=4, step_mode="m", **POPULATION),
    "spikingjelly ALIF": lambda host: host.ALIF(12, 3, recurrent=True, step_mode="m"),
}
FEW = ("norse ALIF", "snntorch ELMSequence", "spikingjelly ELM")


def made(name: str, **options: Any) -> torch.nn.Module:
    host = name.split()[0]
    pytest.importorskip(host)
    torch.manual_seed(0)
    return FACES[name](importlib.import_module(f"elm_neuro.adapters.{host}"), **options)


def outputs(face: Any, x: Tensor) -> Tensor:
    """What a face gives of a sequence, time first, as one sum that everything has a part in."""
    if hasattr(face, "reset"):  # spikingjelly's keep their state
        face.reset()
    given = face(x)
    found = given if isinstance(given, tuple) else (given,)
    return sum(part.square().sum() for part in found if isinstance(part, Tensor))  # type: ignore[return-value]


@native
@COMPILER_WARNINGS
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in FACES])
def test_a_sequence_is_one_graph_and_the_same(name: str) -> None:
    face, x = made(name), spikes(3, 20).transpose(0, 1)
    leaves = list(face.parameters())
    losses = outputs(face, x), as_one_graph(lambda x: outputs(face, x))(x)
    assert_close(losses[1], losses[0])
    for one, other in zip(*(torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(other, one)


@native
@COMPILER_WARNINGS
@pytest.mark.parametrize("host", ["norse", "snntorch", pytest.param("spikingjelly", marks=pytest.mark.slow)])
def test_the_loop_of_a_reset_is_not_unrolled(host: str) -> None:
    pytest.importorskip(host)
    faces = importlib.import_module(f"elm_neuro.adapters.{host}")
    torch.manual_seed(0)
    torch._dynamo.reset()
    options: dict[str, Any] = {
        "norse": {"threshold": 0.1, "reset": "subtract"},
        "snntorch": {"threshold": 0.1, "reset_mechanism": "subtract"},
        "spikingjelly": {"v_threshold": 0.1, "reset": "subtract", "step_mode": "m"},
    }[host]
    make = faces.ELMSequence if host == "snntorch" else faces.ELM
    face, x = make(12, 3, num_memory=4, **options), spikes(1, 200).transpose(0, 1)
    graphs = CompileCounterWithBackend("aot_eager")
    assert_close(torch.compile(outputs, backend=graphs)(face, x), outputs(face, x))
    assert sum(len(graph.graph.nodes) for graph in graphs.graphs) < 200
