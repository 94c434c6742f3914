"""Under ``torch.set_default_device``: what lies on the CPU stays there, and gives the same. The default is "meta" here,
whose tensors hold no numbers: whatever is made there by mistake is found out; on GPUs people set "cuda".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elm_neuro import ELM, BranchELM, SpikeEvents, SpikingELM, backends, checkpoints, pretrained
from tests.devices.test_layers import CUT, KINDS, LENGTHS, counts, given, made
from tests.layers import CELLS, INPUTS, LAYERS
from tests.tolerances import assert_close

ELSEWHERE = torch.device("meta")


def same(run: Callable[[], list[Tensor]]) -> None:
    """What `run` gives, it gives under another default device too, on the CPU."""
    wanted = run()
    with ELSEWHERE:
        found = run()
    for one, other in zip(found, wanted, strict=True):
        assert one.device.type == "cpu"
        if one.is_floating_point():
            assert_close(one, other)
        else:
            assert torch.equal(one, other)


def whole(layer: Any, first: Any, second: Any, lengths: Any) -> list[Tensor]:
    """Outputs and states of two calls, and all gradients."""
    layer.zero_grad()
    y, state = layer(first)
    z, after = layer(second, state, lengths)
    parts = [y, z, *after]
    sum(part.square().sum() for part in parts).backward()
    return [part.detach() for part in parts] + [p.grad for p in layer.parameters() if p.grad is not None]


@pytest.mark.grid(every=3)
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_the_same(name: str, kind: str, backend: str) -> None:
    layer, x = made(LAYERS[name]), counts()
    first, second = given(kind, x[:, :CUT]), given(kind, x[:, CUT:])
    with backends.use(backend):
        same(lambda: whole(layer, first, second, LENGTHS))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_gives_the_same(name: str) -> None:
    cell, x = made(CELLS[name]), counts()
    same(lambda: whole(cell, x[:, 0], x[:, 1], LENGTHS.clamp(max=1)))


@pytest.mark.parametrize("lengths", [[5, 0, 3], np.array([5, 0, 3])])
@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork"])
def test_lengths_may_be_numbers(name: str, lengths: Any) -> None:
    layer, x = made(LAYERS[name]), counts()
    same(lambda: [layer(x, None, lengths)[0]])


OPTIONS: list[dict[str, Any]] = [
    {"recompute_every": 4},
    {"branch_activation": "tanh"},
    {"tau_s": (2.0, 5.0)},
    {"sparse_input": "on"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_way_of_a_native_pass(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = BranchELM(20, 2, 3, num_branch=2, num_synapse_per_branch=4, routing="random", **options)
    x = (torch.rand(3, 9, 20) < 0.2).float()
    same(lambda: whole(layer, x, SpikeEvents.from_frames(x), torch.tensor([9, 0, 4], device="cpu")))


def test_second_derivatives_and_transforms() -> None:
    layer, x = made(LAYERS["ELM"]), counts().requires_grad_()

    def run() -> list[Tensor]:
        (grad,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(grad.square().sum(), x)
        return [again, torch.func.vmap(lambda one: layer(one.unsqueeze(0))[0])(x).detach()]

    same(run)


def test_nan_is_named() -> None:
    layer, x = made(LAYERS["ELM"]), counts()
    x[0, 2, 1] = torch.nan
    with ELSEWHERE, pytest.raises(ValueError, match="x must be finite, got nan at index"):
        layer(x, None, torch.tensor([5, 5, 5], device="cpu"))


def test_spikes_drawn_by_chance_are_of_the_same_generator() -> None:
    layer, x = made(lambda: SpikingELM(ELM(INPUTS, 2, num_memory=3), stochastic=True)), counts()

    def run() -> list[Tensor]:
        layer.output.generator = torch.Generator().manual_seed(1)  # type: ignore[union-attr]
        return [layer(x)[0].detach()]

    same(run)


def test_events_are_made_cut_and_spread() -> None:
    x = counts()
    events = SpikeEvents.from_frames(x)
    same(lambda: [SpikeEvents.from_frames(x).channel, events.to_dense()])
    for times, channels in (([0, 1, 2], [3, 0, 1]), (np.array([0, 1, 2]), np.array([3, 0, 1]))):
        same(lambda t=times, c=channels: [SpikeEvents.from_arrays(t, c, delta_t=1, num_steps=3, num_channels=4).indptr])


@pytest.mark.parametrize("name", LAYERS)
def test_saved_layers_come_back_on_the_cpu(name: str, tmp_path: Path) -> None:
    layer = made(LAYERS[name])
    pretrained.save_pretrained(layer, tmp_path / "layer")

    def run() -> list[Tensor]:
        again = pretrained.from_pretrained(tmp_path / "layer")
        again.load_state_dict(layer.state_dict())
        return [part.detach() for part in again.state_dict().values()]

    same(run)


def test_the_authors_checkpoints_come_on_the_cpu(shared: Path) -> None:
    folder = shared / "data" / "checkpoints"
    for path in sorted(folder.iterdir()):
        if (path / "model_config.json").is_file():
            same(lambda path=path: [p.detach() for p in checkpoints.from_upstream(path).parameters()])


@pytest.mark.parametrize("form", ["step", "sequence", "unrolled"])
@pytest.mark.parametrize("name", ["BranchELM", "ALIF", "SpikingELM with reset"])
def test_models_of_onnx_are_written_and_compared(name: str, form: str, tmp_path: Path) -> None:
    export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
    layer, path = made(LAYERS[name]).float(), tmp_path / "model.onnx"
    options: Any = {"num_steps": 5} if form == "unrolled" else {}
    with ELSEWHERE:
        export.to_onnx(layer, path, form=form, **options)
        assert export.verify(path, layer).compared["y"] > 0


def test_items_of_digits_are_the_same() -> None:
    pytest.importorskip("h5py")
    from elm_neuro.datasets import SHDAdding, SHDDataset, SpokenDigits

    digits = SpokenDigits("train", num_samples=8)
    recordings = digits.recordings()
    for output in ("frames", "events"):
        datasets: list[Any] = [
            SHDDataset(recordings, bin_ms=20.0, output=output),  # type: ignore[arg-type]
            SHDAdding(recordings, num_samples=4, bin_ms=20.0, output=output),  # type: ignore[arg-type]
        ]
        for items in datasets:

            def run(items: Any = items) -> list[Tensor]:
                columns = items.collate([items[0], items[1]])
                return [part.to_dense() if isinstance(part, SpikeEvents) else part for part in columns]

            same(run)


def test_pairs_of_tonic_are_drawn_anew_each_epoch() -> None:
    pytest.importorskip("tonic")
    from elm_neuro.adapters import tonic
    from elm_neuro.datasets import SpokenDigits

    raster = tonic.ToRaster(bin_us=20_000, duration_us=2_000_000, num_channels=140)
    digits = SpokenDigits("train", num_samples=8)

    def run() -> list[Tensor]:
        pairs = tonic.SHDAdding(digits, split="train", num_samples=4, transform=tonic.PoolChannels(5))
        pairs.set_epoch(1)
        return [torch.from_numpy(raster(pairs[index][0])) for index in range(4)]

    same(run)


def test_faces_give_the_same() -> None:
    pytest.importorskip("snntorch")
    pytest.importorskip("norse")
    kinds = pytest.importorskip("tests.nn.conformance.kinds", exc_type=ImportError)
    for name in kinds.FACES:
        face, x = kinds.made(name).double(), kinds.frames(torch.float64)
        same(lambda face=face, x=x, name=name: [kinds.run(name, face, x).detach()])
