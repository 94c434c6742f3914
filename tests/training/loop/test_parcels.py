"""Batches that come from worker processes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

pytest.importorskip("lightning")

from torch.utils.data import Dataset

from elm_neuro import SpikeEvents
from elm_neuro.training.loop._parcels import MAX_BYTES, Parcel, Receiving, Sent

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def there_and_back(batch: Any) -> Any:
    return pickle.loads(pickle.dumps(Parcel(batch))).batch()


def assert_same_bits(found: Tensor, sent: Tensor) -> None:
    assert found.dtype == sent.dtype and found.shape == sent.shape
    assert found.contiguous().numpy().tobytes() == sent.contiguous().numpy().tobytes()


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: st.one_of(
            arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=5)),
            arrays.arrays(dtype, (80,), elements={"min_value": -1, "max_value": 1} if dtype[0] == "i" else None),
        )
    )
)
def test_numbers_arrive_bit_for_bit(array: Any) -> None:
    sent = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    assert_same_bits(there_and_back((sent, [sent]))[1][0], sent)


@pytest.mark.parametrize("last", [0.0, -0.0, float("nan"), float("inf"), 0.5, 128.0, -128.0, 1e300])
def test_a_number_that_is_none_of_the_narrow_ones_is_seen_wherever_it_is(last: float) -> None:
    sent = torch.cat([torch.zeros(1000, dtype=torch.float64), torch.tensor([last], dtype=torch.float64)])
    assert_same_bits(there_and_back(sent), sent)


@pytest.mark.parametrize("edge", [2**7, 2**15, 2**31, 2**62])
def test_integers_at_the_edge_of_a_narrower_dtype(edge: int) -> None:
    sent = torch.tensor([edge - 1, edge, -edge, -edge - 1])
    assert_same_bits(there_and_back(sent), sent)


@pytest.mark.parametrize(
    "sent",
    [
        torch.randn(3, 4).to(torch.bfloat16),
        torch.randn(5).to(torch.complex64).conj().imag,
        torch.arange(12).view(3, 4).t()[:, 1:],
        torch.randn(MAX_BYTES // 4 + 1),
        (torch.rand(MAX_BYTES + 1) < 0.1).float(),
        (torch.rand(2, 1000, 1278) < 0.01).to(torch.int8),
        (torch.rand(1000, 2001) < 0.01).float().t(),
        -(torch.rand(2, 1000, 700) < 0.01).double(),
    ],
    ids=["bfloat16", "negated view", "not contiguous", "large", "narrow", "sparse", "sparse and not contiguous", "-0"],
)
def test_any_tensor_arrives(sent: Tensor) -> None:
    found = there_and_back({"x": sent})["x"]
    assert found.dtype == sent.dtype and torch.equal(found, sent)
    assert torch.equal(found.float().signbit(), sent.float().signbit())


def test_spikes_travel_narrow() -> None:
    frames = torch.randint(-1, 2, (4, 50, 700)).float()
    events = SpikeEvents.from_frames(frames)
    assert len(pickle.dumps(Parcel(events))) < 0.3 * (events.channel.nbytes + events.value.nbytes)  # type: ignore[union-attr]
    assert torch.equal(there_and_back(events).to_dense(), frames)
    large = (torch.rand(8, 500, 1278) < 0.01).float()
    assert len(pickle.dumps(Parcel(large))) < 0.05 * large.nbytes


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        if index == 6:
            raise ValueError("no item 6")
        return torch.full((3,), float(index)), index


def collate(items: Any) -> Any:
    return torch.stack([x for x, _ in items]), [index for _, index in items]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_what_was_collated(num_workers: int) -> None:
    loader = Receiving(Items(), batch_size=2, collate_fn=Sent(collate), num_workers=num_workers, sampler=range(6))
    for number, (x, indices) in enumerate(loader):
        assert indices == [2 * number, 2 * number + 1] and torch.equal(x[:, 0], torch.tensor(indices).float())
    assert number == 2
    failing = Receiving(Items(), batch_size=2, collate_fn=Sent(collate), num_workers=num_workers)
    with pytest.raises(ValueError, match="no item 6"):
        list(failing)
