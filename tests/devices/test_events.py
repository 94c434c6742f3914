"""Events on every device."""

from __future__ import annotations

import torch

from elm_neuro import SpikeEvents


def frames() -> torch.Tensor:
    return torch.poisson(torch.full((3, 7, 5), 0.4), generator=torch.Generator().manual_seed(0))


def test_frames_survive_the_way_through_events(device: torch.device) -> None:
    x = frames().to(device)
    events = SpikeEvents.from_frames(x)
    assert events.device.type == device.type and torch.equal(events.to_dense(), x)
    assert torch.equal(events.steps(2, 5).to_dense(), x[:, 2:5])
    assert torch.equal(events.to("cpu").to_dense(), frames())
    assert torch.equal(SpikeEvents.from_frames(frames()).to(device).to_dense(), x)


def test_events_of_single_samples_are_collated(device: torch.device) -> None:
    parts = [SpikeEvents.from_frames(frames()[i : i + 1, : 7 - i].to(device)) for i in range(3)]
    x = SpikeEvents.collate(parts).to_dense()
    for i in range(3):
        assert torch.equal(x[i, : 7 - i].cpu(), frames()[i, : 7 - i]) and not x[i, 7 - i :].any()


def test_dropout_keeps_a_subset_and_scales_it(device: torch.device) -> None:
    x = frames().clamp(max=1).to(device)
    dropped = SpikeEvents.from_frames(x).dropout(0.5, generator=torch.Generator(device).manual_seed(0)).to_dense()
    assert torch.equal(dropped, torch.where(dropped != 0, 2 * x, 0.0)) and 0 < dropped.sum() < 2 * x.sum()
