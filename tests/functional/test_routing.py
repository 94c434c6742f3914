from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elm_neuro.functional import branch_input, branch_matrix, routing_index
from tests.tolerances import assert_close


def test_neuronio_routing_is_that_of_the_published_checkpoints(shared: Any) -> None:
    state = torch.load(
        shared / "data/checkpoints/num_memory_10/neuronio_best_model_state.pt", weights_only=True, map_location="cpu"
    )
    config = json.loads((shared / "data/checkpoints/num_memory_10/model_config.json").read_text())
    index = routing_index("neuronio", config["num_input"], config["num_branch"], config["num_synapse_per_branch"])
    mask = state["valid_indices_mask"].bool()
    assert torch.equal(index.flatten() >= 0, mask)
    assert torch.equal(index.flatten()[mask], state["input_to_synapse_indices"][mask])
    assert int((~mask).sum()) == 218


@given(input_size=st.integers(1, 60), num_branch=st.integers(1, 20))
def test_windows_start_at_equal_strides_and_leave_out_no_input(input_size: int, num_branch: int) -> None:
    stride = math.ceil(input_size / num_branch)
    if stride * (num_branch - 1) >= input_size:
        with pytest.warns(UserWarning, match="stay empty"):
            index = routing_index("window", input_size, num_branch, stride + 1)
    else:
        index = routing_index("window", input_size, num_branch, stride + 1)
    for branch in range(num_branch):
        expected = [i if i < input_size else -1 for i in range(branch * stride, branch * stride + stride + 1)]
        assert index[branch].tolist() == expected
    assert set(index.flatten().tolist()) - {-1} == set(range(input_size))


def test_branches_left_empty_are_counted_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="30 of 100 branches start past the last of 140 inputs and stay empty"):
        routing_index("window", 140, 100, 20)


def test_random_routing_follows_its_generator_and_draws_all_inputs() -> None:
    first, second = (routing_index("random", 9, 30, 20, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.flatten().tolist()) == set(range(9))


def test_shuffling_permutes_inputs_and_keeps_the_windows() -> None:
    plain, shuffled = (
        routing_index("neuronio", 12, 3, 6, shuffle=s, generator=torch.Generator().manual_seed(0))
        for s in (False, True)
    )
    renamed = dict(zip(plain.flatten().tolist(), shuffled.flatten().tolist(), strict=True))
    assert not torch.equal(plain, shuffled)
    assert sorted(renamed[i] for i in range(12)) == list(range(12)) and renamed[-1] == -1 if -1 in renamed else True
    assert [renamed[i] for i in plain.flatten().tolist()] == shuffled.flatten().tolist()


@given(seed=st.integers(0, 1000), population=st.sampled_from([None, "shared", "own"]))
def test_branch_input_and_matrix_equal_a_loop_over_synapses(seed: int, population: str | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    neurons = () if population is None else (2,)
    routing = torch.randint(-1, 5, (*((2,) if population == "own" else ()), 3, 4), generator=generator)
    w_s = torch.rand(*neurons, 3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(2, *neurons, 5, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, *neurons, 3, dtype=torch.float64)
    for where in torch.cartesian_prod(*map(torch.arange, expected.shape)).tolist():
        sample, *neuron, branch = where
        for j in range(4):
            source = int(routing[(*neuron, branch, j)] if population == "own" else routing[branch, j])
            if source >= 0:
                expected[tuple(where)] += w_s[(*neuron, branch, j)] * x[(sample, *neuron, source)]
    assert_close(branch_input(x, w_s, routing), expected)
    matrix = branch_matrix(w_s, routing, 5)
    assert_close(torch.einsum("...i,...ci->...c", x, matrix.expand(2, *matrix.shape)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("neuronio", 7, 2, 4), "input_size must be even"),
        (("window", 10, 2, 4), r"num_synapse_per_branch must be at least ceil\(input_size / num_branch\) = 5"),
        (
            (None, 10, 2, 4),
            r"num_branch \* num_synapse_per_branch must equal input_size without routing, got 2 \* 4 for 10",
        ),
        (("nearest", 8, 2, 4), "routing must be None, one of .* or an index tensor, got 'nearest'"),
    ],
)
def test_routing_that_does_not_fit_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routing_index(*arguments)
