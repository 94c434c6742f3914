"""How many processes load, and what is refused."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from elm_neuro.training.loop._sampling import ResumesInEpoch


class Data(ResumesInEpoch):
    batch_size = 2
    collate = torch.stack

    def __init__(self, num_workers: int | None) -> None:
        super().__init__()
        self.num_workers = num_workers


@pytest.mark.parametrize(
    ("given", "device", "method", "wanted"),
    [
        (None, "cuda", "fork", 2),
        (None, "cuda:1", None, 2 if multiprocessing.get_all_start_methods()[0] == "fork" else 0),
        (None, "cuda", "spawn", 0),
        (None, "cpu", "fork", 0),
        (None, None, "fork", 0),
        (0, "cuda", "fork", 0),
        (3, "cpu", "spawn", 3),
    ],
)
def test_two_load_where_a_gpu_trains_and_processes_are_forked(
    monkeypatch: pytest.MonkeyPatch, given: int | None, device: str | None, method: str | None, wanted: int
) -> None:
    from elm_neuro.training.loop import _sampling

    monkeypatch.setattr(_sampling, "get_start_method", lambda allow_none: method)
    data: Any = Data(given)
    if device is not None:
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    loader = data._loader(torch.utils.data.TensorDataset(torch.zeros(4)))
    assert loader.num_workers == wanted and loader.persistent_workers == (wanted > 0)


@pytest.mark.parametrize(("name", "value"), [("num_workers", -1), ("batch_size", 0)])
@pytest.mark.parametrize(
    "kind",
    [f"{kind}DataModule" for kind in ("SHD", "SHDAdding", "SpokenDigits", "NMNIST", "NeuronIO", "ListOps", "Image")],
)
def test_what_cannot_load_is_refused_when_it_is_said(tmp_path: Path, kind: str, name: str, value: int) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    first = () if kind == "SpokenDigitsDataModule" else (tmp_path,)
    with pytest.raises(ValueError, match=f"{name} must .*, got {value}"):
        getattr(training, kind)(*first, **({"held_out": [1]} if kind == "SHDDataModule" else {}), **{name: value})
