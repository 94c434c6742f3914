"""What is no number of samples, no state that kernels read, no configuration, no size: every layer says so by name."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMCell, ELMNetwork, SpikeEvents, SpikingELM, backends
from elm_neuro.nn._config import LARGEST_SIZE
from elm_neuro.nn._network import DropoutMasks
from tests.layers import BATCH, CELLS, INPUTS, LAYERS, NETWORK, STEPS

ALL = LAYERS | CELLS


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (-1, ValueError, "batch must not be negative, got -1"),
        (1.5, TypeError, "batch must be an integer, got 1.5"),
        ("2", TypeError, "batch must be an integer, got '2'"),
        (None, TypeError, "batch must be an integer, got None"),
        (True, TypeError, "batch must be an integer, got True"),
    ],
)
def test_a_state_is_of_so_many_samples(make: Any, batch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make().initial_state(batch)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_numbers_of_samples_may_be_of_any_kind(make: Any) -> None:
    layer = make()
    for batch in (0, 3, np.int64(3), torch.tensor(3)):
        for part in layer.initial_state(batch):
            assert part.shape[0] == int(batch)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("layout", ["sparse", "csr", "nested"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_state_that_is_not_dense_is_named(make: Any, layout: str) -> None:
    layer = make()
    start = layer.initial_state(BATCH)
    for index, (name, part) in enumerate(zip(start._fields, start, strict=True)):
        own = name.removeprefix("core_")  # a layer inside says its own names
        others: dict[str, Any] = {
            "sparse": part.to_sparse,
            "csr": part.flatten(1).to_sparse_csr,
            "nested": lambda part=part: torch.nested.nested_tensor(list(part), layout=torch.jagged),
        }
        parts = list(start)
        parts[index] = others[layout]()
        x = torch.zeros(BATCH, INPUTS) if getattr(layer, "is_cell", False) else torch.zeros(BATCH, STEPS, INPUTS)
        with pytest.raises(TypeError, match=rf"state\.{own} must be dense, got a"):
            layer(x, type(start)(*parts))


def test_sparse_parameters_are_named() -> None:
    neuron = ELM(INPUTS, 2, num_memory=3)
    params = neuron.cell.effective_parameters()
    for backend in ("reference", "torch", "auto"):
        with pytest.raises(TypeError, match="w_y must be dense, got a tensor"):
            backends.elm.scan(
                torch.zeros(1, 2, INPUTS), params._replace(w_y=params.w_y.detach().to_sparse()), None, backend=backend
            )


@pytest.mark.parametrize("kind", [ELM, ELMCell, LIF, ALIF, ELMNetwork])
@pytest.mark.parametrize("size", [LARGEST_SIZE + 1, 10**30, 10**5000], ids=["next", "large", "endless"])
def test_a_size_beyond_the_kernels_numbers_is_named(kind: Any, size: int) -> None:
    for name in ("input_size", "output_size"):
        with pytest.raises(ValueError, match=f"{name} must be at most {LARGEST_SIZE}, got"):
            kind(**{"input_size": 3, "output_size": 2, **(NETWORK if kind is ELMNetwork else {}), name: size})


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("config", [None, {"input_size": 3, "output_size": 2}, 3])
def test_a_layer_is_made_of_its_own_kind_of_configuration(make: Any, config: Any) -> None:
    layer = make()
    kind = type(layer.config).__name__
    with pytest.raises(TypeError, match=f"config must be an? {kind}, got {type(config).__name__}"):
        type(layer).from_config(config)


@pytest.mark.parametrize("backend", [["native"], {"native"}, None, 3, b"native"])
def test_a_backend_is_named_by_a_text(backend: Any) -> None:
    message = 'backend must be "auto" or one of'
    for kind in (ELM, LIF):
        with pytest.raises(ValueError, match=message):
            kind(3, 2, backend=backend)
    with pytest.raises(ValueError, match=message):
        ELM(3, 2).backend = backend
    params = BranchELM(4, 2, num_branch=2, num_synapse_per_branch=2).cell.effective_parameters()
    with pytest.raises(ValueError, match=message):
        backends.elm.scan(torch.zeros(1, 1, 4), params, None, backend=backend)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[[1.0]]], "frames must be a tensor, got list"),
        (np.zeros((1, 2, 3)), "frames must be a tensor, got ndarray"),
        (torch.zeros(1, 2, 3).to_sparse(), "frames must be dense, got a tensor of layout torch.sparse_coo"),
        (
            torch.nested.nested_tensor([torch.zeros(2, 3)], layout=torch.jagged),
            "frames must be dense, got a nested tensor",
        ),
    ],
)
def test_events_are_made_of_dense_tensors(frames: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SpikeEvents.from_frames(frames)


@pytest.mark.parametrize("lengths", ["ab", [None], object()])
def test_lengths_that_are_no_numbers_are_named(lengths: Any) -> None:
    for make in LAYERS.values():
        with pytest.raises(TypeError, match="lengths must be integers, got"):
            make()(torch.zeros(BATCH, STEPS, INPUTS), None, lengths)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ("ab", TypeError, "masks must be DropoutMasks, got str"),
        ((torch.ones(BATCH, INPUTS),), TypeError, "masks must be DropoutMasks, got tuple"),
        (DropoutMasks(1.0, None), TypeError, "masks.input must be a tensor or None, got float"),  # type: ignore[arg-type]
        (DropoutMasks(torch.ones(1, INPUTS), None), ValueError, f"masks.input must have shape ({BATCH}, {INPUTS})"),
        (DropoutMasks(None, torch.ones(BATCH, 9)), ValueError, f"masks.recurrent must have shape ({BATCH}, 4)"),
        (DropoutMasks(torch.ones(BATCH, INPUTS).double(), None), TypeError, "masks.input must have dtype"),
        (DropoutMasks(None, torch.ones(BATCH, 4).to_sparse()), TypeError, "masks.recurrent must be dense"),
    ],
)
def test_masks_of_dropout_fit_a_sequence_and_a_step(masks: Any, error: type[Exception], message: str) -> None:
    layer = ELMNetwork(INPUTS, 4, **NETWORK)
    with pytest.raises(error, match=re.escape(message)):
        layer(torch.zeros(BATCH, STEPS, INPUTS), masks=masks)
    with pytest.raises(error, match=re.escape(message)):
        layer.step(torch.zeros(BATCH, INPUTS), masks=masks)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_spikes_before_a_reset_are_numbers(reset: str, value: float) -> None:
    for core in (ELM(INPUTS, 2, num_memory=3), ELMCell(INPUTS, 2, num_memory=3)):
        layer = SpikingELM(core, reset=reset)
        start = layer.initial_state(BATCH)
        start.s[1, 0] = value
        x = torch.zeros(BATCH, INPUTS) if layer.is_cell else torch.zeros(BATCH, STEPS, INPUTS)
        for call in (layer, *(() if layer.is_cell else (lambda x, s, layer=layer: layer.step(x[:, 0], s),))):
            with pytest.raises(ValueError, match=r"state\.s must be spikes, 0 or 1, got 1 of 6 that are not finite"):
                call(x, start)
