"""Sequences of uint8 and int8: what a layer gives for them is what it gives for their numbers as floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ALIF, ELM, LIF, BranchELM, SpikingELM, backends

SMALL: dict[str, Any] = {"num_memory": 3, "num_branch": 3, "num_synapse_per_branch": 4}
LAYERS: dict[str, Any] = {
    "ELM": lambda: ELM(6, 2, num_memory=3),
    "ELM, reference": lambda: ELM(6, 2, num_memory=3, backend="reference"),
    "ELM, torch": lambda: ELM(6, 2, num_memory=3, backend="torch"),
    "time first": lambda: BranchELM(6, 2, **SMALL, batch_first=False),
    "population": lambda: BranchELM(6, 2, **SMALL, num_neuron=2),
    "double": lambda: ELM(6, 2, num_memory=3).double(),
    "narrow": lambda: ELM(6, 2, num_memory=3).bfloat16(),
    "events": lambda: ELM(6, 2, num_memory=3, sparse_input="on"),
    "spiking": lambda: SpikingELM(ELM(6, 2, num_memory=3), threshold=0.02),
    "spiking, reset": lambda: SpikingELM(ELM(6, 2, num_memory=3), threshold=0.02, reset="subtract"),
    "LIF": lambda: LIF(6, 4),
    "ALIF": lambda: ALIF(6, 4, recurrent=True, latency=2.0),
}


def hooked() -> ELM:
    """A neuron that must be called step by step."""
    neuron = ELM(6, 2, num_memory=3)
    neuron.cell.register_forward_hook(lambda *_: None)
    return neuron


def frames(dtype: torch.dtype) -> torch.Tensor:
    x = torch.randint(-3 if dtype == torch.int8 else 0, 4, (5, 5, 6), generator=torch.Generator().manual_seed(0))
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("name", [*LAYERS, "called step by step"])
def test_a_layer_gives_what_it_gives_for_floats(name: str, dtype: torch.dtype) -> None:
    found = []
    for as_floats in (False, True):
        torch.manual_seed(0)
        layer = LAYERS.get(name, hooked)()
        like = next(layer.parameters())
        x = frames(dtype)
        y, state = layer(x.to(like.dtype) if as_floats else x, lengths=torch.tensor([5, 0, 2, 1, 4]))
        (y.sum() + state[0].sum()).backward()
        found.append([y.detach(), *(part.detach() for part in state), *(p.grad for p in layer.parameters())])
    for result, wanted in zip(*found, strict=True):
        assert (result is None and wanted is None) or torch.equal(result, wanted)


def test_gradients_of_gradients_are_those_for_floats() -> None:
    found = []
    for as_floats in (False, True):
        torch.manual_seed(0)
        neuron, x = ELM(6, 2, num_memory=3).double(), frames(torch.int8)
        leaves = [neuron.cell.w_y.weight, neuron.cell.mlp[0].weight]  # type: ignore[union-attr]
        y = neuron(x.double() if as_floats else x)[0]
        grads = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves))
    for result, wanted in zip(*found, strict=True):
        torch.testing.assert_close(result, wanted)


def test_traces_take_them() -> None:
    torch.manual_seed(0)
    neuron, x = ELM(6, 2, num_memory=3), frames(torch.uint8)
    for result, wanted in zip(neuron.traces(x), neuron.traces(x.float()), strict=True):
        assert torch.equal(result, wanted)


def test_backends_that_read_floats_are_given_floats() -> None:
    neuron, x = ELM(6, 2, num_memory=3), frames(torch.uint8)
    params = neuron.cell.effective_parameters()
    for name, about in backends.available().items():
        if not about.startswith("cannot run") and name != "cuda":
            y, _ = backends.scan(x, params, None, backend=name)
            torch.testing.assert_close(y, backends.scan(x.float(), params, None, backend="reference")[0])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.bool, torch.float16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    for layer in (ELM(6, 2, num_memory=3), LIF(6, 4)):
        with pytest.raises(TypeError, match=r"x must have dtype torch.float32 like the parameters, got"):
            layer(torch.zeros(2, 4, 6, dtype=dtype))


def test_a_step_takes_floats() -> None:
    with pytest.raises(TypeError, match=r"x must have dtype torch.float32 like the parameters, got torch.uint8"):
        ELM(6, 2, num_memory=3).step(torch.zeros(2, 6, dtype=torch.uint8))
